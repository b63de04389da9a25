"""Processes of a benchmark that make one update when they are told to (`benchmarks.gate`)."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.shared import ROOT


class WorkerFailed(Exception):
    """A process ended before its updates did; the message has its last words."""


class Worker:
    """A process that is told when to go, and ended on leaving its context.

    Args:
        python: the interpreter.
        module: what runs in it, with the file of its settings and the file descriptor of its reports.
        name: of its files in `folder`, and in messages.
        variables: of its environment, beside those of this process.
    """

    def __init__(
        self,
        python: str,
        module: str,
        settings: dict[str, Any],
        *,
        name: str,
        folder: Path,
        variables: dict[str, str],
    ):
        stem = name.replace("/", "-")
        file, self._log = folder / f"{stem}.json", folder / f"{stem}.log"
        file.write_text(json.dumps(settings))
        reading, writing = os.pipe()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, str(file), str(writing)],
                cwd=ROOT,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"} | variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                text=True,
            )
        os.close(writing)
        self._reports = os.fdopen(reading)
        self._name = name

    def update(self) -> dict[str, Any]:
        """Lets it make one update; returns what it reports of that.

        Raises:
            WorkerFailed: it has ended instead.
        """
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
        raise WorkerFailed(f"`{self._name}` failed:\n{self._log.read_text()[-4000:]}")

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

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
