"""Settings given as Python values mean what the command line means by its words."""

import json
from pathlib import Path

import pytest
import yaml

from hpt_trl.displays.words import TRIAL, with_trial, words_of
from hpt_trl.errors import UserError
from hpt_trl.recipes.resolving import read_recipe
from tests.helpers import stage_runs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", 7),
        ("learning_rate", 1e-6),
        ("use_peft", True),
        ("gradient_checkpointing", False),
        ("max_demonstration_length", None),
        ("seed", 0),
        ("output_dir", "outputs/a folder with spaces"),
        ("output_dir", "--outputs"),
        ("output_dir", "007"),
        ("lora_target_modules", ["q_proj", "v_proj"]),
        ("reward_weights", [1.0, 0.25]),
        ("reward_funcs", ["math_answer", "boxed_format"]),
        ("reward_weights", (0.0, 1.0)),
        ("dataset_options", {"size": 30, "terms": [2, 3], "test_size": 4}),
        ("column_mapping", {"prompt": "a: b", "completion": 'a "quoted" one'}),
    ],
    ids=str,
)
def test_values_are_read_as_a_recipe_reads_them(tmp_path, tiny_model_path, key, value):
    values = {**stage_runs.KEYS, "stage": "hpt", "model_name_or_path": tiny_model_path, "dataset_name": "arithmetic"}
    values |= {
        "reward_funcs": ["math_answer", "boxed_format"],
        "output_dir": str(tmp_path / "out"),
        "num_generations": 2,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    said = read_recipe(path, words_of({key: value})).raw[key]
    expected = list(value) if isinstance(value, tuple) else value
    assert (said == expected and type(said) is type(expected)) or said == str(value)
    # As the file itself would have it.
    path.write_text(yaml.safe_dump(values | {key: expected}))
    assert read_recipe(path).raw[key] == said


def test_a_path_and_a_function_of_a_module_have_names(tmp_path):
    words = words_of({"output_dir": tmp_path, "reward_funcs": [stage_runs.remainder]})
    assert words == [f"--output_dir={tmp_path}", "--reward_funcs", "tests.helpers.stage_runs.remainder"]
    assert words_of({"reward_funcs": []}) == ["--reward_funcs=[]"]
    assert words_of({"any": [{"a": 1}, "--b"]}) == [f"--any={json.dumps([{'a': 1}, '--b'])}"]


def test_a_function_of_the_notebook_is_refused_with_the_way_out():
    def brevity(completions, **columns):
        return [0.0 for _ in completions]

    with pytest.raises(UserError, match=r"reward_funcs: `brevity`.*%%writefile my_rewards.py.*`my_rewards.brevity`"):
        words_of({"reward_funcs": [brevity]})


def test_trial_settings_stand_above_those_of_the_notebook(tmp_path, monkeypatch):
    settings = {"max_steps": 14, "output_dir": "outputs/x"}
    monkeypatch.delenv(TRIAL, raising=False)
    assert with_trial("quickstart", settings) == settings
    path = tmp_path / "trial.yaml"
    path.write_text("quickstart: {max_steps: 1}\nother: {seed: 2}\n")
    monkeypatch.setenv(TRIAL, str(path))
    assert with_trial("quickstart", settings) == settings | {"max_steps": 1}
    assert with_trial("third", settings) == settings
    monkeypatch.setenv(TRIAL, str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"none.yaml"):
        with_trial("quickstart", settings)


def test_the_trial_file_of_the_tests_names_recipes_that_there_are():
    from hpt_trl.recipes.bundled import bundled_recipes, recipe_name

    named = yaml.safe_load((Path(stage_runs.__file__).parent / "notebooks.yaml").read_text())
    assert set(named) - {recipe_name(path) for path in bundled_recipes()} == {"my_recipe.yaml"}
