"""What a key of a recipe takes, as JSON Schema (draft 7): for editors, which complete recipes and mark mistakes by it.

It says of a value what `hpt_trl.settings.values` and `ranges` say, as far as a schema can: of a number that is written
as a text it knows the form alone, neither its range nor whether it is whole.
"""

import types
from typing import Any, Literal, get_args, get_origin

from hpt_trl.settings.keys import Key
from hpt_trl.settings.ranges import Rule
from hpt_trl.settings.values import WORDS_FOR_FALSE, WORDS_FOR_TRUE, is_enum, is_kind, members

Schema = dict[str, Any]

# As `float` reads a text, without infinity and NaN.
_NUMBER = r"^\s*[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?\s*$"
_INTEGER = r"^\s*[-+]?[0-9][0-9_]*(\.0*)?([eE]\+?[0-9]+)?\s*$"


def schema_of(key: Key, rule: Rule | None = None) -> Schema:
    """Returns the schema of a key's values.

    Args:
        key: with its help as the description. rule: the range of its values.
    """
    kinds = members(key.hint)
    found: list[Schema] = []
    if key.choices:
        found.append(_names(key.choices, key.name))
    elif rule is not None and rule.names:
        if any(is_kind(kind, list) for kind in kinds):
            found.append({"type": "array", "items": _names(rule.names, key.name), "minItems": 1})
        found.append(_names(rule.names, key.name))
    else:
        # Beside an enumeration no other text is taken.
        closed = any(is_enum(kind) for kind in kinds)
        for kind in kinds:
            found += (
                [] if closed and (kind is str or is_kind(kind, list)) else _kind(kind, rule, takes_text=key.takes_text)
            )
    if rule is not None and rule.also:
        found.append({"enum": list(rule.also)})
    if types.NoneType in kinds and not (rule is not None and rule.needed):
        found.append({"type": "null"})
    unique = [schema for place, schema in enumerate(found) if schema not in found[:place]]
    described = {"description": key.help} if key.help else {}
    return described | (unique[0] if len(unique) == 1 else {"anyOf": unique})


def _names(names: tuple[str, ...], key: str) -> Schema:
    # TRL's other names for `group` and `none`.
    return {"enum": [*names, *((True, False, "true", "false") if key == "scale_rewards" else ())]}


def _kind(kind: Any, rule: Rule | None, *, takes_text: bool) -> list[Schema]:
    """The schemas of one type of a union."""
    if kind is bool:
        words = "|".join("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in _WORDS)
        return [{"type": "boolean"}, {"type": "string", "pattern": f"^({words})$"}]
    if kind in (int, float):
        bounds = _bounds(rule)
        numbers = [{"type": "integer" if kind is int else "number", **bound} for bound in bounds]
        return [*numbers, {"type": "string", "pattern": _INTEGER if kind is int else _NUMBER}]
    if kind is str:
        # A field with a range takes a text only where the range names it.
        return [{"type": ["string", "number", "boolean"]}] if takes_text and (rule is None or rule.fields) else []
    if is_kind(kind, dict):
        named = {"propertyNames": {"enum": list(rule.fields)}} if rule is not None and rule.fields else {}
        return [{"type": "object", **named}]
    if is_kind(kind, list):
        # A range is that of the items.
        items = [
            one for item in _items(kind) for one in _kind(item, rule if item in (int, float) else None, takes_text=True)
        ]
        nothing = [{"type": "null"}] if types.NoneType in _items(kind) else []
        item: Schema = {"anyOf": [*items, *nothing]}
        # One item may stand for a list of one, but not a mapping.
        array = {"type": "array", "items": item} | ({} if rule is None else {"minItems": 1})
        return [array, *(one for one in items if one.get("type") != "object")]
    if get_origin(kind) is Literal:
        return [{"enum": list(get_args(kind))}]
    if is_enum(kind):
        return [{"enum": [member.value for member in kind]}]
    return []


_WORDS = (*WORDS_FOR_TRUE, *WORDS_FOR_FALSE)


def _items(kind: Any) -> tuple[Any, ...]:
    """The types of a list's items; a list of unknown ones takes texts."""
    return members(get_args(kind)[0]) if get_args(kind) else (str,)


def _bounds(rule: Rule | None) -> list[Schema]:
    """The bounds of a range, as alternatives."""
    if rule is None:
        return [{}]
    parts = {
        "minimum": rule.least,
        "exclusiveMinimum": rule.above,
        "maximum": rule.most,
        "exclusiveMaximum": rule.below,
    }
    bounds = {name: bound for name, bound in parts.items() if bound is not None}
    if not rule.whole:
        return [bounds]
    return [bounds | {"exclusiveMaximum": 1}, bounds | {"minimum": 1, "multipleOf": 1}]
