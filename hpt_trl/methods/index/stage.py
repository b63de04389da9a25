"""The stage `index`: recipes that build a search index, for others to name as `search_index`."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments
from trl import ModelConfig

from hpt_trl.data.pages.settings import PageSettings, page_settings
from hpt_trl.data.pages.writing import write_pages
from hpt_trl.errors import Collector, UserError
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Recipe, Stage
from hpt_trl.retrieval.index import INDEX_FOLDER, build_index
from hpt_trl.retrieval.questions import measure, read_questions, refuse_unknown
from hpt_trl.retrieval.rankers import KINDS, LEAST_DPI, LEXICAL, IndexSettings, check_settings
from hpt_trl.settings.ranges import at_least
from hpt_trl.settings.values import did_you_mean
from hpt_trl.terminal import flow

# Of the keys of every stage, those that mean something where there is neither model nor rows.
_KEPT = (
    *("output_dir", "use_cpu", "ddp_timeout", "ddp_backend", "log_level", "stage", "overwrite"),
    *("report_to", "run_name", "project", "trackio_space_id"),
)


@dataclass
class IndexArguments(RecipeArguments):
    """What is indexed, and how."""

    pages: str | None = field(
        default=None, metadata={"help": "Folder of page images and PDFs; docs/retrieval.md says what is read."}
    )
    made_pages: dict | str | None = field(
        default=None,
        metadata={
            "help": "Draws the pages into the folder `pages` first, where they are not there; options as those of "
            "`hpt-trl pages`, e.g. {size: 400, layouts: [swatch]}."
        },
    )
    index_kind: str = field(
        default=LEXICAL,
        metadata={
            "choices": KINDS,
            "help": "What ranks pages: `lexical` by words, the others by vectors of an `embedding_model`.",
        },
    )
    embedding_model: str | None = field(
        default=None, metadata={"help": "Of vectors: Hub id or local folder that sentence-transformers loads."}
    )
    language: str = field(default="english", metadata={"help": "Of words, for their stems; `none` for none."})
    ocr: bool = field(default=False, metadata={"help": "Read the text of pages that have none from their image."})
    on_bad_page: str = field(
        default="error",
        metadata={"choices": ("error", "skip"), "help": "What a page that cannot be read leads to."},
    )
    copy_images: bool = field(
        default=True, metadata={"help": "Copy page images into the index; if false, it refers to them where they lie."}
    )
    pdf_dpi: int = field(default=144, metadata={"help": "Pixels per inch of rendered PDFs."})
    questions: str | None = field(
        default=None,
        metadata={
            "help": "File of JSON lines with `query` and `reference_pages`: recall@1, recall@5 and ndcg@5 of the index."
        },
    )


def check(recipe: Recipe) -> None:
    """Refuse settings that do not belong together, before a page is read.

    Raises:
        UserError: every such setting.
    """
    arguments, mistakes = _arguments(recipe), Collector()
    with mistakes.noted():
        if not arguments.pages:
            raise recipe.error("pages", "a recipe needs it; write a folder of page images and PDFs.")
        if arguments.made_pages is not None:
            _make(recipe, arguments)
        if not Path(arguments.pages).is_dir():
            raise recipe.error("pages", f"there is no folder {arguments.pages}.")
    try:
        check_settings(_settings(arguments))
    except UserError as error:
        key = "embedding_model" if arguments.index_kind != LEXICAL else "language"
        mistakes.note(recipe.error(key, str(error)))
    if arguments.questions is not None:
        try:
            read_questions(arguments.questions)
        except UserError as error:
            mistakes.note(recipe.error("questions", str(error)))
    mistakes.settle()


def _make(recipe: Recipe, arguments: IndexArguments) -> None:
    if not isinstance(arguments.made_pages, dict):
        raise recipe.error("made_pages", f"{arguments.made_pages!r} is no mapping; write e.g. {{size: 400}}.")
    known = {field.name for field in fields(PageSettings)}
    for name in arguments.made_pages:
        if name not in known:
            meant = did_you_mean(str(name), known)
            raise recipe.error("made_pages", f"`{name}`: unknown.{meant} Known: {', '.join(sorted(known))}.")
    try:
        write_pages(str(arguments.pages), page_settings(arguments.made_pages, "made_pages"))
    except UserError as error:
        raise recipe.error("made_pages", str(error).removeprefix("made_pages: ")) from error


def build(recipe: Recipe) -> dict[str, Any]:
    """Build the index in the folder `index` of the output folder, and measure it where there are questions.

    Returns:
        How many pages there are and lack a text, and were left out; recall and NDCG.

    Raises:
        UserError: a page cannot be read, or the index lacks a reference page.
    """
    arguments = _arguments(recipe)
    built = build_index(
        str(arguments.pages), Path(recipe.config.output_dir) / INDEX_FOLDER, _settings(arguments), overwrite=True
    )
    print(flow(built.lines()))
    reading = built.reading
    counts = {"pages": len(built.index), "without_text": reading.without_text, "skipped": len(reading.skipped)}
    if arguments.questions is None:
        return counts
    questions = read_questions(arguments.questions)
    refuse_unknown(questions, [page.name for page in built.index.pages], "the index")
    return counts | {"questions": len(questions)} | measure(built.index, questions)


def _arguments(recipe: Recipe) -> IndexArguments:
    return cast(IndexArguments, recipe.arguments)


def _settings(arguments: IndexArguments) -> IndexSettings:
    return IndexSettings(
        kind=arguments.index_kind,
        model=arguments.embedding_model,
        language=arguments.language,
        ocr=arguments.ocr,
        on_bad_page="skip" if arguments.on_bad_page == "skip" else "error",
        copy_images=arguments.copy_images,
        pdf_dpi=arguments.pdf_dpi,
    )


STAGE = Stage(
    name="index",
    config_class=TrainingArguments,
    argument_class=IndexArguments,
    left_out=frozenset(
        item.name
        for kind in (TrainingArguments, ModelConfig, RecipeArguments)
        for item in fields(kind)
        if item.name not in _KEPT
    ),
    check=check,
    work=build,
    rules=(at_least(LEAST_DPI, "pdf_dpi"),),
)
