"""Paths and modules that a recipe's file names are found from the file's folder first."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.pipeline.fingerprint import contents_of
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.pipeline.run import _write_recipe
from hpt_trl.recipes import anchoring
from hpt_trl.recipes.resolving import resolve_recipe
from hpt_trl.runs.output_folder import resolved_recipe
from hpt_trl.runs.preparation import prepare, prepare_recipe
from hpt_trl.settings.imported import imported, see_folders
from tests.helpers.processes import ENVIRONMENT, hpt_trl

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
REWARD = "def brevity(completions, **columns):\n    return [{} + place for place, _ in enumerate(completions)]\n"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Another working directory than the recipe's, no folder of an earlier recipe, no note told before."""
    monkeypatch.setenv("HPT_TRL_RECIPE_FOLDERS", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    anchoring.tell_once.cache_clear()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield
    for name in ("own_rewards", "own_package", "own_package.inner"):
        sys.modules.pop(name, None)


@pytest.fixture
def beside(tmp_path, tiny_model_path):
    """A folder with a model, rows, a template, a reward and a recipe that names them; returns the recipe."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copytree(tiny_model_path, folder / "models" / "tiny")
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "own_rewards.py").write_text(REWARD.format(0.25))
    keys = {
        "stage": "grpo",
        "model_name_or_path": "models/tiny",
        "dataset_name": "rows.jsonl",
        "reward_funcs": ["own_rewards.brevity"],
        "output_dir": "out",
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "max_steps": 1,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_all_that_lies_beside_the_recipe_is_found(beside, tmp_path):
    prepared = prepare(str(beside), [])
    folder = tmp_path / "mine"
    assert prepared.model == str(folder / "models" / "tiny")
    assert len(prepared.splits.train) == 8 and prepared.recipe.arguments.dataset_name == str(folder / "rows.jsonl")
    assert prepared.rewards[0](completions=["a"], prompts=["b"], completion_ids=[[1]]) == [0.25]
    # What is written counts from the working directory.
    assert prepared.recipe.config.output_dir == "out"


def test_a_run_from_another_folder_writes_a_recipe_that_runs_from_anywhere(beside, tmp_path, monkeypatch, capfd):
    assert main(["run", "../mine/mine.yaml"]) == 0
    stored = yaml.safe_load((tmp_path / "elsewhere" / "out" / "recipe.yaml").read_text())
    assert stored["model_name_or_path"] == str(tmp_path / "mine" / "models" / "tiny")
    words = ["check", "out/recipe.yaml", "--output_dir", "again"]
    done = hpt_trl(*words)
    assert done.returncode == 0, done.stderr


def test_from_the_recipes_own_folder_nothing_changes(beside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "mine")
    raw = prepare("mine.yaml", []).recipe.raw
    assert (raw["model_name_or_path"], raw["dataset_name"]) == ("models/tiny", "rows.jsonl")


def test_the_command_line_counts_from_the_working_directory(beside, tmp_path, capfd):
    assert main(["check", str(beside), "--dataset_name", "rows.jsonl"]) == 2
    said = capfd.readouterr().err
    assert f"there is no file rows.jsonl (looked in {tmp_path / 'elsewhere'})" in said


def test_where_both_exist_the_recipes_is_taken_and_this_is_told_once(beside, tmp_path, capfd):
    (tmp_path / "elsewhere" / "rows.jsonl").write_text('{"prompt": "other", "answer": "1"}\n')
    prepared = prepare(str(beside), [])
    assert len(prepared.splits.train) == 8
    said = capfd.readouterr().err
    assert said.count("which lies beside the recipe, and not") == 1
    assert str(tmp_path / "mine" / "rows.jsonl") in said and str(tmp_path / "elsewhere" / "rows.jsonl") in said


def test_what_is_only_in_the_working_directory_is_found_there(beside, tmp_path, capfd):
    (tmp_path / "mine" / "rows.jsonl").rename(tmp_path / "elsewhere" / "rows.jsonl")
    prepared = prepare(str(beside), [])
    assert prepared.recipe.arguments.dataset_name == "rows.jsonl" and not capfd.readouterr().err.count(
        "beside the recipe"
    )


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("model_name_or_path", "org/model", True),
        ("reward_model_name_or_path", ["org/model", "org/none"], True),
        ("chat_template_path", "chat.jinja", True),
        ("dataset_name", "parts/*.jsonl", True),
        ("dataset_name", ["parts/a.jsonl"], True),
        ("dataset_name", "pages", False),
        ("dataset_name", "arithmetic", False),
        ("model_name_or_path", "smollm2-135m", False),
        ("model_name_or_path", "org/none", False),
        ("output_dir", "org", False),
        ("run_name", "org", False),
        ("dataset_name", "a\0b", False),
        ("against", "pages", True),
        ("against", "demonstrations", False),
        ("deepspeed", {"a": 1}, False),
    ],
)
def test_what_is_a_path_and_what_is_none(key, value, found, tmp_path):
    for folder in ("org/model", "parts", "pages", "arithmetic", "smollm2-135m", "demonstrations"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("chat.jinja", "parts/a.jsonl"):
        (tmp_path / file).write_text("x")
    anchored = anchoring.anchored_value(key, value, tmp_path)
    first, given = (anchored[0], value[0]) if isinstance(value, list) else (anchored, value)
    assert first == (str(tmp_path / given) if found else given)
    assert anchoring.anchored_value(key, value, None) == value


def test_the_data_sets_of_a_mixture_count_from_the_recipe(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    entries = [{"path": "a.jsonl", "fraction": 0.5}, {"path": "arithmetic"}, {"path": "none.jsonl"}, {}, "odd"]
    found = anchoring.anchored_value("datasets", entries, tmp_path)
    assert found == [{"path": str(tmp_path / "a.jsonl"), "fraction": 0.5}, *entries[1:]]
    assert anchoring.anchored_value("datasets", "a.jsonl", tmp_path) == "a.jsonl"


def test_a_file_beside_a_recipe_shadows_no_library(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "own_rewards.py").write_text("import json\n" + REWARD.format("json.loads('3')"))
    code = (
        f"from hpt_trl.settings.imported import imported, see_folders; see_folders([{str(tmp_path)!r}]);"
        "print(imported('own_rewards.brevity', 'k')(['a'])); import json.decoder, tomllib; print(json.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[0] == "[3]" and str(tmp_path) not in done.stdout, done.stderr


def test_two_recipes_have_modules_of_one_name(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name / "own_package").mkdir(parents=True)
        (tmp_path / name / "own_package" / "__init__.py").write_text("")
        (tmp_path / name / "own_package" / "inner.py").write_text(REWARD.format(value))
    for name, value in (("one", 1), ("two", 2), ("one", 1)):
        see_folders([tmp_path / name])
        assert imported("own_package.inner.brevity", "reward_funcs")(["a"]) == [value]


def test_each_stage_of_a_pipeline_has_the_modules_of_its_own_recipe(beside, tmp_path, capfd):
    other = shutil.copytree(tmp_path / "mine", tmp_path / "other")
    (other / "own_rewards.py").write_text(REWARD.format(0.75))
    stages = {"one": {"recipe": "mine/mine.yaml"}, "two": {"recipe": "other/mine.yaml"}}
    chain = {"stage": "pipeline", "output_dir": str(tmp_path / "all"), "stages": stages}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain))
    plan = read_plan(tmp_path / "chain.yaml", [])
    (tmp_path / "all").mkdir()
    for name, value in (("two", 0.75), ("one", 0.25)):
        stage = next(stage for stage in plan.stages if stage.name == name)
        rewards = [*prepare_recipe(resolve_recipe(plan.sources(stage, {}))).rewards]
        # As the stage's own process reads it.
        rewards += prepare(str(_write_recipe(plan, stage)), []).rewards
        for reward in rewards:
            assert reward(completions=["a"], prompts=["b"], completion_ids=[[1]]) == [value]
        inputs = [name for name in contents_of(stage, {}) if name.endswith("own_rewards.py")]
        assert inputs == [f"the files of {tmp_path / ('mine' if name == 'one' else 'other') / 'own_rewards.py'}"]


def test_an_evaluation_has_its_own_modules_and_its_recipe_keeps_its_own(beside, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_rewards.py").write_text(REWARD.format(0.75))
    measured = {"stage": "evaluate", "dataset_name": str(beside.parent / "rows.jsonl")}
    measured |= {"reward_funcs": ["own_rewards.brevity"], "max_completion_length": 4, "output_dir": "out"}
    (other / "measure.yaml").write_text(yaml.safe_dump(measured))
    with beside.open("a") as file:
        file.write(f"evaluations: [{other / 'measure.yaml'}]\n")
    prepared = prepare(str(beside), [])
    for one, value in ((prepared, 0.25), (prepared.evaluations["measure"], 0.75)):
        assert one.rewards[0](completions=["a"], prompts=["b"], completion_ids=[[1]]) == [value]
    assert imported("own_rewards.brevity", "k")(["a"]) == [0.25]
    assert str(tmp_path / "mine") in resolved_recipe(prepared.recipe)


def test_keys_of_a_pipeline_count_from_the_file_that_sets_them(beside, tmp_path):
    chain = tmp_path / "chain"
    chain.mkdir()
    (chain / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2"}\n')
    (chain / "chain.yaml").write_text(
        yaml.safe_dump(
            {
                "stage": "pipeline",
                "output_dir": "all",
                "stages": {
                    "one": {"recipe": "../mine/mine.yaml"},
                    "two": {"recipe": "../mine/mine.yaml", "dataset_name": "rows.jsonl", "model": "from:one"},
                },
            }
        )
    )
    one, two = read_plan(chain / "chain.yaml", ["--two.chat_template_path", "chat.jinja"]).stages
    assert one.values["dataset_name"] == str(beside.parent / "rows.jsonl")
    assert two.values["dataset_name"] == str(chain / "rows.jsonl")
    assert one.values["model_name_or_path"] == str(beside.parent / "models" / "tiny")
    assert two.words["chat_template_path"] == ["chat.jinja"] and two.values["model_name_or_path"] == "from:one"
    assert main(["check", str(chain / "chain.yaml")]) == 0
