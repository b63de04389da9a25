"""The processes of `benchmarks.ppo_against_trl`: TRL 1.12's environment, and workers that go when they are told to."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.ppo_workers import Setup
from benchmarks.shared import ROOT

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


class WorkerFailed(Exception):
    """A process ended before its updates did; the message has its last words."""


class Worker:
    """A process of `benchmarks.ppo_workers`, which is told when to go."""

    def __init__(self, setup: Setup, folder: Path, threads: int | None):
        name = f"{setup.arm}-{setup.seed}".replace("/", "-")
        settings, self._log = folder / f"{name}.json", folder / f"{name}.log"
        settings.write_text(json.dumps(asdict(setup)))
        variables = {
            "OMP_WAIT_POLICY": "PASSIVE",  # or whoever waits for its turn would keep the cores busy
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            # The stock trainer's own Accelerator takes its precision from here alone.
            "ACCELERATE_MIXED_PRECISION": "bf16" if setup.bf16 else "no",
        }
        if threads is not None:
            variables["OMP_NUM_THREADS"] = str(threads)
        python = environment() if setup.overrides is None else sys.executable
        reading, writing = os.pipe()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.ppo_workers", str(settings), str(writing)],
                cwd=ROOT,
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                text=True,
            )
        os.close(writing)
        self._reports = os.fdopen(reading)
        self._arm = setup.arm

    def update(self) -> dict[str, float]:
        """Lets it make one update; returns what it reports of that."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        line = self._reports.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        self.close()  # its last words come after the end of its reports
        raise WorkerFailed(f"The arm `{self._arm}` failed:\n{self._log.read_text()[-4000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reports.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(setup: Setup, folder: Path, threads: int | None = None) -> Iterator[Worker]:
    """A worker that waits to be told; it is ended on leaving.

    Args:
        folder: for its settings and its log.
        threads: of its own; None as the environment says.
    """
    worker = Worker(setup, folder, threads)
    try:
        yield worker
    finally:
        worker.close()
