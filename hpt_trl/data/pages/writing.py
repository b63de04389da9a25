"""A folder of made pages: images, the text layers that an index reads, and the questions.

FOLDER/images/table_1.png …   one image a page
FOLDER/pages.jsonl            {"name": "table_1", "image": "images/table_1.png", "text": …, …} …
FOLDER/questions.jsonl        a question for each page, its answer, page and box, and the split that it is of
FOLDER/settings.json          what the folder was made by
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock

from hpt_trl.data.pages.layouts import draw_page
from hpt_trl.data.pages.settings import PageSettings
from hpt_trl.data.pages.words import PLACES, places, year_of
from hpt_trl.errors import UserError
from hpt_trl.files import folder_fault, lines_of

PAGES_FILE, QUESTIONS_FILE, SETTINGS_FILE, IMAGES_FOLDER = "pages.jsonl", "questions.jsonl", "settings.json", "images"


class Question(TypedDict):
    """A line of `questions.jsonl`; `box` is in pixels of the page's image, `title` what search finds the page by."""

    split: str
    query: str
    answer: str
    reference_pages: list[str]
    box: list[int]
    title: str
    layout: str


def write_pages(folder: str | Path, settings: PageSettings) -> Path:
    """Draw pages and write them; a folder that was made by the same settings stays as it is.

    It is written under another name and renamed, so that a folder of the name is whole; any number of processes may
    ask at once.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else, is not whole, or cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_written(folder, settings):
                partial = folder.with_name(f".{folder.name}.partial")
                # The lock makes the name safe; what a killed process left there is thrown away.
                shutil.rmtree(partial, ignore_errors=True)
                _write(partial, settings)
                os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"the pages cannot be written into {folder}: {error}. Write another `folder`.") from error
    return folder


def read_questions(folder: str | Path) -> list[Question]:
    """The questions of a folder that `write_pages` wrote.

    Raises:
        UserError: a line is no JSON any more.
    """
    file = Path(folder) / QUESTIONS_FILE
    try:
        return [json.loads(line) for line in lines_of(file)]
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}; delete its folder, to have it written anew.") from error


def _is_written(folder: Path, settings: PageSettings) -> bool:
    """Whether the folder holds these pages, and not nothing.

    Raises:
        UserError: it holds something else, or a part of them.
    """
    if fault := folder_fault(folder):
        raise UserError(f"{folder} {fault}; write another `folder`.")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        made_by = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} holds something else than made pages; write another `folder`.") from None
    wanted = json.loads(json.dumps(settings.as_json()))
    given = made_by if isinstance(made_by, dict) else {}
    if given != wanted:
        other = [f"{key}: {given.get(key)} there, {wanted[key]} now" for key in wanted if given.get(key) != wanted[key]]
        raise UserError(
            f"{folder} holds pages that were made by other settings ({', '.join(other)}); write another `folder`, or "
            "the same settings, or delete it."
        )
    images = len(list((folder / IMAGES_FOLDER).glob("*.png")))
    if images != settings.size + settings.test_size or not (folder / QUESTIONS_FILE).is_file():
        raise UserError(
            f"{folder} lacks a part of its pages ({images} images of {settings.size + settings.test_size}); delete it, "
            "to have it written anew."
        )
    return True


def _write(folder: Path, settings: PageSettings) -> None:
    (folder / IMAGES_FOLDER).mkdir(parents=True)
    order = places(settings.seed)
    count: dict[str, int] = {}
    pages: list[dict[str, Any]] = []
    questions: list[Question] = []
    for number in range(settings.size + settings.test_size):
        layout = settings.layout_of(number)
        page = draw_page(
            layout,
            number,
            order[number % len(order)],
            year_of(number),
            first=number < len(PLACES),
            seed=settings.seed,
        )
        count[layout] = count.get(layout, 0) + 1
        # The image is named as a page of a document is: by the document and the number.
        name = f"{layout}_{count[layout]}"
        image = f"{IMAGES_FOLDER}/{name}.png"
        page.sheet.image.save(folder / image)
        text = page.sheet.text_layer(values=settings.text_layer == "full")
        pages.append({"name": name, "image": image, "text": text, "document": layout, "number": count[layout]})
        questions.append(
            {
                "split": "train" if number < settings.size else "test",
                "query": page.question,
                "answer": page.answer,
                "reference_pages": [name],
                "box": list(page.box),
                "title": page.title,
                "layout": layout,
            }
        )
    for file, lines in ((PAGES_FILE, pages), (QUESTIONS_FILE, questions)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(settings.as_json(), indent=2) + "\n", encoding="utf-8")
