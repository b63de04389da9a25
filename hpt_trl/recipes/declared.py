"""What the stages declare: their keys with types, defaults and ranges, and what a recipe of each must and may name.

The keys are fields of TRL's and Transformers' configs, which take seconds to import. So they are also written to
keys.json (`make keys`), with the versions that they are of: a mistake in a recipe is told from the file, by the same
functions. Where anything of it is not the file's (another release, a changed source), the file says nothing and the
stages themselves are asked.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpt_trl.recipes.packages import installed
from hpt_trl.settings.hints import from_plain
from hpt_trl.settings.keys import Key, keys_of
from hpt_trl.settings.ranges import Rule

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Stage

KEYS_FILE = Path(__file__).with_name("keys.json")
# Packages whose classes declare keys, or decide what these may say.
LIBRARIES = ("trl", "transformers", "accelerate", "peft")

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Declared:
    """What a stage declares, as far as it decides about the keys and values of a recipe.

    Attributes:
        stage: its name.
        keys: every key that it knows, by name.
        left_out: keys that its classes declare and it does not know.
        rules: key -> range.
        trains: whether it trains a model.
        makes_model: whether it makes its own model, so that a recipe names none.
        works: whether it has neither model nor rows.
        rewards: whether a recipe has to name rewards, may, or must not.
    """

    stage: str
    keys: dict[str, Key]
    left_out: frozenset[str]
    rules: dict[str, Rule]
    trains: bool
    makes_model: bool
    works: bool
    rewards: Literal["required", "optional", "none"]


def declared_by(stage: "Stage") -> Declared:
    """Returns what a stage declares, from its classes."""
    from trl import ModelConfig

    from hpt_trl.recipes.ranges import rules_for

    keys = keys_of(stage.argument_class, stage.config_class, ModelConfig)
    return Declared(
        stage=stage.name,
        keys={name: key for name, key in keys.items() if name not in stage.left_out},
        left_out=stage.left_out,
        rules=rules_for(stage),
        trains=stage.trains,
        makes_model=stage.make_config is not None,
        works=stage.work is not None,
        rewards=stage.rewards,
    )


def declared_in_file(stage: str) -> Declared | None:
    """Returns what a stage declares by keys.json; None where that is of other versions, or knows no such stage."""
    return _declared(KEYS_FILE, stage)


def declared_somewhere() -> Declared | None:
    """Returns what any stage declares by keys.json, for a recipe whose stage is not known; its `stage` is empty.

    A key that stages declare differently takes what one of them takes. Nothing is required of such a recipe but what
    every stage asks for. None where keys.json is of other versions.
    """
    return _declared_somewhere(KEYS_FILE)


@cache
def _declared(file: Path, stage: str) -> Declared | None:
    written = _written(file)
    if written is None or stage not in written["stages"]:
        return None
    keys, rules = {}, {}
    for name, variants in written["keys"].items():
        for variant in variants:
            if stage not in variant["stages"]:
                continue
            hint, choices = from_plain(variant["type"]), tuple(variant.get("choices", ()))
            keys[name] = Key(name, hint, variant["default"], choices, written["help"].get(name, ""))
            if "range" in variant:
                rules[name] = _rule(name, variant["range"])
    facts = written["stages"][stage]
    return Declared(stage, keys, rules=rules, **{**facts, "left_out": frozenset(facts["left_out"])})


@cache
def _declared_somewhere(file: Path) -> Declared | None:
    written = _written(file)
    if written is None:
        return None
    keys, rules = {}, {}
    for name, variants in written["keys"].items():
        types = [kind for variant in variants for kind in variant["type"]]
        choices = [variant.get("choices", ()) for variant in variants]
        taken = tuple(dict.fromkeys(choice for some in choices for choice in some)) if all(choices) else ()
        hint = from_plain([kind for at, kind in enumerate(types) if kind not in types[:at]])
        keys[name] = Key(name, hint, variants[0]["default"], taken)
        if (joined := _joined_range([variant.get("range") for variant in variants])) is not None:
            rules[name] = _rule(name, joined)
    return Declared("", keys, frozenset(), rules, trains=False, makes_model=False, works=False, rewards="optional")


def rewards_in_file() -> list[str] | None:
    """Returns the names of the bundled rewards by keys.json; None where that is of other versions."""
    written = _written(KEYS_FILE)
    return None if written is None else written["rewards"]


@cache
def _written(file: Path) -> dict[str, Any] | None:
    """What keys.json says; None where it is of other versions. Asked several times of each recipe of a pipeline."""
    if not file.is_file():
        return None
    written = json.loads(file.read_text(encoding="utf-8"))
    is_current = written["versions"] == versions() and written["sources"] == digests(written["sources"])
    return written if is_current else None


def versions() -> dict[str, str | None]:
    """Returns the installed versions of the packages that declare keys."""
    return {name: installed(name) for name in LIBRARIES}


def digests(names: Iterable[str]) -> dict[str, str]:
    """Returns a digest of each of these files of the package; an empty one where it is not there."""
    found = {}
    for name in names:
        path = PACKAGE / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def _joined_range(ranges: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What any of several ranges allows, where that is one range: equal ones, or lists of names.

    Whether null is allowed is left open.
    """
    ranges = [
        None if one is None else {part: value for part, value in one.items() if part != "needed"} for one in ranges
    ]
    first = ranges[0]
    if first is None or ranges.count(first) == len(ranges):
        return first
    if not all(one is not None and set(one) == {"allowed", "names"} for one in ranges):
        return None
    names = list(dict.fromkeys(name for one in ranges if one is not None for name in one["names"]))
    return {"allowed": ", ".join(names), "names": names}


def _rule(key: str, written: dict[str, Any]) -> Rule:
    parts: dict[str, Any] = {
        part: tuple(value) if isinstance(value, list) else value for part, value in written.items()
    }
    return Rule((key,), **parts)
