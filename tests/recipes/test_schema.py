"""The schema by which editors complete recipes: it takes what a recipe takes, and refuses what a recipe refuses."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.data.entries import read_entries
from hpt_trl.errors import UserError
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.recipes.bundled import FOR_EDITORS, bundled_recipes
from hpt_trl.recipes.declared import declared_in_file, declared_somewhere
from hpt_trl.recipes.early import check_early
from hpt_trl.recipes.schema import recipe_schema, schema_file, schema_text
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.recipes.values import read_key
from hpt_trl.settings.file import RecipeFile, Sources, read_recipe_file
from tests.recipes.test_foreign import FOREIGN, written

VALUES = (
    *(None, True, False, 0, 1, 3, -1, 2.5, 0.5, 1e-6, 2**40, "", "x", "true", "No", "3", "1e-3", "-1", "1.5", "auto"),
    *("group", "none", "adamw_torch", "steps", [], ["x"], [1, "x"], [None], [[1]], {"a": 1}, {}, "{a: 1}", "0", "1_0"),
)

NUMBERS = [value for value in VALUES if isinstance(value, str) and value[-1:].isdigit()]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(schema_file().read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_file_is_of_the_installed_versions():
    assert schema_file().read_text(encoding="utf-8") == schema_text(recipe_schema()), "run `make keys`"


@pytest.mark.parametrize("recipe", bundled_recipes(), ids=lambda path: path.stem)
def test_every_bundled_recipe_names_it_and_keeps_to_it(recipe, validator):
    first = recipe.read_text().partition("\n")[0]
    assert first.startswith(FOR_EDITORS)
    assert os.path.normpath(recipe.parent / first.removeprefix(FOR_EDITORS)) == str(schema_file())
    assert [error.message for error in validator.iter_errors(read_recipe_file(recipe).values)] == []


def taken(stage: str, key: str, value: object) -> bool:
    """Whether a recipe takes a value; its text is what YAML reads as the value."""
    text = value if isinstance(value, str) else json.dumps(value)
    texts = {} if isinstance(value, list | dict) else {key: text}
    sources = Sources(RecipeFile(Path("x.yaml"), {key: value}, {key: 1}, texts), {})
    try:
        _, read = read_key(key, sources, declared_in_file(stage))
        if key == "datasets" and read is not None:
            read_entries(read)
        return True
    except UserError:
        return False


def test_it_says_of_every_value_what_a_recipe_says(validator):
    definitions = validator.schema["definitions"]
    # Stages that declare a key alike share its definition.
    first = {}
    for stage in sorted(STAGE_MODULES):
        for key, schema in definitions[f"stage {stage}"]["properties"].items():
            if "$ref" in schema:
                first.setdefault(schema["$ref"].removeprefix("#/definitions/"), (stage, key))
    assert len(first) > 350 and {key for _, key in first.values()} == set(declared_somewhere().keys) - {"stage"}
    refused = 0
    for name, (stage, key) in first.items():
        of_key = jsonschema.Draft7Validator(definitions[name])
        for value in VALUES:
            fits, takes = of_key.is_valid(value), taken(stage, key, value)
            # Of a number that is written as a text, a schema knows the form alone.
            assert fits == takes or (fits and value in NUMBERS and key in declared_in_file(stage).rules), (key, value)
            refused += not fits
    assert refused > 5000


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"stage": "hpd"}, "hpd"),
        ({"max_steps": "many"}, "many"),
        ({"num_generations": 0}, "0"),
        ({"output_dir": None}, "output_dir"),
        ({"optim": "adamw_torc"}, "adamw_torc"),
        ({"env": ["a"]}, "a"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_marked(changes, key, validator):
    values = read_recipe_file(next(path for path in bundled_recipes() if path.stem == "quickstart")).values
    values = {name: value for name, value in (values | changes).items() if value is not None}
    errors = [error.message for error in validator.iter_errors(values)]
    assert len(errors) == 1 and key in errors[0]


def told(values: dict, folder: Path) -> list[str]:
    """What is said of a recipe or a pipeline without torch."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        if values["stage"] == "pipeline":
            read_plan(path, [])
        else:
            check_early(str(path), [])
        return []
    except UserError as error:
        return [str(one) for one in error.every]


_RECIPE = {"stage": "sft", "output_dir": "out", "model_name_or_path": "a/b", "dataset_name": "arithmetic"}
_MIXTURE = {key: value for key, value in _RECIPE.items() if key != "dataset_name"}
_CHAIN = {"stage": "pipeline", "output_dir": "out", "stages": {"a": {"recipe": "sft/stories-tiny"}}}


@pytest.mark.parametrize(
    "values",
    [
        _RECIPE | {"env": None},
        _RECIPE | {"env": {"A": 1, "B": ""}},
        _MIXTURE | {"datasets": [{"path": "arithmetic", "fraction": 0.5}, {"path": ["arithmetic"], "fraction": "0.5"}]},
        _RECIPE | {"datasets": None},
        _CHAIN | {"overwrite": None, "num_processes": None, "accelerate_config": None},
        _CHAIN | {"stages": {"a-1": {"recipe": "sft/stories-tiny", "measure": None}}},
        _CHAIN | {"stages": {"a": {"stage": "sft", "recipe": None, "model": "a/b", "dataset_name": "arithmetic"}}},
    ],
    ids=str,
)
def test_what_is_taken_is_not_marked(values, validator, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert told(values, tmp_path) == [] and [error.message for error in validator.iter_errors(values)] == []


@pytest.mark.parametrize(
    "values",
    [
        _MIXTURE,
        _RECIPE | {"dataset_name": None},
        _RECIPE | {"output_dir": ""},
        _MIXTURE | {"datasets": None},
        _MIXTURE | {"datasets": []},
        _MIXTURE | {"datasets": [{"name": "x"}]},
        _MIXTURE | {"datasets": [{"path": "arithmetic", "weight": 1}]},
        _MIXTURE | {"datasets": [{"path": "arithmetic", "fraction": 0}]},
        _MIXTURE | {"datasets": ["arithmetic"]},
        _RECIPE | {"env": {"A=": 1}},
        _RECIPE | {"env": {"A": None}},
        _RECIPE | {"env": {"A": "\0"}},
        _RECIPE | {"stage": "grpo", "reward_funcs": []},
        _RECIPE | {"stage": "grpo"},
        _CHAIN | {"stages": {}},
        _CHAIN | {"output_dir": ""},
        _CHAIN | {"stages": {"a b": {"recipe": "sft/stories-tiny"}}},
        _CHAIN | {"stages": {"a": {"max_steps": 1}}},
        _CHAIN | {"stages": {"a": {"recipe": None}}},
        _CHAIN | {"stages": {"a": {"recipe": "sft/stories-tiny", "model": "a/b", "model_name_or_path": "a/b"}}},
    ],
    ids=str,
)
def test_what_is_refused_is_marked(values, validator, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert told(values, tmp_path) and list(validator.iter_errors(values))


def test_a_pipeline_s_stages_are_completed_too(validator):
    def errors(**stage):
        chain = {"stage": "pipeline", "output_dir": "out", "stages": {"one": stage}}
        return [error.message for error in validator.iter_errors(chain)]

    assert errors(recipe="sft/stories-tiny", model="from:pretrain", max_steps=3, measure="held_out.loss") == []
    assert errors(recipe="sft/stories-tiny", max_stepz=3) and errors(recipe="x", output_dir="y") and errors()
    assert errors(recipe="sft/stories-tiny", max_steps="from:one")


@pytest.mark.parametrize("name", list(FOREIGN)[:3])
def test_recipes_of_others_are_marked(name, validator, tmp_path):
    _, values = written(tmp_path, name, tmp_path / "out")
    assert list(validator.iter_errors(values)) and list(validator.iter_errors(values | {"stage": "sft"}))


def test_the_command_writes_it_and_writes_over_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(schema_file().read_text())
    for _ in range(2):
        assert main(["schema", "mine.json"]) == 0
    assert (tmp_path / "mine.json").read_text() == schema_file().read_text()
    (tmp_path / "mine.yaml").write_text("stage: sft\n")
    assert main(["schema", "mine.yaml"]) == 2 and main(["schema", "no/where.json"]) == 2
    said = capsys.readouterr().err
    assert "not written over" in said and "no/where.json cannot be written" in said
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text()) == {"stage": "sft"}


def test_every_key_has_its_help():
    definitions = json.loads(schema_file().read_text())["definitions"]
    described = [name for name, schema in definitions.items() if schema.get("description")]
    assert len(described) > 0.95 * len([name for name in definitions if not name.startswith("stage ")])
