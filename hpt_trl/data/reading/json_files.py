"""Files of JSON: one object a line, a list of objects, or an object that holds the list.

They are read here rather than by the builder of `datasets`, which makes dates of texts that look like some, gives
objects the keys of others as nulls, names no line and takes conversations for traces of agents.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hpt_trl.data.reading.soundness import Fault
from hpt_trl.data.reading.text import lines
from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json

# Names under which the list of rows stands, whatever is in it.
_USUAL = ("data", "examples", "rows", "train")
# Names of splits, as `datasets` takes them.
_SPLITS = frozenset(("train", "validation", "valid", "val", "dev", "eval", "test"))
# Columns beside which a list of objects is one of the row (`tools`, `images`).
_OF_ROWS = frozenset(("prompt", "completion", "text", "chosen", "rejected", "question", "instruction"))


def read_json(path: Path) -> tuple[Iterator[tuple[int, Any]], bool]:
    """Rows of a file with their numbers, and whether these are lines; else they count the rows of a list.

    In the place of a line that is no JSON stands its `Fault`.

    A list may be the file, or stand in an object beside what is no list of objects (`{"data": […]}`); an object
    that is itself a row, as it holds messages or a prompt, is the only one.

    Raises:
        UserError: a list that is no JSON, or an object with several lists.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    text = lines(path, newline="\n")
    first = next((line for line in text if line.strip()), "")
    begins = first.lstrip()[:1]
    # In a .jsonl file an object is a row.
    if begins == "[" or (begins == "{" and ".jsonl" not in path.name.lower() and ".ndjson" not in path.name.lower()):
        whole = "".join(chain([first], text))
        try:
            value = parsed_json(whole)
        except ValueError as error:
            # More than one object, or a broken line, which its reader names.
            if begins == "[":
                raise UserError(f"dataset_name: {path} is not valid JSON: {error}") from error
            value = None
        if isinstance(value, dict):
            listed = _listed(value, path)
            if listed is None and _by_columns(value):
                raise UserError(
                    f"dataset_name: {path} holds no list of rows, but columns or rows by name; write one object a line "
                    '(pandas: to_json("rows.jsonl", orient="records", lines=True)).'
                )
            value = [value] if listed is None else listed
        if value is not None:
            return iter(enumerate(value, 1)), False
    return _lines(path), True


def _listed(value: dict[str, Any], path: Path) -> list[Any] | None:
    found = {
        name: items
        for name, items in value.items()
        if isinstance(items, list)
        and (name in _USUAL or (items and isinstance(items[0], dict) and value.keys().isdisjoint(_OF_ROWS)))
    }
    firsts = [items[0] for items in found.values() if items and isinstance(items[0], dict)]
    if not found or any(not first.keys().isdisjoint({"role", "from"}) for first in firsts):
        return None
    if len(found) > 1 and found.keys() <= _SPLITS:
        names = ", ".join(f"{name}.jsonl" for name in found)
        raise UserError(
            f"dataset_name: {path} holds several splits ({', '.join(found)}). Write each into a file of its own in one "
            f"folder ({names}) and name the folder, or name the file that is trained on."
        )
    if len(found) > 1:
        raise UserError(
            f"dataset_name: {path} holds several lists of objects ({', '.join(list(found)[:8])}); write each into a "
            "file of its own."
        )
    return next(iter(found.values()))


def _by_columns(value: dict[str, Any]) -> bool:
    """Whether an object holds several columns, lists or objects by number, or several rows by their names."""
    inner = [*value.values()]
    if len(inner) < 2:
        return False
    if all(isinstance(one, list) and one and not isinstance(one[0], dict) for one in inner):
        return len({len(one) for one in inner}) == 1
    alike = all(isinstance(one, dict) and one and one.keys() == inner[0].keys() for one in inner)
    return alike and (value.keys().isdisjoint(_OF_ROWS) or all(key.isdecimal() for key in inner[0]))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines(path, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, parsed_json(line)
        except json.JSONDecodeError as error:
            said = f"not valid JSON ({error.msg}, character {error.pos + 1}): {line[:80].rstrip()}"
            yield number, Fault(f"{said}\nEvery line must be one JSON object.")
        # Nested too deep, or a whole number of more digits than Python reads.
        except ValueError as error:
            yield number, Fault(f"{error}.")
