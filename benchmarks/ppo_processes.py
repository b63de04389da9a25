"""The processes of `benchmarks.ppo_against_trl`, and the environment of TRL 1.12."""

import subprocess
import sys
import sysconfig
import venv
from dataclasses import asdict
from pathlib import Path

from benchmarks.ppo_workers import Setup
from benchmarks.shared import ROOT
from benchmarks.workers import Worker

TRL = "1.12.0"
ENVIRONMENT = ROOT / "build" / "trl-1.12"


def environment() -> str:
    """The interpreter of TRL 1.12's environment, which is built if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}))
    shared = sysconfig.get_path("purelib")
    # Written last: a build that was killed is made anew, and so is one of another interpreter's packages.
    link = packages / "shared.pth"
    if not (link.is_file() and link.read_text().strip() == shared):
        print(f"building {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, clear=True, with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", f"trl=={TRL}"], check=True)
        link.write_text(shared + "\n")
    return str(python)


def started(setup: Setup, folder: Path, threads: int | None = None) -> Worker:
    """A worker that waits to be told.

    Args:
        folder: for its settings and its log.
        threads: of its own; None as the environment says.
    """
    variables = {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        # The stock trainer's own Accelerator takes its precision from here alone.
        "ACCELERATE_MIXED_PRECISION": "bf16" if setup.bf16 else "no",
    }
    if setup.overrides is None and setup.same_allocator:
        # What `hpt_trl.runs.freed_memory` asks for.
        variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    return Worker(
        environment() if setup.overrides is None else sys.executable,
        "benchmarks.ppo_workers",
        asdict(setup),
        name=f"{setup.arm}-{setup.seed}",
        folder=folder,
        variables=variables,
    )
