"""The rewards `code_tests` and `all_code_tests`, by themselves and through the front door."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from hpt_trl.errors import UserError
from hpt_trl.methods.evaluate.stage import EvaluateArguments
from hpt_trl.planning.check import check
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.code import rewards as code_rewards
from hpt_trl.rewards.code.rewards import CodeReward, CodeSettings
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.loading import check_columns, check_rows, columns_read, load_rewards
from hpt_trl.rewards.sandbox import probing
from hpt_trl.rewards.sandbox.bubblewrap import Bubblewrap
from hpt_trl.rewards.sandbox.sandbox import Sandbox
from hpt_trl.rewards.success import reward_range
from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import KEYS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox but on Linux")

RIGHT, HALF, WRONG = (f"```python\ndef f(x):\n    return {value}\n```" for value in ("x + 1", "2", "0"))
DOCUMENT = Path(__file__).parents[3] / "docs" / "code.md"
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(code_rewards, "_last", {})
    monkeypatch.setattr(code_rewards, "_asked", set())


def call(reward, completions, **columns):
    given = {name: [value] * len(completions) for name, value in columns.items()}
    return reward(prompts=["Write f."] * len(completions), completions=completions, **given)


def test_the_share_of_the_tests_and_all_of_them():
    completions = [RIGHT, HALF, WRONG, "no program", "", [{"role": "assistant", "content": RIGHT}]]
    assert call(REWARDS["code_tests"], completions, tests=TESTS) == [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]
    assert call(REWARDS["all_code_tests"], completions, tests=TESTS) == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert guard(REWARDS["code_tests"]).__name__ == "code_tests"
    assert reward_range(guard(REWARDS["all_code_tests"])) == (0.0, 1.0)


def test_rows_of_several_layouts_in_one_batch():
    completions = [RIGHT, "print(int(input()) + 1)", "    return x + 1\n"]
    prompts = ["Write f.", "Read a number.", "def f(x):\n    '''Adds one.'''\n"]
    columns = {
        "tests": [TESTS, None, None],
        "public_tests": [None, {"input": ["1", "2"], "output": ["2", "0"]}, None],
        "test": [None, None, "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3"],
        "entry_point": [None, None, "f"],
    }
    assert REWARDS["code_tests"](prompts=prompts, completions=completions, **columns) == [1.0, 0.5, 1.0]
    messages = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}] for prompt in prompts]
    assert REWARDS["code_tests"](prompts=messages, completions=completions, **columns) == [1.0, 0.5, 1.0]


class Counted(Sandbox):
    programs = 0

    def _run(self, program, stop, kept=None):
        Counted.programs += 1
        return super()._run(program, stop, kept)


def test_what_is_asked_twice_is_run_once(monkeypatch):
    monkeypatch.setattr(code_rewards, "Sandbox", Counted)
    Counted.programs = 0
    share, whole = load_rewards(["code_tests", "all_code_tests"], RewardArguments())
    assert call(share, [RIGHT, HALF, RIGHT], tests=TESTS) == [1.0, 0.5, 1.0]
    assert Counted.programs == 2
    assert call(whole, [RIGHT, HALF, WRONG], tests=TESTS) == [1.0, 0.0, 0.0]
    assert Counted.programs == 3
    # Other tests of the same program are others.
    assert call(whole, [HALF], tests=TESTS[:1]) == [1.0]
    assert Counted.programs == 4


def test_the_limits_are_the_recipes():
    arguments = RewardArguments(code_timeout=1.0, code_memory=128, code_workers=1, code_batch_timeout=None)
    (reward,) = load_rewards(["code_tests"], arguments)
    assert reward.sandbox.limits.cpu_seconds == 1.0 and reward.sandbox.limits.memory_mib == 128
    loop = "```python\ndef f(x):\n    while x == 2: pass\n    return x + 1\n```"
    hungry = "```python\ndef f(x):\n    return x + 1 if bytearray(2**20 * (10 if x == 1 else 500)) else 0\n```"
    # What passed before the limit counts.
    assert call(reward, [loop, hungry], tests=TESTS) == [0.5, 0.5]
    assert REWARDS["code_tests"].settings == CodeSettings()


def test_a_batch_has_a_time_of_its_own(caplog):
    reward = CodeReward("code_tests", whole=False, settings=CodeSettings(timeout=1, batch_timeout=0.5, workers=1))
    loop = "```python\ndef f(x):\n    while True: pass\n```"
    assert call(reward, [loop, RIGHT, HALF], tests=TESTS) == [0.0, None, None]
    assert "2 of 3 programs were not run" in caplog.text and "code_batch_timeout" in caplog.text
    # To another reward of the recipe they are the same batch: what one did not run the other does not either.
    whole = CodeReward("all_code_tests", whole=True, settings=reward.settings)
    assert call(whole, [loop, RIGHT, HALF], tests=TESTS) == [0.0, None, None]
    # They are not remembered as wrong.
    assert call(reward, [RIGHT], tests=TESTS) == [1.0]


def test_columns_and_rows_are_checked_before():
    with pytest.raises(
        UserError, match=r"`code_tests` reads tests from one of the columns .*data.jsonl has only prompt"
    ):
        check_columns(["code_tests"], ["prompt"], "data.jsonl")
    check_columns(["code_tests", "all_code_tests"], ["prompt", "test_list"], "data.jsonl")
    rows = Dataset.from_list([{"prompt": "p", "tests": TESTS, "_row": 1}, {"prompt": "p", "tests": None, "_row": 2}])
    with pytest.raises(UserError, match=r"^data\.jsonl, row 2 has no tests"):
        check_rows([REWARDS["code_tests"]], rows, "data.jsonl")
    check_rows([REWARDS["code_tests"], REWARDS["exact_match"]], rows.select([0]), "data.jsonl")
    assert {"tests", "test", "entry_point"} <= (columns_read(load_rewards(["code_tests"], RewardArguments())) or set())
    with pytest.raises(UserError, match="row 7 has no tests"):
        call(REWARDS["code_tests"], [RIGHT], tests=None, test_list=[], _row=7)
    with pytest.raises(UserError, match="reads tests from one of the columns"):
        call(guard(REWARDS["code_tests"]), [RIGHT])


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe of a few rows with tests, and returns its path."""

    def write(rows: list[dict] | None = None, **changes) -> str:
        data = tmp_path / "rows.jsonl"
        # What a model that can do nothing writes goes on with the comment: one test of two passes.
        tested = [
            {
                "prompt": f"def f{n}(x):\n    return {n}\n    # ",
                "tests": [f"assert f{n}(1) == {n}", f"assert f{n}(2) == -1"],
            }
            for n in range(8)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows or tested))
        values = {**KEYS, "stage": "grpo", "dataset_name": str(data), "test_split_size": 2, "eval_samples": 2}
        values |= {"model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "out"), "max_steps": 2}
        values |= {"num_generations": 2, "max_completion_length": 8, "reward_funcs": ["code_tests"]}
        values |= {"conversational": False, "code_timeout": 5, "beta": 0.1} | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def test_a_recipe_trains_by_the_command_line(recipe, tmp_path):
    path = recipe(reward_funcs=["code_tests", "tests.helpers.stage_runs.remainder"])
    done = hpt_trl("run", path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < results["before"]["rewards"]["code_tests"] <= 0.5, results["before"]
    assert results["after"]["samples"] == 2
    shown = hpt_trl("check", path, "--overwrite", "true")
    assert shown.returncode == 0, shown.stderr
    assert "programs:" in shown.stdout and "5 s and 1024 MiB each" in shown.stdout, shown.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"prompt": f"{n}"} for n in range(8)]}, "reads tests from one of the columns"),
        (
            {"rows": [{"prompt": "a", "tests": ["assert f(1)"]}] * 7 + [{"prompt": "b", "tests": []}]},
            "line 8 has no tests",
        ),
        ({"code_timeout": 0}, "`code_timeout`: 0 .*above 0"),
        ({"code_memory": 1}, "`code_memory`: 1 .*64 or more"),
        ({"code_workers": 0}, "`code_workers`: 0 .*1 or more"),
        ({"reward_funcs": ["code_test"]}, "Did you mean `code_tests`"),
    ],
)
def test_mistakes_are_told_before_the_weights(recipe, changes, message):
    with pytest.raises(UserError, match=message):
        check(recipe(**changes), [])


@pytest.fixture
def no_sandbox(monkeypatch):
    monkeypatch.setattr(probing, "backends", lambda: [Bubblewrap("/bin/false")])
    monkeypatch.setattr(probing, "_found", {})


def test_without_a_sandbox_a_recipe_is_refused(recipe, no_sandbox, tmp_path):
    with pytest.raises(
        UserError, match=r"`reward_funcs`: `code_tests` runs programs .*no sandbox can be set up"
    ) as caught:
        check(recipe(), [])
    assert "apt-get install bubblewrap" in str(caught.value)
    assert not Path(tmp_path / "out").exists()


def test_the_key_is_heard(recipe, no_sandbox, caplog, capsys):
    check(recipe(run_untrusted_code_without_a_sandbox=True), [])
    assert "no sandbox, Python" in capsys.readouterr().out
    assert "WITHOUT a sandbox" in caplog.text


def test_settings_are_those_of_the_arguments():
    # A key that is not handed on would be without effect.
    names = {field.name for field in dataclasses.fields(RewardArguments)}
    assert {name for name in names if name.startswith(("code_", "run_"))} == {
        *("code_timeout", "code_memory", "code_batch_timeout", "code_workers"),
        "run_untrusted_code_without_a_sandbox",
    }
    assert len(dataclasses.fields(CodeSettings)) == 5


def test_the_documented_defaults_are_those_of_the_arguments():
    documented = dict(re.findall(r"^\| `(code_\w+|run_\w+)` \| ([^|]+) \|", DOCUMENT.read_text(), re.M))
    training, evaluate = (
        {field.name: field.default for field in dataclasses.fields(kind) if field.name in documented}
        for kind in (RewardArguments, EvaluateArguments)
    )
    assert set(documented) == {name for name in dir(RewardArguments) if name.startswith(("code_", "run_"))}
    for name in set(documented) - {"code_workers"}:
        first, _, other = documented[name].partition("; `evaluate`: ")
        assert yaml.safe_load(first) == training[name]
        assert yaml.safe_load(other or first) == evaluate[name]
