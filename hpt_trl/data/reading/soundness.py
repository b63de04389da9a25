"""Whether a row can be stored: tables hold UTF-8 text, and objects within objects to a depth."""

from typing import Any

# Arrow's schema and datasets' features go to twice as many.
DEEPEST = 30


class Fault(str):
    """What is wrong with a row that cannot be read, in its place."""


def row_fault(row: dict[Any, Any]) -> str | None:
    """What no table can hold of a row; None if nothing is."""
    for key, value in row.items():
        if "\0" in key:
            return f"the column {key!r:.60} has a null byte in its name; rename it."
        if fault := _fault(key) or _fault(value):
            return f"`{key.encode(errors='replace').decode():.60}` {fault}"
    return None


def decoded_fault(column: str, value: Any) -> str | None:
    """What no column of objects can hold of a value that was text in the file; None if nothing is."""
    if fault := row_fault({column: value}):
        return fault
    return wide_fault(column, value)


def wide_fault(column: str, value: Any) -> str | None:
    """What tells of an integer that no table can hold; None without one."""
    inner = [value]
    while inner:
        one = inner.pop()
        # Also the reader of `datasets.Json` knows integers of 64 bits.
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            return f"`{column:.60}` holds {one!s:.30}, which has more than 64 bits; write it as a text."
        inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return None


def _fault(value: Any) -> str | None:
    level, inner = 0, [value]
    while inner:
        if level > DEEPEST:
            return f"is nested deeper than {DEEPEST} levels; write it as JSON text, or drop it."
        level += 1
        texts = [one for one in inner if isinstance(one, str)]
        texts += [key for one in inner if isinstance(one, dict) for key in one]
        if any(not _is_whole(text) for text in texts):
            return "holds half a character (of a pair such as \\ud83d\\ude00); write both halves, or drop it."
        inner = [
            item
            for one in inner
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
