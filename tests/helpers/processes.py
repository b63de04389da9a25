"""Real processes: the command line, and launches of several."""

import json
import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import rollouts
from tests.helpers.forks import run_in_processes

ROOT = Path(__file__).parents[2]
# As wide as no line is: what is printed is compared as it is written.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "1000"}


def hpt_trl(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hpt_trl", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | variables,
        timeout=120,
    )


def hpt_trl_within(seconds: float, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Like `hpt_trl`, in so many seconds of a processor: those of the clock are other processes' as well."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = hpt_trl(*words, **variables)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if spent[-1] < seconds:
            return result
    pytest.fail(f"{spent} s")


def free_port() -> int:
    """Below those that a system hands out by itself, and apart from those of pytest's other workers.

    Nothing else takes it until a launch that comes later does.
    """
    first = 10_000 + 2_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
    while True:
        port = random.Random().randrange(first, first + 2_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def launch(model_path: str, output_dir: Path, **settings) -> tuple[dict, dict]:
    """Weights and first log of a run in two processes."""
    output_dir.mkdir()
    words = [model_path, str(output_dir), json.dumps(settings | {"processes": 2})]
    run_in_processes("tests.helpers.distributed_step", words, processes=2, port=free_port(), output=output_dir)
    return torch.load(output_dir / "weights.pt"), json.loads((output_dir / "log.json").read_text())


def assert_two_processes_are_one(
    model_path: str, folder: Path, metrics: Sequence[str], **settings: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """One step of `FixedHPT` in two processes against the same in one; returns what each logged.

    Args:
        metrics: names of those that must agree.
        settings: see `rollouts.build`.
    """
    one = rollouts.train(rollouts.FixedHPT, model_path, folder, **settings)
    accumulation = one.args.gradient_accumulation_steps
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    two, log = launch(model_path, folder / "two", trainer="FixedHPT", **halves, **settings)
    rollouts.assert_same_update(two, rollouts.weights(one), rollouts.start_weights(model_path))
    expected = one.state.log_history[0]
    for name in metrics:
        assert log[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    return expected, log
