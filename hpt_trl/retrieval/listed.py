"""`pages.jsonl`: what is known of page images that lie beside it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of, parsed_json
from hpt_trl.retrieval.pages import refuse_special
from hpt_trl.settings.values import did_you_mean

LIST_FILE = "pages.jsonl"
_KINDS = {"image": str, "text": str, "document": str, "number": int, "name": str}


@dataclass(frozen=True)
class Listed:
    """A line of `pages.jsonl`; what it does not say is None.

    Attributes:
        path: the image.
        where: file and line, for messages.
    """

    path: Path
    where: str
    text: str | None = None
    document: str | None = None
    number: int | None = None
    name: str | None = None


def read_list(file: Path) -> list[Listed]:
    """Reads a `pages.jsonl`.

    Raises:
        UserError: a line is no JSON object, lacks `image`, or holds an unknown key, a value of another type or an image
            that is no file.
    """
    refuse_special(file, str(file))
    try:
        lines = lines_of(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    return [_listed(line, file, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _listed(line: str, file: Path, where: str) -> Listed:
    try:
        row: Any = parsed_json(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} holds {type(row).__name__}; allowed: an object, e.g. {{"image": "a_1.png"}}.')
    for key in row:
        if key not in _KINDS:
            raise UserError(f"{where}, `{key}`: unknown.{did_you_mean(key, _KINDS)} Known: {', '.join(_KINDS)}.")
    for key, kind in _KINDS.items():
        value = row.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(
                f"{where}, `{key}`: {value!r} is not allowed; allowed: {'text' if kind is str else 'a whole number'}."
            )
    if not row.get("image"):
        raise UserError(f"{where}: `image` is missing; write the path of the page's image, from this file's folder.")
    if row.get("name") == "":
        raise UserError(f"{where}, `name` is empty; leave it out, or write the page's name.")
    known = {key: row.get(key) for key in _KINDS if key != "image"}
    path = Path(os.path.normpath(file.parent / row["image"]))
    refuse_special(path, f"{where}, `image`: {path}")
    return Listed(path=path, where=where, **known)
