"""Runs that report to wandb, offline, and to trackio's files, in processes of their own: both read their place once."""

import json
import os
import subprocess
import sys

import pytest

from hpt_trl.settings.masking import MASK
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import results
from tests.helpers.trackers import read_wandb

SECRET = "hf_thisIsNoTokenOfAnybody0123456789"
# Two that no form gives away: by the key's name alone, and as the login of an address.
NAMED, LOGIN = "plainWordsThatNobodyKnows", "someLoginOfAnybody"
HPT = {
    "reward_funcs": ["tests.helpers.stage_runs.remainder"],
    "num_generations": 4,
    "max_completion_length": 8,
    "success_threshold": 5.0,
    "eval_samples": 3,
    "report_to": ["wandb", "trackio"],
    "hub_token": SECRET,
    "model_init_kwargs": {"token": NAMED},
    "judge_url": f"http://{LOGIN}:{SECRET}@127.0.0.1:9/v1",
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


# Several runs in one process, as in a notebook; each with variables of its own.
_RUNS = """
import json, os, sys
from hpt_trl.cli import main
for words, variables in json.loads(sys.argv[1]):
    os.environ |= variables
    print("exit code", main(["run", *words]), flush=True)
"""


def run_all(variables: dict[str, str], *runs: tuple[list[str], dict[str, str]]) -> tuple[list[int], str]:
    """Exit codes of runs, and what was printed as errors."""
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _RUNS, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    codes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("exit code")]
    return codes, done.stderr


def read_trackio(project: str, environment: dict[str, str]) -> list[dict]:
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


def test_runs_that_go_on_and_others_beside_them(recipe, tmp_path, offline):
    path, out = recipe("hpt", **HPT), tmp_path / "hpt"
    # Stopped after its checkpoint of step 2, by a budget of steps.
    first = [path, "--max_steps", "2"]
    goes_on = [path, "--resume_from_checkpoint", "true"]
    another = [path, "--output_dir", str(tmp_path / "new"), "--max_steps", "1", "--log_completions"]
    failing = recipe("sft", report_to="wandb", learning_rate=1e30, logging_steps=10, run_name="mine")
    of_its_own = {"WANDB_PROJECT": "elsewhere", "WANDB_RUN_ID": "chosen"}
    codes, said = run_all(offline, (first, {}), (goes_on, {}), (another, {}), ([failing], of_its_own))
    assert codes == [0, 0, 0, 2], said[-3000:]
    found, every = results(out), read_wandb(tmp_path)
    assert [one["name"] for one in every] == ["hpt", "hpt", "hpt", "mine"]
    assert [one["project"] for one in every] == ["hpt-trl"] * 3 + ["elsewhere"]
    assert [one["exit_code"] for one in every] == [0, 0, 0, 1]
    # A run that goes on is the same run there; a new one of the same recipe is another; wandb's variables stand above.
    assert every[0]["id"] == every[1]["id"] != every[2]["id"] and every[3]["id"] == "chosen"
    begun, run, new, _ = every

    # The whole recipe beside the trainer's arguments and the model's config, and no secret in any file.
    config = begun["config"]
    assert config["recipe/stage"] == "hpt" and config["recipe/dataset_name"] == str(tmp_path / "sums.jsonl")
    assert config["rewards/remainder"] == 1.0 and config["batch/rows_per_step"] == 4 and config["data/rows"] == 18
    assert config["model/use_peft"] is False and config["success_threshold"] == 5.0 and config["hidden_size"] == 32
    assert "recipe/hub_token" not in config and config["recipe/model_init_kwargs.token"] == MASK
    assert config["recipe/judge_url"] == f"http://{MASK}@127.0.0.1:9/v1"
    written = [file for folder in ("wandb", "trackio") for file in (tmp_path / folder).rglob("*") if file.is_file()]
    assert len(written) > 3
    for secret in (SECRET, NAMED, LOGIN):
        assert not [file for file in written if secret.encode() in file.read_bytes()], secret
    # Held-out figures before and after, those before of the first attempt.
    for side in ("before", "after"):
        assert run["summary"][f"{side}/accuracy"] == pytest.approx(found[side]["accuracy"])
    assert run["summary"]["change/reward"] == pytest.approx(found["after"]["reward"] - found["before"]["reward"])
    # The trainer's log, once, by transformers' callback.
    steps = [[line["train/global_step"] for line in one["history"] if "train/loss" in line] for one in (begun, run)]
    assert steps == [[1, 2], [3, 4]]
    # Samples.
    assert [len(table["data"]) for one in (begun, run) for table in one["tables"]["samples"]] == [4] * 4
    columns = begun["tables"]["samples"][0]["columns"]
    assert columns == ["mode", "prompt", "completion", "remainder", "demonstration", "advantage"]
    assert {row[0] for table in begun["tables"]["samples"] for row in table["data"]} <= {"SFT", "RL", "dropped"}
    assert len(run["tables"]["held_out_samples"][0]["data"]) == 3
    assert len(begun["tables"]["training_rows"]) == 1 and "training_rows" not in run["tables"]
    # TRL's own table stands for ours, with what became of each rollout.
    assert "samples" not in new["tables"]
    assert {"mode", "demonstration", "remainder"} <= set(new["tables"]["completions"][0]["columns"])

    tracked, beside = read_trackio("hpt-trl", os.environ | offline)
    assert (tracked["name"], beside["name"]) == ("hpt", "hpt-2") and tracked["config"]["recipe/stage"] == "hpt"
    assert [line["train/global_step"] for line in tracked["logs"] if "train/loss" in line] == [1, 2, 3, 4]
    figures = [line for line in tracked["logs"] if "after/accuracy" in line][-1]
    assert figures["after/accuracy"] == pytest.approx(found["after"]["accuracy"])
    tables = [line["samples"] for line in tracked["logs"] if "samples" in line]
    assert len(tables) == 4 and all({"mode", "demonstration", "remainder"} <= set(row) for row in tables[0]["_value"])
    assert not any("samples" in line for line in beside["logs"]) and any("completions" in x for x in beside["logs"])
    assert json.loads((out / "trackers.json").read_text())["wandb"] == {"id": run["id"]}
