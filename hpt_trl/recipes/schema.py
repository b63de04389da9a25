"""The JSON Schema of recipes and pipelines, by which editors complete them: `hpt-trl schema`.

A recipe names it on its first line: `# yaml-language-server: $schema=...`.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from hpt_trl.data.entries import SHARES, Entry
from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.recipes.bundled import recipes_folder
from hpt_trl.recipes.declared import Declared
from hpt_trl.recipes.joint import required_keys
from hpt_trl.recipes.pipeline_keys import (
    ALIASES,
    FROM,
    PIPELINE,
    PIPELINE_KEYS,
    REFERRING,
    SET_BY_PIPELINE,
    STAGE_NAME,
)
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.recipes.values import declared_now
from hpt_trl.settings.keys import Key
from hpt_trl.settings.schema import Schema, schema_of

# A value of the environment ends at a null character, its name at the sign as well.
_ENVIRONMENT: Schema = {
    "type": ["object", "null"],
    "description": "Variables of the environment that are set before anything is imported.",
    "propertyNames": {"pattern": "^[^=\\u0000]+$"},
    "additionalProperties": {"type": ["string", "number", "boolean"], "pattern": "^[^\\u0000]*$"},
}
_REFERENCE = {"type": "string", "pattern": f"^{FROM}"}
_LIST_OF_REFERENCES = {"type": "array", "items": {"type": "string"}}
# Of a key that has to be named.
_SOMETHING: Schema = {"not": {"enum": [None, "", []]}}


def recipe_schema(stages: Iterable[Declared] | None = None) -> Schema:
    """Returns the schema of every recipe, by its `stage`.

    Args:
        stages: what each stage declares; by default all of them, by the installed versions.
    """
    declared = [declared_now(name) for name in sorted(STAGE_MODULES)] if stages is None else list(stages)
    names: dict[str, str] = {}
    definitions: dict[str, Schema] = {}
    of_stage = {one.stage: _properties(one, names, definitions) for one in declared}
    for one in declared:
        definitions[f"stage {one.stage}"] = {
            "properties": {"stage": {"const": one.stage}, "env": _ENVIRONMENT, **of_stage[one.stage]},
            **_named(one),
            "additionalProperties": False,
        }
    definitions[f"stage {PIPELINE}"] = _pipeline(of_stage.values())
    all_stages = [*(one.stage for one in declared), PIPELINE]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of hpt-trl",
        "type": "object",
        "properties": {"stage": {"enum": all_stages, "description": "What the recipe does."}},
        "required": ["stage"],
        "allOf": [
            {
                "if": {"properties": {"stage": {"const": name}}, "required": ["stage"]},
                "then": {"$ref": f"#/definitions/stage {name}"},
            }
            for name in all_stages
        ],
        "definitions": definitions,
    }


def schema_file() -> Path:
    """Where the schema lies that the bundled recipes name."""
    return recipes_folder() / "schema.json"


def write_schema(file: Path | None) -> None:
    """Writes the schema of the installed versions to a file, or prints it where none is named.

    Raises:
        UserError: the file is something else than a schema, or cannot be written.
    """
    text = schema_text(recipe_schema())
    if file is None:
        print(text, end="")
        return
    head = "\n".join(text.split("\n")[:3])
    try:
        if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(head):
            raise UserError(f"{file} is there already and no schema of recipes, so it is not written over.")
        write_atomically(file, text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}.") from error


def schema_text(schema: Schema) -> str:
    """The schema as JSON, a line for each definition."""
    definitions = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in schema["definitions"].items()
    )
    head = json.dumps({key: value for key, value in schema.items() if key != "definitions"}, indent=1)
    return f'{head[:-2]},\n "definitions": {{\n{definitions}\n }}\n}}\n'


def _named(declared: Declared) -> Schema:
    """What every recipe of a stage has to name, and what can stand in place of what."""
    instead = {"dataset_name": "datasets", "reward_funcs": "reward_model_name_or_path"}
    needed = required_keys(declared)
    alone = [key for key in needed if key not in instead]
    choices = [{"anyOf": [_says(key), _says(instead[key])]} for key in needed if key in instead]
    told = [{"properties": {key: _SOMETHING}} for key in alone]
    return {"required": ["stage", *alone], "allOf": [*told, *choices]}


def _says(key: str) -> Schema:
    return {"required": [key], "properties": {key: _SOMETHING}}


def _entries() -> Schema:
    """The data sets of a mixture."""
    hints = get_type_hints(Entry)
    keys = {
        field.name: schema_of(
            Key(field.name, hints[field.name], None, ()), SHARES if field.name == "fraction" else None
        )
        for field in fields(Entry)
    }
    entry = {"type": "object", "properties": keys, "allOf": [_says("path")], "additionalProperties": False}
    return {"anyOf": [{"type": "array", "items": entry, "minItems": 1}, {"type": "null"}]}


def _properties(declared: Declared, names: dict[str, str], definitions: dict[str, Schema]) -> dict[str, Schema]:
    """A stage's keys as references to definitions; keys that stages declare alike share one."""
    found = {}
    for name, key in declared.keys.items():
        if name == "stage":
            continue
        schema = schema_of(key, declared.rules.get(name))
        if name == "datasets":
            schema |= _entries()
        text = f"{name} {json.dumps(schema, sort_keys=True)}"
        if text not in names:
            alike = sum(taken == name or taken.startswith(f"{name} (") for taken in definitions)
            names[text] = f"{name} ({alike + 1})" if alike else name
            definitions[names[text]] = schema
        found[name] = {"$ref": f"#/definitions/{names[text]}"}
    return found


def _pipeline(of_stages: Iterable[dict[str, Schema]]) -> Schema:
    """A pipeline: its own keys, and stages with the keys of any recipe, some of which may name another stage."""
    every: dict[str, list[Schema]] = {}
    for properties in of_stages:
        for name, schema in properties.items():
            if name not in SET_BY_PIPELINE and schema not in every.setdefault(name, []):
                every[name].append(schema)
    keys: dict[str, Any] = {}
    for name, schemas in every.items():
        taken = [*schemas, _REFERENCE, _LIST_OF_REFERENCES] if name in REFERRING else schemas
        keys[name] = taken[0] if len(taken) == 1 else {"anyOf": taken}
    keys |= {short: keys[long] for short, long in ALIASES.items()}
    recipe = {"description": "Name or path of the recipe that the stage stands on.", "type": ["string", "null"]}
    stage = {
        "type": "object",
        "properties": {
            "stage": {"enum": sorted(STAGE_MODULES)},
            "recipe": recipe,
            "measure": {"type": ["string", "null"], "description": "The measure by which the stage is compared."},
            "env": _ENVIRONMENT,
            **keys,
        },
        "anyOf": [_says("recipe"), _says("stage")],
        # Two names of one key.
        "allOf": [{"not": {"required": [short, long]}} for short, long in ALIASES.items()],
        "additionalProperties": False,
    }
    kinds: dict[str, Schema] = {
        "stage": {"const": PIPELINE},
        "output_dir": {"type": "string", "minLength": 1},
        "num_processes": {"type": ["integer", "null"], "minimum": 1},
        "overwrite": {"type": ["boolean", "null"]},
        "stages": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{STAGE_NAME}$"},
            "additionalProperties": stage,
        },
    }
    properties = {
        key: {"description": said, **kinds.get(key, {"type": ["string", "null"]})}
        for key, said in PIPELINE_KEYS.items()
    }
    return {"properties": properties, "required": ["stage", "output_dir", "stages"], "additionalProperties": False}
