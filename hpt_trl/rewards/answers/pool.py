"""A few child processes that decide questions, started at the first one and killed at the end."""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("worker.py")
_MAX_WORKERS = 4
# Seconds of the child's processor time for one question.
SECONDS = 1.0
# A batch full of answers that nobody can evaluate must not stop the training for minutes: after so many of them the
# others of the batch have less time.
PATIENCE, SHORT_SECONDS = 10, 0.2
# Bytes of the child's address space; it starts with about 90 million.
MEMORY = 2**29
# Only for a child that neither answers nor computes.
_WALL_SECONDS = 60.0


class _Worker:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Any, seconds: float) -> bool | None:
        """Return the verdict, or None where it took more than `seconds` of processor time or too much memory."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        watch = threading.Timer(_WALL_SECONDS, process.kill)
        watch.daemon = True
        watch.start()
        try:
            process.stdin.write(json.dumps([seconds, question]).encode() + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        finally:
            watch.cancel()
        if not reply.endswith(b"\n"):
            self.stop()
            return None
        return json.loads(reply)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None

    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _start(self) -> "subprocess.Popen[bytes]":
        # By path and with -P, so that the child imports nothing of this package and the user's script is not run
        # again; in a session of its own, so that Ctrl-C in the terminal does not reach it.
        command = [sys.executable, "-P", str(_WORKER), str(MEMORY)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        # Importing sympy must not count against the first question.
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the child process that compares answers did not start: {' '.join(command)}")
        return process


class Pool:
    """Workers for the cores of this machine, shared by all threads."""

    def __init__(self, size: int) -> None:
        self._workers = [_Worker() for _ in range(size)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="answers")

    def decide(self, questions: list[Any]) -> list[bool | None]:
        """Return the verdicts in order; None for a question that took too long or too much memory."""
        given_up: list[Any] = []

        def one(question: Any) -> bool | None:
            worker = self._idle.get()
            try:
                verdict = worker.ask(question, SECONDS if len(given_up) < PATIENCE else SHORT_SECONDS)
            finally:
                self._idle.put(worker)
            if verdict is None:
                given_up.append(question)
            return verdict

        return [one(questions[0])] if len(questions) == 1 else list(self._threads.map(one, questions))

    def pids(self) -> list[int]:
        """The running children."""
        return [pid for worker in self._workers if (pid := worker.pid()) is not None]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


_pool: Pool | None = None
_lock = threading.Lock()


def shared_pool() -> Pool:
    """Return the pool of this process; ranks of one machine share its cores."""
    global _pool
    with _lock:
        if _pool is None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            _pool = Pool(max(1, min(_MAX_WORKERS, (os.cpu_count() or 1) // max(ranks, 1))))
            atexit.register(_pool.close)
        return _pool


def _forget() -> None:
    # The pipes belong to the parent: a forked child that read from them would take its verdicts.
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
