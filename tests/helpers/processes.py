"""Real processes: the command line, and launches of several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def hpt_trl(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hpt_trl", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | variables,
        timeout=120,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(model_path: str, output_dir: Path, **settings) -> tuple[dict, dict]:
    """Weights and first log of a run in two processes."""
    output_dir.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += [f"--master_port={free_port()}", "-m", "tests.helpers.distributed_step"]
    command += [model_path, str(output_dir), json.dumps(settings | {"processes": 2})]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(output_dir / "weights.pt"), json.loads((output_dir / "log.json").read_text())
