"""`--launcher ray` on a real Ray of this machine, two workers: the same weights, a killed worker, mistakes, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.launching.accelerate import chosen_profile
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.launching.ray_train import accelerate_environment
from hpt_trl.runs import runner
from hpt_trl.runs.checkpoints import complete_checkpoints
from tests.helpers.processes import ROOT

pytest.importorskip("ray")
PATIENCE = 240
# A step takes its time, so that a worker can be killed between two checkpoints.
KEYS = {
    "stage": "sft",
    "dtype": "float32",
    "dataset_name": "arithmetic",
    "dataset_options": {"size": 64, "test_size": 4},
    "global_batch_size": 16,
    "per_device_train_batch_size": 1,
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "eval_samples": 0,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "seed": 3,
}
CLUSTER = """
import ray, sys
context = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 1024**2,
                   _node_ip_address="127.0.0.1", log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model_path) -> Path:
    path = tmp_path_factory.mktemp("ray") / "tiny.yaml"
    # Relative to the working directory, which a worker has to share.
    path.write_text(yaml.safe_dump(KEYS | {"model_name_or_path": tiny_model_path, "output_dir": "out"}))
    return path


@pytest.fixture(scope="module")
def one_process(recipe) -> Path:
    """Output folder of the same run in one process."""
    folder = recipe.parent / "one"
    runner.run(str(recipe), ["--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster that is not the run's own: its process, and its address for RAY_ADDRESS."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as ray:
        yield ray, ray.stdout.readline().strip()
        ray.stdin.close()


def start(recipe: Path, *words: str, address: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hpt_trl", "run", str(recipe), "--launcher", "ray", *words]
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    # In seconds; Ray's own is 2.
    environment |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=recipe.parent, env=environment, **pipes)


def finish(run: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        out, errors = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    return run.returncode, out, errors


def train_workers(ray: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(ray.pid).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(process)
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found


def wait_for(condition, run: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert run is None or run.poll() is None, run.communicate()
        time.sleep(0.005)


def steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines]


def assert_same_weights(folder: Path, other: Path) -> None:
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    # Sharded weights are saved with the head that is tied to the embedding.
    assert weights.keys() - expected.keys() <= {"lm_head.weight"}
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) < 1e-6


def test_two_workers_shard_and_train_what_one_process_trains(recipe, one_process):
    words = ["--num_workers", "2", "--accelerate", "fsdp2", "--output_dir", "sharded"]
    code, out, errors = finish(start(recipe, *words, address="local"))
    assert code == 0, errors
    assert "Ray (started on this machine): 2 workers, one CPU core each." in out and "step 6/6  " in out
    folder = recipe.parent / "sharded"
    results = json.loads((folder / "results.json").read_text())
    assert results["hardware"]["processes"] == 2 and results["steps"] == 6
    # Only FSDP writes that file: the profile has reached the workers.
    assert (folder / "checkpoint-6" / "pytorch_model_fsdp.bin").is_file()
    assert_same_weights(folder, one_process)


def test_a_run_outlives_the_death_of_a_worker(recipe, one_process, cluster):
    ray, address = cluster
    folder = recipe.parent / "out"
    run = start(recipe, "--num_workers", "2", address=address)
    wait_for(lambda: complete_checkpoints(folder), run)
    train_workers(ray)[-1].kill()
    code, out, errors = finish(run)
    assert code == 0, errors
    assert " died (its process was killed, or its node was lost)\nStarting again: failure 1 of 3 allowed." in errors
    assert "Going on from out/checkpoint-" in out
    results = json.loads((folder / "results.json").read_text())
    assert results["hardware"]["processes"] == 2 and results["steps"] == 6
    # No step is logged twice, none is missing.
    assert steps(folder) == steps(one_process)
    assert_same_weights(folder, one_process)
    assert not train_workers(ray) and not list(recipe.parent.glob(".hpt-trl-ray-*"))


def test_only_what_the_run_has_made_itself_is_gone_on_from(one_process, tmp_path):
    from hpt_trl.launching.ray_worker import Task, left_in, words_of_attempt

    folder, words = tmp_path / "out", ["--overwrite", "true"]
    shutil.copytree(one_process, folder)
    task = Task("tiny.yaml", words, "", "", str(folder), left_in(str(folder)), {}, terminal=None)
    assert words_of_attempt(task) == words
    for name in ("checkpoint-4", "checkpoint-6"):
        (folder / name / "trainer_state.json").touch()
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    resumed = ["--overwrite", "false", "--resume_from_checkpoint", str(folder / "checkpoint-4")]
    assert words_of_attempt(task) == [*words, *resumed]
    # None of its own can be gone on from: it begins anew over them.
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    assert words_of_attempt(task) == [*words, "--overwrite", "true"]
    again = ["--resume_from_checkpoint", "elsewhere/checkpoint-2"]
    assert words_of_attempt(replace(task, overrides=again)) == again
    (folder / "results.json").touch()
    assert words_of_attempt(task) is None


def test_what_cannot_work_is_refused_before_anything_starts(recipe, tmp_path, monkeypatch, capfd):
    from hpt_trl.launching.ray_worker import Task, _enter_folder, left_in

    # Nothing listens at port 1.
    for address, said in (
        ("ray://127.0.0.1:1", "Ray's client does not share"),
        ("127.0.0.1:1", "no Ray cluster answers"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(["run", str(recipe), "--launcher", "ray", "--num_workers", "2"]) == 2
        assert said in (errors := capfd.readouterr().err) and address in errors
    task = Task(str(recipe), [], str(tmp_path), str(tmp_path / "storage"), "out", left_in("out"), {}, terminal=None)
    with pytest.raises(UserError, match=rf"does not see {tmp_path}/storage\. .* on storage that all nodes share"):
        _enter_folder(task)


def test_a_profile_for_the_cpu_stays_one(recipe):
    profile = chosen_profile(LaunchOptions(accelerate="cpu", launcher="ray", num_workers=4))
    assert profile.num_processes == 4 and accelerate_environment(profile)["ACCELERATE_USE_CPU"] == "true"
    # Ray decides on the machines.
    profile = chosen_profile(LaunchOptions(accelerate="multi_node", launcher="ray", num_workers=3))
    assert profile.num_machines == 1 and "ACCELERATE_USE_CPU" not in accelerate_environment(profile)


def test_mistakes_end_the_run_with_their_message(recipe, cluster):
    _, address = cluster
    # Two workers need another batch than one, which they alone know.
    words = ["--num_workers", "2", "--per_device_train_batch_size", "16", "--output_dir", "mistaken"]
    code, _, errors = finish(start(recipe, *words, address=address))
    assert code == 2
    assert errors.strip().startswith("error: ") and "on each of 2 processes" in errors and "Traceback" not in errors
    assert not (recipe.parent / "mistaken").exists()
    code, _, errors = finish(start(recipe, "--num_workers", "4", "--output_dir", "mistaken", address=address))
    assert code == 2 and "--num_workers 4: each takes a CPU core, and the Ray cluster has 2 of them." in errors


@pytest.mark.slow
def test_ctrl_c_ends_the_workers(recipe, cluster):
    ray, address = cluster
    run = start(recipe, "--num_workers", "2", "--output_dir", "interrupted", address=address)
    wait_for(lambda: len(train_workers(ray)) == 2, run)
    run.send_signal(signal.SIGINT)
    code, _, errors = finish(run)
    assert code == 130 and "interrupted" in errors and "Traceback" not in errors
    wait_for(lambda: not train_workers(ray))


@pytest.mark.slow
def test_a_failure_more_than_allowed_ends_the_run(recipe, cluster):
    ray, address = cluster
    run = start(recipe, "--num_workers", "1", "--max_failures", "0", "--output_dir", "failed", address=address)
    wait_for((recipe.parent / "failed").exists, run)
    train_workers(ray)[0].kill()
    code, _, errors = finish(run)
    assert code == 1 and "Traceback" not in errors and "Starting again" not in errors
    assert "worker 0 died" in errors and "the run has failed more often than --max_failures allows" in errors
