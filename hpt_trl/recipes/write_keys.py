"""`make keys`: writes keys.json, what the stages declare, for `hpt_trl.recipes.declared` to read.

Its parts: the versions and sources that it is of; the stages; the bundled rewards' names; and each key with its
variants, since stages may declare a key of one name differently. A variant has the stages' names, a type
(`hpt_trl.settings.hints`), a default, the only texts that are allowed where there are such, and a range
(`hpt_trl.settings.ranges`) where it has one. The help of a key is that of one stage.

From it the JSON Schema of recipes is made and written beside them (`hpt_trl.recipes.schema`).
"""

import dataclasses
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpt_trl.recipes.declared import KEYS_FILE, PACKAGE, Declared, declared_by, digests, versions
from hpt_trl.recipes.recipe import Stage
from hpt_trl.recipes.schema import recipe_schema, schema_file, schema_text
from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.settings.hints import to_plain
from hpt_trl.settings.keys import Key
from hpt_trl.settings.ranges import Rule


def keys_as_written() -> str:
    """Returns the text that keys.json has to have for the installed versions."""
    stages = [load_stage(name) for name in sorted(STAGE_MODULES)]
    declared = [declared_by(stage) for stage in stages]
    sources = {path.relative_to(PACKAGE).as_posix() for stage in stages for path in _sources(stage)}
    written = {
        "versions": versions(),
        "sources": digests(sorted(sources)),
        "stages": {one.stage: _facts(one) for one in declared},
        "rewards": list(REWARDS),
        "keys": _keys(declared),
        "help": dict(
            sorted({name: key.help for one in declared for name, key in one.keys.items() if key.help}.items())
        ),
    }
    return "{\n" + ",\n".join(_lines(written)) + "\n}\n"


def _sources(stage: Stage) -> Iterator[Path]:
    """The files of the package in which a stage's keys and ranges stand."""
    yield PACKAGE / "recipes" / "stages.py"
    yield PACKAGE / "rewards" / "functions.py"
    yield from PACKAGE.rglob("ranges.py")
    yield PACKAGE.parent / (STAGE_MODULES[stage.name].replace(".", "/") + ".py")
    for kind in (*stage.argument_class.__mro__, *stage.config_class.__mro__):
        if kind.__module__.startswith(f"{PACKAGE.name}."):
            yield Path(inspect.getfile(kind)).resolve()


def _facts(declared: Declared) -> dict[str, Any]:
    names = ("trains", "makes_model", "works", "rewards")
    return {name: getattr(declared, name) for name in names} | {"left_out": sorted(declared.left_out)}


def _keys(declared: list[Declared]) -> dict[str, list[dict[str, Any]]]:
    keys: dict[str, list[dict[str, Any]]] = {}
    for one in declared:
        for name, key in one.keys.items():
            facts, variants = _key(key, one.rules.get(name)), keys.setdefault(name, [])
            same = next((variant for variant in variants if variant == facts | {"stages": variant["stages"]}), None)
            if same is None:
                variants.append(facts | {"stages": [one.stage]})
            else:
                same["stages"].append(one.stage)
    return dict(sorted(keys.items()))


def _key(key: Key, rule: Rule | None) -> dict[str, Any]:
    # An enumeration's member is written by its value.
    facts: dict[str, Any] = {"type": to_plain(key.hint), "default": getattr(key.default, "value", key.default)}
    if key.choices:
        facts["choices"] = list(key.choices)
    if rule is not None:
        unset = {field.name: field.default for field in dataclasses.fields(Rule)}
        facts["range"] = {name: part for name, part in vars(rule).items() if name != "keys" and part != unset[name]}
    return facts


def _lines(written: dict[str, Any]) -> Iterator[str]:
    """JSON with a line for each entry, for reading and for what differs between versions."""
    for name, part in written.items():
        if isinstance(part, list):
            yield f" {json.dumps(name)}: {json.dumps(part)}"
            continue
        entries = (f"  {json.dumps(entry)}: {json.dumps(value, ensure_ascii=False)}" for entry, value in part.items())
        yield f" {json.dumps(name)}: {{\n" + ",\n".join(entries) + "\n }"


if __name__ == "__main__":
    KEYS_FILE.write_text(keys_as_written(), encoding="utf-8")
    schema_file().write_text(schema_text(recipe_schema()), encoding="utf-8")
    print(f"{KEYS_FILE}: the keys of {len(STAGE_MODULES)} stages")
