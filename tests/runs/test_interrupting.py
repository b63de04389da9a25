"""Ctrl-C in every phase of a run: what is left, what is said, and that the run goes on from there as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from hpt_trl.runs import runner
from hpt_trl.runs.checkpoints import complete_checkpoints
from hpt_trl.runs.going_on import COMMAND, after_interrupt, resuming
from hpt_trl.signals import Interrupted
from tests.helpers.processes import ENVIRONMENT, ROOT
from tests.helpers.stage_runs import recipe, remainder  # noqa: F401
from tests.helpers.terminals import Terminal

CALLS = {"now": 0, "at": 0}


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """As in a process of its own: libraries of other tests' runs may have left a handler of theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(completion_ids, **columns) -> list[float]:
    """A reward that gives Ctrl-C in its call of a number."""
    CALLS["now"] += 1
    if CALLS["now"] == CALLS["at"]:
        os.kill(os.getpid(), signal.SIGINT)
    return remainder(completion_ids)


def interrupted(path: str, *words: str, at: int) -> str:
    """Runs a recipe with Ctrl-C in a call of its reward; returns what is said."""
    CALLS.update(now=0, at=at)
    with pytest.raises(Interrupted) as ended:
        runner.run(path, list(words))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return str(ended.value)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_a_training_saves_and_goes_on_to_the_same_weights(recipe, tmp_path, capfd):  # noqa: F811
    reward = "tests.runs.test_interrupting.interrupting"
    path = recipe("grpo", reward_funcs=[reward], save_only_model=True, eval_samples=2, lr_scheduler_type="cosine")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    CALLS.update(now=0, at=0)
    runner.run(path, ["--output_dir", str(whole)])
    calls = CALLS["now"]
    said = interrupted(path, "--output_dir", str(cut), "--overwrite", "true", at=calls // 2)
    (checkpoint,) = complete_checkpoints(cut)
    assert 0 < int(checkpoint.name.removeprefix("checkpoint-")) < 4
    command = f"hpt-trl run {path} --output_dir {cut} --resume_from_checkpoint true"
    assert said == f"{checkpoint} is complete. Go on with:\n  {command}"
    assert "this step is finished and saved as a checkpoint" in capfd.readouterr().err
    CALLS.update(now=0, at=0)
    runner.run(path, command.split()[3:])
    assert_same_weights(whole, cut)


def test_before_the_first_step_nothing_is_saved_and_the_command_starts_anew(recipe, tmp_path):  # noqa: F811
    path = recipe("grpo", reward_funcs=["tests.runs.test_interrupting.interrupting"], eval_samples=2)
    folder = tmp_path / "grpo"
    # The first call tries the reward on a demonstration, the second is of the evaluation before the training.
    assert "There is no checkpoint yet. Start anew with:\n  hpt-trl run" in interrupted(path, at=2)
    assert not complete_checkpoints(folder)
    # The corrected recipe takes the folder as well.
    CALLS.update(now=0, at=0)
    runner.run(path, ["--learning_rate", "1e-4"])
    assert (folder / "results.json").exists()


def test_a_second_one_ends_the_run_at_once(recipe, tmp_path):  # noqa: F811
    path = recipe("grpo", reward_funcs=["tests.runs.test_interrupting.twice"], max_steps=50)
    started = time.perf_counter()
    said = interrupted(path, at=3)
    assert "There is no checkpoint yet" in said and time.perf_counter() - started < 60


def twice(completion_ids, **columns) -> list[float]:
    values = interrupting(completion_ids)
    if CALLS["now"] == CALLS["at"]:
        os.kill(os.getpid(), signal.SIGINT)
    return values


def test_the_words_that_go_on():
    words = ["hpt-trl", "run", "r.yaml", "--overwrite", "true", "--a", "1", "2", "--resume-from-checkpoint=x", "--b"]
    assert resuming(words) == ["hpt-trl", "run", "r.yaml", "--a", "1", "2", "--b", "--resume_from_checkpoint", "true"]
    assert resuming(["hpt-trl", "run", "r.yaml", "--overwrite"])[3:] == ["--resume_from_checkpoint", "true"]


def test_what_is_said_of_a_stage_of_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMAND, "hpt-trl run chain.yaml")
    begun = after_interrupt(tmp_path, ["hpt-trl", "run", "stage.yaml"])
    assert begun.startswith("This stage has no checkpoint yet") and begun.endswith("\n  hpt-trl run chain.yaml")
    # Of an evaluation the completions are there.
    measured = after_interrupt(tmp_path, ["hpt-trl", "run", "stage.yaml"], goes_on=True)
    assert measured == "What was done is kept. Go on with:\n  hpt-trl run chain.yaml"


class Started:
    """A command of its own whose output is read as it comes."""

    def __init__(self, *words: str, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "hpt_trl", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            cwd=folder,
            start_new_session=True,
        )
        self.output = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := self.process.stdout.read1():
            self.output += piece

    def interrupt_at(self, text: str, limit: float = 150.0) -> str:
        """Gives it Ctrl-C once a text is there; returns all that it prints."""
        deadline = time.monotonic() + limit
        while text.encode() not in self.output and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text.encode() in self.output, self.output.decode()[-3000:]
        self.process.send_signal(signal.SIGINT)
        return self.end(limit)

    def end(self, limit: float = 150.0) -> str:
        try:
            self.process.wait(limit)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.reader.join(10)
        return self.output.decode()


def test_two_processes_save_after_the_same_step(recipe, tmp_path):  # noqa: F811
    path = recipe("sft", max_steps=2000, per_device_train_batch_size=2, global_batch_size=4)
    words = ["run", path, "--accelerate", "cpu", "--num_processes", "2"]
    command = Started(*words, folder=tmp_path)
    output = command.interrupt_at("step 2/")
    assert command.process.returncode == 130, output[-3000:]
    assert "Traceback" not in output and "ERROR" not in output
    (checkpoint,) = complete_checkpoints(tmp_path / "sft")
    assert output.count("interrupted") == 1
    assert f"hpt-trl run {path} --accelerate cpu --num_processes 2 --resume_from_checkpoint true" in output
    assert json.loads((checkpoint / "run.json").read_text())["processes"] == 2


def test_a_pipeline_ends_with_its_stage_and_goes_on(recipe, tmp_path):  # noqa: F811
    first = recipe("sft", max_steps=2000, save_strategy="no")
    pipeline = tmp_path / "chain.yaml"
    stages = {"sft": {"recipe": first}}
    pipeline.write_text(yaml.safe_dump({"stage": "pipeline", "output_dir": str(tmp_path / "chain"), "stages": stages}))
    command = Started("run", "chain.yaml", folder=tmp_path)
    output = command.interrupt_at("step 2/")
    assert command.process.returncode == 130, output[-3000:]
    assert "Traceback" not in output and output.count("interrupted") == 1
    assert output.rstrip().endswith("Go on with:\n  hpt-trl run chain.yaml")
    (checkpoint,) = complete_checkpoints(tmp_path / "chain" / "sft")
    again = Started("run", "chain.yaml", folder=tmp_path)
    assert f"goes on (from {checkpoint.name})" in again.interrupt_at(f"goes on (from {checkpoint.name})")


def slow(completion_ids, **columns) -> list[float]:
    """A reward that says when the command scores, and takes its time."""
    print("scoring", flush=True)
    time.sleep(30)
    return remainder(completion_ids)


# Command, what is on the screen before Ctrl-C comes, and seconds after it.
ON_A_TERMINAL = [
    pytest.param("eval", "scoring", 0.0, id="scoring"),
    pytest.param("run", "Reading ", 1.0, id="importing"),
    pytest.param("run", "Loading the model ...", 0.0, id="loading", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("command", "screen", "later"), ON_A_TERMINAL)
def test_ctrl_c_on_a_terminal_is_no_traceback(recipe, evaluation, tmp_path, command, screen, later):  # noqa: F811
    rewards = ["tests.runs.test_interrupting.slow"]
    path = evaluation(reward_funcs=rewards) if command == "eval" else recipe("sft", test_split_size=2)
    terminal = Terminal("-m", "hpt_trl", command, path, cwd=tmp_path, columns=200)
    terminal.read(lambda seen: screen in seen)
    assert screen in terminal.seen, terminal.seen
    time.sleep(later)
    terminal.write("\x03")
    started = time.perf_counter()
    assert terminal.ended() == 130, terminal.seen
    assert time.perf_counter() - started < 20
    assert "Traceback" not in terminal.seen and "Error" not in terminal.seen and "Exception" not in terminal.seen
    assert terminal.seen.count("interrupted") == 1
    assert not list(tmp_path.glob("*/results.json"))


# What an interrupt meets while a dataclass is made, as libraries do when they are imported.
IN_A_DATACLASS = """
from hpt_trl.cli import commands, process

def interrupted(words):
    exec("raise KeyboardInterrupt")

process.run_command = interrupted
process.command()
"""


def test_one_that_comes_while_a_dataclass_is_made_leaves_the_exit_code(tmp_path):
    (tmp_path / "interrupting.py").write_text(IN_A_DATACLASS)
    words = [sys.executable, "-m", "interrupting"]
    ended = subprocess.run(words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "\ninterrupted\n")
