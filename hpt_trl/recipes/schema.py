"""The JSON Schema of recipes and pipelines, by which editors complete them: `hpt-trl schema`.

A recipe names it on its first line: `# yaml-language-server: $schema=...`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.recipes.bundled import recipes_folder
from hpt_trl.recipes.declared import Declared
from hpt_trl.recipes.joint import required_keys
from hpt_trl.recipes.pipeline_keys import ALIASES, FROM, PIPELINE, PIPELINE_KEYS, REFERRING, SET_BY_PIPELINE
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.recipes.values import declared_now
from hpt_trl.settings.schema import Schema, schema_of

_ENVIRONMENT = {
    "type": "object",
    "description": "Variables of the environment that are set before anything is imported.",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_REFERENCE = {"type": "string", "pattern": f"^{FROM}"}


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
            "required": ["stage", *(key for key in required_keys(one) if key not in ("reward_funcs", "dataset_name"))],
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


def _properties(declared: Declared, names: dict[str, str], definitions: dict[str, Schema]) -> dict[str, Schema]:
    """A stage's keys as references to definitions; keys that stages declare alike share one."""
    found = {}
    for name, key in declared.keys.items():
        if name == "stage":
            continue
        schema = schema_of(key, declared.rules.get(name))
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
    stage = {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "stage": {"enum": sorted(STAGE_MODULES)},
            "recipe": {"type": "string", "description": "Name or path of the recipe that the stage stands on."},
            "measure": {"type": "string", "description": "The measure by which the stage is compared."},
            "env": _ENVIRONMENT,
            **keys,
        },
        "additionalProperties": False,
    }
    kinds: dict[str, Schema] = {
        "stage": {"const": PIPELINE},
        "num_processes": {"type": "integer", "minimum": 1},
        "overwrite": {"type": "boolean"},
        "stages": {"type": "object", "additionalProperties": stage},
    }
    properties = {
        key: {"description": said, **kinds.get(key, {"type": "string"})} for key, said in PIPELINE_KEYS.items()
    }
    return {"properties": properties, "required": ["stage", "output_dir", "stages"], "additionalProperties": False}


_LIST_OF_REFERENCES = {"type": "array", "items": {"type": "string"}}
