"""Type hints of recipe keys as plain data, so that a key's type is known without the library that declares it.

A hint is the list of the types that it joins. A type is a word (`int`, `float`, `str`, `bool`, `null`, `mapping`), or a
mapping of one: `{list: [...]}` with the items' hint, `{enum: [...]}` and `{literal: [...]}` with the values, `{class:
name}` for anything else, which no recipe can write.
"""

import enum
import types
from typing import Any, Literal, Union, get_args, get_origin

from hpt_trl.settings.values import is_enum, is_kind, members

Plain = list[str | dict[str, Any]]

_WORDS: dict[Any, str] = {int: "int", float: "float", str: "str", bool: "bool", types.NoneType: "null"}
_TYPES = {word: kind for kind, word in _WORDS.items()} | {"mapping": dict}


def to_plain(hint: Any) -> Plain:
    """Returns a type hint as plain data."""
    return [_plain(kind) for kind in members(hint)]


def _plain(kind: Any) -> str | dict[str, Any]:
    if kind in _WORDS:
        return _WORDS[kind]
    if is_kind(kind, dict):
        return "mapping"
    if is_kind(kind, list):
        return {"list": to_plain(get_args(kind)[0]) if get_args(kind) else []}
    if is_enum(kind):
        return {"enum": [member.value for member in kind]}
    if get_origin(kind) is Literal:
        return {"literal": list(get_args(kind))}
    return {"class": kind.__name__}


def from_plain(plain: Plain) -> Any:
    """Returns a type hint that `hpt_trl.settings.values` reads as the one that `to_plain` was given."""
    return Union[tuple(_hint(kind) for kind in plain)]  # noqa: UP007


def _hint(plain: str | dict[str, Any]) -> Any:
    if isinstance(plain, str):
        return _TYPES[plain]
    ((form, values),) = plain.items()
    if form == "list":
        return list[from_plain(values)] if values else list  # type: ignore[misc]
    if form == "enum":
        return enum.Enum("Choice", {str(value): value for value in values}, type=str)
    if form == "literal":
        return Literal[tuple(values)]
    return type(values, (), {})
