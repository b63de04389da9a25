"""An index on disk: the pages, their images, and what ranks them.

index.json    kind, settings, number of pages, digests of the contents and of the ranking's files, version
pages.jsonl   one page a line, in their order
images/       page images: copies, and the rendered pages of PDFs
ranking/      of words as bm25s saves it, or of vectors as faiss does
"""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError
from hpt_trl.files import folder_fault, lines_of, parsed_json
from hpt_trl.placing import clear_left, put_in_place, written_aside
from hpt_trl.retrieval.pages import Hit, Page, image_digest, open_image
from hpt_trl.retrieval.rankers import IndexSettings, Ranker, build_ranker, check_settings, load_ranker
from hpt_trl.retrieval.reading import Reading, read_pages

if TYPE_CHECKING:
    from PIL import Image

INDEX_FILE, PAGES_FILE, IMAGES_FOLDER, RANKING_FOLDER = "index.json", "pages.jsonl", "images", "ranking"
# In the output folder of a recipe of `stage: index`.
INDEX_FOLDER = "index"
# Raised where files of another version are not read any more.
FORMAT = 2


@dataclass(frozen=True)
class Built:
    """What an index was built of.

    Attributes:
        index: the new index.
        reading: of its pages.
    """

    index: "Index"
    reading: Reading

    def lines(self) -> list[str]:
        """What is said of the pages: how many, how many are without text, and which were left out."""
        reading = self.reading
        told = [f"Pages:   {len(reading.pages)} of {len({page.document for page in reading.pages})} documents"]
        if reading.by_ocr:
            told.append(f"OCR:     {reading.by_ocr} pages have their text from their image")
        if reading.without_text:
            told.append(f"No text: {reading.without_text} pages, which are found by no words (`--ocr` reads images)")
        if reading.skipped:
            told.append(f"Skipped: {len(reading.skipped)} that cannot be read. The first: {reading.skipped[0]}")
        if reading.left_alone:
            told.append(f"Others:  {reading.told_alone()}, which are no pages and were left alone")
        return told


class Index:
    """An index that is open for questions; see `SearchEngine` of `engine.py`.

    Attributes:
        folder: where it lies.
        settings: how it was built.
        pages: in their order.
        digest: of its contents and its settings.
        names: of its pages.
    """

    def __init__(self, folder: Path, settings: IndexSettings, pages: list[Page], digest: str, ranker: Ranker):
        self.folder, self.settings, self.pages, self.digest = folder, settings, pages, digest
        self._ranker = ranker
        self._by_name = {page.name: page for page in pages}
        self.names: Collection[str] | None = self._by_name.keys()

    def __len__(self) -> int:
        return len(self.pages)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Ranks pages for each query, best first."""
        if not queries:
            return []
        ranked = self._ranker.rank(queries, min(top_k, len(self.pages)))
        return [[Hit(self.pages[place], score) for place, score in row] for row in ranked]

    def image(self, name: str) -> "Image.Image":
        """The image of a page.

        Raises:
            UserError: there is no such page, or its image is missing or is not the one that the index was built of.
        """
        if name not in self._by_name:
            raise UserError(f"{self.folder} has no page `{name}`.")
        page = self._by_name[name]
        # An absolute path stays as it is.
        path = self.folder / page.image
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"page {name}: {path} cannot be read: {error.strerror}. {_again(self.folder)}") from error
        if image_digest(content) != page.image_digest:
            raise UserError(f"page {name}: {path} is not the image that the index was built of. {_again(self.folder)}")
        return open_image(content, name=f"page {name}, {path},")


def build_index(
    pages_folder: str | Path, index_folder: str | Path, settings: IndexSettings, *, overwrite: bool = False
) -> Built:
    """Builds an index of a folder of pages.

    It is written under another name and renamed at the end: what fails or is stopped leaves nothing behind, and an
    index that it replaces lies there until then.

    Args:
        pages_folder: see `read_pages`.
        index_folder: new or empty folder, or an index that is to be replaced.
        overwrite: replaces an index that lies there; anything else there is refused all the same.

    Raises:
        UserError: the settings, the pages or the folder are refused, or an extra is not installed.
    """
    pages_folder, index_folder = Path(pages_folder), Path(index_folder)
    check_settings(settings)
    target = index_folder.resolve()
    try:
        clear_left(target)
        _check_folder(pages_folder, index_folder, overwrite)
        with written_aside(target) as new:
            reading = read_pages(
                pages_folder,
                new / IMAGES_FOLDER,
                ocr=settings.ocr,
                by_text=settings.by_text,
                on_bad_page=settings.on_bad_page,
                copy_images=settings.copy_images,
                pdf_dpi=settings.pdf_dpi,
            )
            build_ranker(settings, reading.pages, new).save(new / RANKING_FOLDER)
            lines = [json.dumps(asdict(page)) + "\n" for page in reading.pages]
            (new / PAGES_FILE).write_text("".join(lines), encoding="utf-8")
            facts = {
                "format": FORMAT,
                "version": version("hpt-trl"),
                "count": len(reading.pages),
                "digest": _digest(settings, reading.pages),
                "ranking": _ranking_digest(new / RANKING_FOLDER),
                **asdict(settings),
            }
            (new / INDEX_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            # Before it replaces another one: a model may turn out to embed otherwise each time it is loaded.
            index = load_index(new)
            # Another command may have put one there meanwhile.
            _check_folder(pages_folder, index_folder, overwrite)
            put_in_place(new, target)
        index.folder = index_folder
    except OSError as error:
        raise UserError(f"{index_folder} cannot be written: {error}.") from error
    return Built(index, reading)


def load_index(folder: str | Path) -> Index:
    """Opens an index.

    Args:
        folder: of the index, or the output folder of a recipe that built one.

    Raises:
        UserError: there is none, it is damaged, empty or of another version, or an extra is not installed.
    """
    folder = Path(folder)
    try:
        if (folder / INDEX_FOLDER / INDEX_FILE).is_file():
            folder = folder / INDEX_FOLDER
        if not (folder / INDEX_FILE).is_file():
            raise UserError(f"{folder} holds no index (no {INDEX_FILE}). Build one: hpt-trl index PAGES {folder}")
        facts = parsed_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise UserError(
                f"{folder} was built by hpt-trl {facts['version']} and is of format {facts['format']}; this version "
                f"reads {FORMAT}. {_again(folder)}"
            )
        settings = IndexSettings(**{item.name: facts[item.name] for item in fields(IndexSettings)})
        pages = [Page(**parsed_json(line)) for line in lines_of(folder / PAGES_FILE)]
        if not pages:
            raise ValueError("it has no pages")
        if len(pages) != facts["count"] or _digest(settings, pages) != facts["digest"]:
            raise ValueError(f"{PAGES_FILE} is not the one that it was built with")
        missing = [page.image for page in pages if not os.path.isfile(folder / page.image)]
        if missing:
            raise ValueError(f"{len(missing)} of {len(pages)} images are missing, the first {missing[0]}")
        if _ranking_digest(folder / RANKING_FOLDER) != facts["ranking"]:
            raise ValueError(f"the files in {RANKING_FOLDER} are not those that it was built with")
        ranker = load_ranker(settings, folder / RANKING_FOLDER)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    # Of other JSON than an index's; and of files of its ranking that another version of bm25s, NumPy or faiss wrote.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"the index {folder} is damaged: {reason}. {_again(folder)}") from error
    return Index(folder, settings, pages, facts["digest"], ranker)


def kind_of_index(folder: Path) -> str | None:
    """What ranks the pages of an index, read without any package; None where none can be read."""
    for place in (folder / INDEX_FOLDER / INDEX_FILE, folder / INDEX_FILE):
        if place.is_file():
            try:
                return str(parsed_json(place.read_text(encoding="utf-8"))["kind"])
            except (OSError, ValueError, KeyError, TypeError):
                return None
    return None


def _again(folder: Path) -> str:
    return f"Build it again: hpt-trl index PAGES {folder} --overwrite"


def _check_folder(pages_folder: Path, index_folder: Path, overwrite: bool) -> None:
    pages, index = pages_folder.resolve(), index_folder.resolve()
    if index.is_relative_to(pages) or pages.is_relative_to(index):
        raise UserError(
            f"the index {index_folder} and the pages {pages_folder} lie in one another; name another folder."
        )
    if fault := folder_fault(index_folder):
        raise UserError(f"{index_folder} {fault}; name a new folder for the index.")
    if not index_folder.exists():
        return
    if (index_folder / INDEX_FILE).is_file():
        if not overwrite:
            raise UserError(f"{index_folder} holds an index already. To replace it, write `--overwrite`.")
    elif any(index_folder.iterdir()):
        raise UserError(f"{index_folder} holds something else than an index; name a new folder.")


def _digest(settings: IndexSettings, pages: Sequence[Page]) -> str:
    """Of all that a ranking and its images depend on; not of where the images lie."""
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps([settings.kind, settings.model, settings.language]).encode())
    for page in pages:
        total.update(json.dumps([page.name, page.text, page.document, page.number, page.image_digest]).encode() + b"\n")
    return total.hexdigest()


def _ranking_digest(folder: Path) -> str:
    """Of the names and contents of the files that rank."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
        total.update(f"{path.name} {digest.hexdigest()}\n".encode())
    return total.hexdigest()
