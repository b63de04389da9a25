"""Output folders of real runs, made once; a test that changes one takes a copy."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.pipeline.record import Record, StageRecord
from tests.helpers.stage_runs import KEYS, sums

# In a key that stays in the recipe, and in the one that is taken out of it.
PLANTED, TAKEN = "hf_plantedPlanted0123456789", "hf_plantedAndTaken0123456789"


def solved(completion_ids, **columns) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


def length(completion_ids, **columns) -> list[float]:
    return [len(ids) / 8 for ids in completion_ids]


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_model_path) -> Path:
    """A folder with runs: `one` and `two` by GRPO, `sft`, and `measured`, an evaluation; read only."""
    root = tmp_path_factory.mktemp("made")
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(24)))
    here = "tests.reports.conftest"
    common = {"dtype": "float32", "dataset_name": str(root / "sums.jsonl"), "model_name_or_path": tiny_model_path}
    secret = {"hub_token": TAKEN, "model_init_kwargs": {"token": PLANTED}}
    training = {**KEYS, **common, "test_split_size": 6, **secret}
    drawing = {"num_generations": 2, "max_completion_length": 8, "reward_funcs": [f"{here}.solved", f"{here}.length"]}
    evaluated = {"eval_samples": 6, "eval_temperature": 1.0, "eval_max_new_tokens": 8}
    measuring = {"measures": ["pass@k"], "n": 2, "k": [1, 2], "temperature": 1.0, "max_completion_length": 8}
    recipes = {
        "one": {"stage": "grpo", **training, **drawing, **evaluated},
        "two": {"stage": "grpo", **training, **drawing, **evaluated, "learning_rate": 1e-4},
        "sft": {"stage": "sft", **training, "eval_strategy": "steps", "eval_steps": 2},
        "measured": {"stage": "evaluate", **common, **measuring, "reward_funcs": [f"{here}.solved"], "use_cpu": True},
    }
    with pytest.MonkeyPatch.context() as environment:
        # A run puts the token of its recipe there.
        for variable in ("HF_TOKEN", "HPT_TRL_TOKEN_BY_COMMAND"):
            environment.setenv(variable, "")
        for name, values in recipes.items():
            path = root / f"{name}.yaml"
            path.write_text(yaml.safe_dump(values | {"output_dir": str(root / name)}))
            assert main(["run", str(path)]) == 0
    return root


@pytest.fixture
def copy(made, tmp_path):
    """Copies one of the runs and returns its folder."""

    def take(name: str, to: str | None = None) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / (to or name)))

    return take


@pytest.fixture
def chain(made, tmp_path) -> Path:
    """A pipeline of three stages, the last of which has not begun."""
    return make_chain(made, tmp_path / "chain")


def make_chain(made: Path, folder: Path) -> Path:
    """Makes a pipeline's folder of copies of runs, with its record as a pipeline writes it."""
    folder.mkdir()
    for name in ("sft", "one"):
        shutil.copytree(made / name, folder / name)
    start = "`model_name_or_path`"
    stages = {
        "sft": StageRecord("sft", [], None, {start: "tiny"}, finished=True, seconds=12.0),
        "one": StageRecord("grpo", ["sft"], None, {start: "from:sft"}, finished=True, seconds=75.0),
    }
    Record(folder, "recipes/my-chain.yaml", ["sft", "one", "later"], stages).write()
    return folder
