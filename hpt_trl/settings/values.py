"""Turns what a recipe or the command line says into a value of the type that a config field declares.

`argparse`, on which TrlParser rests, checks only text: a YAML `max_steps: 2.5` or `reward_funcs: accuracy` would reach
the trainer as it stands. Here both ways in are held to the same types.
"""

import difflib
import enum
import math
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from hpt_trl.settings.file import parse_yaml_text

# What YAML 1.1 and HfArgumentParser take for a boolean.
WORDS_FOR_TRUE = ("true", "yes", "on", "y", "t")
WORDS_FOR_FALSE = ("false", "no", "off", "n", "f")


# Letters of what is given that are compared: time grows with their square.
_COMPARED = 200


class NotAllowed(ValueError):
    """A value that a field does not take; the text says what it takes, `names` holds the texts it takes."""

    def __init__(self, allowed: str, names: Sequence[str] = ()):
        super().__init__(allowed)
        self.names = names


def nearest(given: str, names: Iterable[str]) -> str | None:
    """Returns the name nearest to what is given, whatever its case; None where none is near."""
    folded = {_folded(name): name for name in names}
    near = difflib.get_close_matches(_folded(given[:_COMPARED]), list(folded), n=1)
    return folded[near[0]] if near else None


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Returns " Did you mean `x`?" for the name nearest to what is given, or nothing where none is near."""
    near = nearest(given, names)
    return f" Did you mean `{near}`?" if near else ""


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def members(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a field takes: the parts of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_enum(kind: Any) -> bool:
    """Whether a type is an enumeration."""
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def is_kind(kind: Any, container: type) -> bool:
    """Whether a type is a container, with or without the type of its items."""
    return kind is container or get_origin(kind) is container


def describe(hint: Any, choices: tuple[str, ...] = ()) -> str:
    """Returns the words for what a field takes, e.g. "a whole number, or null"."""
    if choices:
        words = [f"one of {', '.join(choices)}"]
    else:
        words = []
        for kind in members(hint):
            if is_enum(kind):
                return f"one of {', '.join(member.value for member in kind)}"
            if kind is bool:
                words.append("true or false")
            elif kind is int:
                words.append("a whole number")
            elif kind is float:
                words.append("a number")
            elif kind is str:
                words.append("text")
            elif is_kind(kind, list):
                item = describe(get_args(kind)[0]) if get_args(kind) else "values"
                words.append(f"a list ({item})")
            elif is_kind(kind, dict):
                words.append("a mapping")
    if not words:
        return "nothing: this key cannot be set in a recipe"
    if types.NoneType in members(hint):
        words.append("null")
    return ", or ".join(words)


def _as_number(kind: type, value: Any, text: str) -> int | float | None:
    """Returns the number, or None where it is not one. Text counts: a quoted `"1e-6"` is what TrlParser takes too."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value if isinstance(value, (int, float)) else text)
    except (ValueError, OverflowError):
        return None
    if kind is int:
        if not (math.isfinite(number) and number.is_integer()):
            return None
        # Not by way of a float where it can be helped: a large seed keeps its last digits.
        return value if isinstance(value, int) else int(number)
    return number if math.isfinite(number) else None


def convert(hint: Any, value: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Returns a value of a field's type.

    Args:
        hint: the field's resolved type.
        value: what YAML made of it.
        text: how it is written, where it is a scalar: a field of text keeps `007` and `1e5` as they stand.
        choices: the only texts allowed, where the field has some.

    Raises:
        NotAllowed: with what the field takes.
    """
    kinds = members(hint)
    if value is None:
        if types.NoneType in kinds:
            return None
        raise NotAllowed(f"{describe(hint, choices)} (leave the key out for its default)")
    if isinstance(value, dict):
        if any(is_kind(kind, dict) for kind in kinds):
            return value
        raise NotAllowed(describe(hint, choices))
    lists = [kind for kind in kinds if is_kind(kind, list)]
    if isinstance(value, list):
        if not lists:
            raise NotAllowed(describe(hint, choices))
        item_hint = get_args(lists[0])[0] if get_args(lists[0]) else str
        try:
            return [convert(item_hint, item, str(item)) for item in value]
        except NotAllowed as problem:
            raise NotAllowed(describe(hint, choices)) from problem
    if choices:
        if text in choices:
            return text
        raise NotAllowed(describe(hint, choices), choices)
    if bool in kinds:
        if isinstance(value, bool):
            return value
        if text.lower() in WORDS_FOR_TRUE + WORDS_FOR_FALSE:
            return text.lower() in WORDS_FOR_TRUE
    for kind in (int, float):
        if kind in kinds and (number := _as_number(kind, value, text)) is not None:
            return number
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if is_enum(kind):
            names = [member.value for member in kind]
            if text in names:
                return text
            raise NotAllowed(describe(hint), names)
    if str in kinds:
        return text
    if lists:
        # One name where a list is due, as on the command line; argparse would make a list of its letters.
        return convert(hint, [value if not isinstance(value, str) else text], text)
    raise NotAllowed(describe(hint, choices))


def read_words(hint: Any, words: list[str]) -> tuple[Any, str]:
    """Reads the words that follow a key on the command line.

    A mapping or a list may be written as JSON or YAML (`{size: 200}`, `[a, b]`), a list also as several words, and a
    boolean may stand alone for true.

    Returns:
        The value as YAML would have read it, and its text; both go to `convert`.

    Raises:
        NotAllowed: no word, or more than one where the field takes one.
    """
    kinds = members(hint)
    takes_list = any(is_kind(kind, list) for kind in kinds)
    takes_mapping = any(is_kind(kind, dict) for kind in kinds)
    if not words:
        if bool in kinds:
            return True, "true"
        raise NotAllowed(f"{describe(hint)}, after the key")
    text = words[0]
    if takes_list and (len(words) > 1 or str not in kinds):
        if len(words) == 1 and text.startswith("["):
            return parse_yaml_text(text), text
        return None if words == ["null"] else list(words), text
    if len(words) > 1:
        raise NotAllowed(f"{describe(hint)}, as one word (quote a text with spaces)")
    if takes_mapping and text.startswith("{"):
        return parse_yaml_text(text), text
    if text in ("null", "~"):
        return None, text
    if str in kinds or any(is_enum(kind) for kind in kinds):
        return text, text
    return parse_yaml_text(text), text
