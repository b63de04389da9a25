"""Lists and objects that a file stores as text."""

import ast
from typing import Any

from hpt_trl.files import parsed_json


def decoded(value: Any) -> Any:
    """A value that was stored as text, JSON's or Python's, decoded; all others as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parsed_json(value)
    except ValueError:
        pass
    try:
        # As pandas writes lists into .csv files.
        found = ast.literal_eval(value.strip())
        return found if _is_json(found) else value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_json, value.values()))
    return all(map(_is_json, value)) if isinstance(value, list) else isinstance(value, str | bool | int | float | None)
