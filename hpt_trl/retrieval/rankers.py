"""What ranks the pages of an index: kinds, their settings, and how each is built and opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hpt_trl.errors import UserError
from hpt_trl.retrieval.lexical import Lexical, Words
from hpt_trl.retrieval.multi_vectors import MultiVectors
from hpt_trl.retrieval.pages import Page, no_text, open_image
from hpt_trl.retrieval.vectors import Vectors, require_embeddings
from hpt_trl.settings.values import did_you_mean

# Pixels per inch of rendered PDFs at least: below, no text can be read.
LEAST_DPI = 36
LEXICAL = "lexical"
KINDS = (LEXICAL, "text_vectors", "image_vectors", "text_multi_vectors", "image_multi_vectors")


class Ranker(Protocol):
    """What ranks the pages of an index, by their places."""

    def save(self, folder: Path) -> None: ...

    def rank(self, queries: Sequence[str], top_k: int) -> list[list[tuple[int, float]]]: ...


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built.

    Attributes:
        kind: what ranks: `lexical` (words), or vectors of texts or images, one or many a page.
        model: of vectors: Hub id or local folder, of sentence-transformers.
        language: of words; `none` for no stems.
        ocr: reads the images of pages without text.
        on_bad_page: `error`, or `skip` the pages that cannot be read.
        copy_images: copies page images into the index; if not, it refers to them where they lie.
        pdf_dpi: pixels per inch of rendered PDFs.
    """

    kind: str = LEXICAL
    model: str | None = None
    language: str = "english"
    ocr: bool = False
    on_bad_page: Literal["error", "skip"] = "error"
    copy_images: bool = True
    pdf_dpi: int = 144

    @property
    def by_text(self) -> bool:
        """Whether pages are found by their texts, and not by their images."""
        return not self.kind.startswith("image")


def check_settings(settings: IndexSettings) -> None:
    """Refuses settings that do not belong together, before a page is read.

    Raises:
        UserError: the first of them, or the extra that is not installed.
    """
    if settings.kind not in KINDS:
        raise UserError(
            f"there is no index of kind `{settings.kind}`.{did_you_mean(settings.kind, KINDS)} Allowed: "
            f"{', '.join(KINDS)}."
        )
    if settings.pdf_dpi < LEAST_DPI:
        raise UserError(f"`pdf_dpi` is {settings.pdf_dpi}; allowed: {LEAST_DPI} or more.")
    if settings.kind == LEXICAL:
        if settings.model is not None:
            raise UserError(f"an index of words has no model; drop {settings.model}, or name a kind of vectors.")
        Words(settings.language)
        return
    require_embeddings()
    if settings.model is None:
        raise UserError(f"`{settings.kind}` needs a model: a Hub id or local folder that sentence-transformers loads.")


def build_ranker(settings: IndexSettings, pages: Sequence[Page], folder: Path) -> Ranker:
    """Builds what ranks pages.

    Args:
        settings: kind, model and language.
        pages: of the index.
        folder: to which paths of images are relative.

    Raises:
        UserError: no page has what the kind ranks by, or the model is refused.
    """
    if settings.kind == LEXICAL:
        return Lexical.build([page.text for page in pages], settings.language)
    places = [place for place, page in enumerate(pages) if page.text or not settings.by_text]
    if not places:
        raise no_text(len(pages))

    def content(place: int) -> Any:
        return pages[place].text if settings.by_text else open_image(folder / pages[place].image)

    return _vectors_of(settings).build(str(settings.model), places, content)


def load_ranker(settings: IndexSettings, folder: Path) -> Ranker:
    """Opens what ranks the pages of an index.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: its files are missing or damaged.
        UserError: an extra or the model is missing.
    """
    if settings.kind == LEXICAL:
        return Lexical.load(folder, settings.language)
    return _vectors_of(settings).load(folder, str(settings.model))


def _vectors_of(settings: IndexSettings) -> type[Vectors] | type[MultiVectors]:
    return MultiVectors if "multi" in settings.kind else Vectors
