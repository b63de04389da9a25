"""Indexes that are built at once, stopped or killed: real processes that build one of many pages."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from hpt_trl.placing import clear_left, put_in_place
from hpt_trl.retrieval.index import build_index, load_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.pages import write_corpus
from tests.helpers.processes import ENVIRONMENT, hpt_trl


@pytest.fixture
def building(tmp_path):
    """A process that was halted in the middle of building an index of 1,000 pages."""
    (tmp_path / "many").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "many" / "0.png")
    for number in range(1, 1000):
        os.link(tmp_path / "many" / "0.png", tmp_path / "many" / f"{number}.png")
    (tmp_path / "many" / "pages.jsonl").write_text(json.dumps({"image": "0.png", "text": "many"}) + "\n")
    words = ["index", str(tmp_path / "many"), str(tmp_path / "index")]
    process = subprocess.Popen([sys.executable, "-m", "hpt_trl", *words], env=ENVIRONMENT, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not any(path.name.startswith(".index.") for path in tmp_path.iterdir()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.communicate()


def listed(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "pages")


def test_an_index_that_came_meanwhile_stays(building, tmp_path):
    build_index(write_corpus(tmp_path / "pages"), tmp_path / "index", IndexSettings())
    building.send_signal(signal.SIGCONT)
    _, errors = building.communicate(timeout=60)
    assert building.returncode == 2 and b"holds an index already" in errors
    assert len(load_index(tmp_path / "index")) == 4 and listed(tmp_path) == ["index", "many"]


def test_a_build_that_is_told_to_end_leaves_nothing(building, tmp_path):
    building.send_signal(signal.SIGTERM)
    building.send_signal(signal.SIGCONT)
    _, errors = building.communicate(timeout=60)
    assert building.returncode == 128 + signal.SIGTERM and not errors
    assert listed(tmp_path) == ["many"]


def test_what_a_killed_build_left_is_removed_by_the_next(building, tmp_path):
    pages = str(write_corpus(tmp_path / "pages"))
    assert hpt_trl("index", pages, str(tmp_path / "other")).returncode == 0
    # Of a process that is alive nothing is touched, and nothing that an index of another name left.
    assert hpt_trl("index", pages, str(tmp_path / "index.2")).returncode == 0
    (left,) = [path.name for path in tmp_path.iterdir() if path.name.startswith(".index.")]
    building.kill()
    building.wait()
    assert hpt_trl("index", pages, str(tmp_path / "other"), "--overwrite").returncode == 0
    assert left in listed(tmp_path)
    assert hpt_trl("index", pages, str(tmp_path / "index")).returncode == 0
    assert listed(tmp_path) == ["index", "index.2", "many", "other"]


def test_an_index_that_was_being_replaced_comes_back(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = tmp_path / f".index.{platform.node()}.{dead.pid}.old"
    build_index(write_corpus(tmp_path / "pages"), tmp_path / "index", IndexSettings())
    (tmp_path / "index").rename(old)
    clear_left(tmp_path / "index")
    assert len(load_index(tmp_path / "index")) == 4 and listed(tmp_path) == ["index"]
    # What took its place stays.
    (tmp_path / "index").rename(old)
    (tmp_path / "index").mkdir()
    clear_left(tmp_path / "index")
    assert listed(tmp_path) == ["index"] and not any((tmp_path / "index").iterdir())


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "nowhere", tmp_path / "index")
    assert listed(tmp_path) == ["index"] and listed(tmp_path / "index") == ["mine"]
