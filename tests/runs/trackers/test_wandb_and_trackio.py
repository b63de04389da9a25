"""Runs that report to wandb, offline, and to trackio's files, in processes of their own: both read their place once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import results
from tests.helpers.trackers import read_wandb

SECRET = "hf_thisIsNoTokenOfAnybody0123456789"
HPT = {
    "reward_funcs": ["tests.helpers.stage_runs.remainder"],
    "num_generations": 4,
    "max_completion_length": 8,
    "success_threshold": 5.0,
    "eval_samples": 3,
    "report_to": ["wandb", "trackio"],
    "hub_token": SECRET,
    "model_init_kwargs": {"token": SECRET},
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "constant",
}

_READER = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
found = []
for run in trackio.Api().runs(sys.argv[1]):
    logs = SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)
    alerts = [alert["title"] for alert in run.alerts()]
    found.append({"name": run.name, "config": run.config, "logs": logs, "alerts": alerts})
print(json.dumps(found, default=str))
"""


def read_trackio(folder: Path, project: str, environment: dict[str, str]) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-c", _READER, project], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """Variables under which nobody is asked for a login, and nothing is written outside of the test's folder."""
    (tmp_path / "home").mkdir()
    variables = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    return variables | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


def test_a_run_and_what_goes_on_with_it(recipe, tmp_path, offline):
    path, out = recipe("hpt", **HPT), tmp_path / "hpt"
    done = hpt_trl("run", path, **offline)
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(out)
    (run,) = read_wandb(tmp_path)
    assert (run["name"], run["project"], run["exit_code"]) == ("hpt", "hpt-trl", 0)
    # The whole recipe beside the trainer's arguments and the model's config, and no secret in any file.
    config = run["config"]
    assert config["recipe/stage"] == "hpt" and config["recipe/dataset_name"] == str(tmp_path / "sums.jsonl")
    assert config["rewards/remainder"] == 1.0 and config["batch/rows_per_step"] == 4 and config["data/rows"] == 18
    assert config["model/use_peft"] is False and config["success_threshold"] == 5.0 and config["hidden_size"] == 32
    assert config["recipe/hub_token"] == config["recipe/model_init_kwargs.token"] == "***"
    written = [path for path in tmp_path.glob("wandb/**/*") if path.is_file()]
    written += [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(SECRET.encode() in path.read_bytes() for path in written)
    # Held-out figures before and after.
    for side in ("before", "after"):
        assert run["summary"][f"{side}/accuracy"] == pytest.approx(found[side]["accuracy"])
    assert run["summary"]["change/reward"] == pytest.approx(found["after"]["reward"] - found["before"]["reward"])
    # The trainer's log, once, by transformers' callback.
    assert [line["train/global_step"] for line in run["history"] if "train/loss" in line] == [1, 2, 3, 4]
    # Samples.
    assert [len(table["data"]) for table in run["tables"]["samples"]] == [4] * 4
    columns = run["tables"]["samples"][0]["columns"]
    assert columns == ["mode", "prompt", "completion", "remainder", "demonstration", "advantage"]
    assert {row[0] for table in run["tables"]["samples"] for row in table["data"]} <= {"SFT", "RL", "dropped"}
    assert len(run["tables"]["held_out_samples"][0]["data"]) == 3 and len(run["tables"]["training_rows"]) == 1
    environment = os.environ | offline
    (tracked,) = read_trackio(tmp_path, "hpt-trl", environment)
    assert tracked["name"] == "hpt" and tracked["config"]["recipe/stage"] == "hpt"
    assert [line["train/global_step"] for line in tracked["logs"] if "train/loss" in line] == [1, 2, 3, 4]
    (figures,) = [line for line in tracked["logs"] if "after/accuracy" in line]
    assert figures["after/accuracy"] == pytest.approx(found["after"]["accuracy"])
    tables = [line["samples"] for line in tracked["logs"] if "samples" in line]
    assert len(tables) == 4 and all({"mode", "demonstration", "remainder"} <= set(row) for row in tables[0]["_value"])

    # A run that goes on is the same run there; a new one of the same recipe is another.
    (out / "results.json").unlink()
    again = ["--max_steps", "5", "--report_to", "wandb", "trackio"]
    done = hpt_trl("run", path, *again, "--resume_from_checkpoint", "true", **offline)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = read_wandb(tmp_path)
    assert second["id"] == first["id"] and second["name"] == "hpt"
    assert [line["train/global_step"] for line in second["history"] if "train/loss" in line] == [5]
    (tracked,) = read_trackio(tmp_path, "hpt-trl", environment)
    assert [line["train/global_step"] for line in tracked["logs"] if "train/loss" in line] == [1, 2, 3, 4, 5]
    words = ["--output_dir", str(tmp_path / "new"), "--max_steps", "1", "--log_completions"]
    done = hpt_trl("run", path, *words, **offline)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [one["name"] for one in read_trackio(tmp_path, "hpt-trl", environment)] == ["hpt", "hpt-2"]
    last = read_wandb(tmp_path)[-1]
    assert last["id"] != first["id"]
    # TRL's own table then stands for ours, with what became of each rollout.
    assert "samples" not in last["tables"]
    assert {"mode", "demonstration", "remainder"} <= set(last["tables"]["completions"][0]["columns"])


def test_wandb_of_a_run_that_fails_and_by_its_own_variables(recipe, tmp_path, offline):
    path = recipe("sft", report_to="wandb", learning_rate=1e30, logging_steps=10, run_name="mine")
    done = hpt_trl("run", path, **offline, WANDB_PROJECT="elsewhere", WANDB_RUN_ID="chosen")
    assert done.returncode == 2 and "diverged" in done.stderr and "Traceback" not in done.stderr
    (run,) = read_wandb(tmp_path)
    assert (run["id"], run["name"], run["project"], run["exit_code"]) == ("chosen", "mine", "elsewhere", 1)
