"""One run in a folder at a time: real processes that are at work there, killed ones, and notes of other machines."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpt_trl.errors import UserError
from hpt_trl.runs import locking, runner
from hpt_trl.runs.locking import only_run
from tests.helpers.processes import ENVIRONMENT
from tests.helpers.stage_runs import results

HOLDING = """
import os, sys, time
from pathlib import Path
from hpt_trl.runs.locking import only_run
with only_run(Path(sys.argv[1]), ["hpt-trl", "run", "mine.yaml"]):
    # As workers of a data loader and pools do, which outlive their parent where it is killed.
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder, and a child of it."""
    words = [sys.executable, "-c", HOLDING, str(tmp_path / "sft")]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_second_run_is_told_who_is_there_and_writes_nothing(recipe, tmp_path, holder):
    path = recipe("sft")
    before = sorted(os.listdir(tmp_path / "sft"))
    said = rf"another run writes to .*sft \(process {holder.pid}, since .*: hpt-trl run mine\.yaml\)\. Wait"
    for words in ([], ["--overwrite", "true"]):
        with pytest.raises(UserError, match=said):
            runner.run(path, words)
    assert sorted(os.listdir(tmp_path / "sft")) == before == [".run.lock", ".run.owner"]


def test_a_lock_does_not_survive_its_owner(recipe, tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert sorted(os.listdir(tmp_path / "sft")) == [".run.lock", ".run.owner"]
    runner.run(recipe("sft", max_steps=1), [])
    assert results(tmp_path / "sft")["steps"] == 1
    assert not [name for name in os.listdir(tmp_path / "sft") if name.startswith(".")]


def test_an_owner_on_another_machine_counts_while_it_lives(tmp_path, monkeypatch):
    note = tmp_path / ".run.owner"
    note.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "then", "command": "c", "launch": "a"}))
    monkeypatch.setattr(locking, "_WATCHED", 2)
    # Clocks of two machines are not the same.
    ahead = time.time() + 900
    monkeypatch.setattr(time, "time", lambda: ahead)
    alive = threading.Timer(0.3, os.utime, [note])
    alive.start()
    with (
        pytest.raises(UserError, match=rf"process 7 on elsewhere.*If it is dead, remove {note}\."),
        only_run(tmp_path, []),
    ):
        raise AssertionError
    assert note.exists()
    monkeypatch.undo()
    monkeypatch.setattr(locking, "_WATCHED", 2)
    # Another attempt of the same launch, which its launcher makes when the one before is over.
    monkeypatch.setenv("HPT_TRL_LAUNCH_ID", "a")
    with only_run(tmp_path, []):
        pass
    note.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    monkeypatch.delenv("HPT_TRL_LAUNCH_ID")
    os.utime(note, (time.time() - 600,) * 2)
    with only_run(tmp_path, []):
        assert json.loads(note.read_text())["pid"] == os.getpid()
    assert not note.exists()
    # Killed just now, and started anew elsewhere: it gives no sign any more.
    note.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with only_run(tmp_path, []):
        assert json.loads(note.read_text())["pid"] == os.getpid()

    note.write_text("torn {")
    with only_run(tmp_path, []):
        pass


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path):
    with pytest.raises(ValueError, match="broken"), only_run(tmp_path / "new", []):
        raise ValueError("broken")
    assert not (tmp_path / "new").exists()


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"on a disk that locks no files \(.*No locks available"),
        only_run(tmp_path, []),
    ):
        raise AssertionError
