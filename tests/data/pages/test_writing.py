"""Folders of made pages: whole or not there, the same in every process, never written over."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hpt_trl.data.pages.settings import PageSettings, page_settings
from hpt_trl.data.pages.writing import read_questions, write_pages
from hpt_trl.errors import UserError
from tests.helpers.processes import ENVIRONMENT, hpt_trl

SETTINGS = PageSettings(size=10, test_size=5, test_layouts=("form",))
WORDS = ("--size", "10", "--test_size", "5", "--test_layouts", "form")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_pages(tmp_path_factory.mktemp("pages") / "made", SETTINGS)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = hashlib.blake2b()
    for path in files:
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def test_pages_and_questions_belong_together(written):
    pages = [json.loads(line) for line in (written / "pages.jsonl").read_text().splitlines()]
    questions = read_questions(written)
    assert len(pages) == len(questions) == 15
    for page, question in zip(pages, questions, strict=True):
        assert Path(page["image"]).stem == page["name"] == f"{page['document']}_{page['number']}"
        assert question["reference_pages"] == [page["name"]]
        with Image.open(written / page["image"]) as image:
            assert image.size == (640, 480) and image.mode == "RGB"
        assert question["title"] in page["text"]
    assert [question["split"] for question in questions] == ["train"] * 10 + ["test"] * 5
    assert {question["layout"] for question in questions[10:]} == {"form"}
    assert len({question["title"] for question in questions}) == 15


def test_pages_are_the_same_in_every_process(written, tmp_path):
    for seed in ("1", "2"):
        hpt_trl("pages", str(tmp_path / seed), *WORDS, PYTHONHASHSEED=seed).check_returncode()
        assert digest(tmp_path / seed) == digest(written)
    assert digest(write_pages(tmp_path / "other", PageSettings(size=10, test_size=5, seed=1))) != digest(written)


def test_a_folder_of_the_same_settings_stays_as_it_is(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write_pages(written, SETTINGS) == written
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_a_text_layer_may_hold_the_values(tmp_path):
    folder = write_pages(tmp_path / "full", PageSettings(size=4, test_size=0, layouts=("table",), text_layer="full"))
    texts = [json.loads(line)["text"] for line in (folder / "pages.jsonl").read_text().splitlines()]
    assert all(question["answer"] in text.split() for question, text in zip(read_questions(folder), texts, strict=True))


def test_what_is_there_is_not_written_over(written, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    with pytest.raises(UserError, match=r"other settings \(size: 10 there, 11 now\)"):
        write_pages(copy, PageSettings(size=11, test_size=5, test_layouts=("form",)))
    lines = (copy / "questions.jsonl").read_text()
    (copy / "questions.jsonl").write_text(lines[:-9])
    with pytest.raises(UserError, match=r"questions.jsonl cannot be read: .*; delete its folder"):
        read_questions(write_pages(copy, SETTINGS))
    (copy / "images" / "form_1.png").unlink()
    with pytest.raises(UserError, match="14 images of 15"):
        write_pages(copy, SETTINGS)
    for content in ("{", "[]", "{}"):
        (copy / "settings.json").write_text(content)
        with pytest.raises(UserError, match=r"something else|other settings"):
            write_pages(copy, SETTINGS)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        write_pages(theirs, SETTINGS)
    assert (theirs / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        write_pages(theirs / "thesis.txt", SETTINGS)
    with pytest.raises(UserError, match="cannot be written"):
        write_pages(theirs / "thesis.txt" / "below", SETTINGS)


def test_an_empty_folder_and_what_a_killed_process_left_are_used(written, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial" / "images").mkdir(parents=True)
    (tmp_path / ".empty.partial" / "images" / "half.png").write_bytes(b"half")
    assert digest(write_pages(tmp_path / "empty", SETTINGS)) == digest(written)
    assert not (tmp_path / ".empty.partial").exists()


def test_two_processes_may_ask_at_once(written, tmp_path):
    words = ["pages", str(tmp_path / "both"), *WORDS]
    processes = [subprocess.Popen([sys.executable, "-m", "hpt_trl", *words], env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert digest(tmp_path / "both") == digest(written)


def test_the_command_says_what_it_wrote_and_what_is_wrong(tmp_path):
    done = hpt_trl("pages", str(tmp_path / "new"), "--size", "3", "--test_size", "0", "--layouts", "swatch", "chart")
    assert (done.returncode, done.stdout) == (0, f"3 training and 0 held-out pages in {tmp_path / 'new'}\n")
    done = hpt_trl("pages", str(tmp_path / "next"), "--layouts", "tabel")
    assert done.returncode == 2 and "Did you mean `table`?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "`size: 0` must be a whole number of at least 1"),
        ({"size": "many"}, "`size: many`"),
        ({"size": True}, "`size: True`"),
        ({"size": 2.5}, "`size: 2.5`"),
        ({"size": None}, "`size: None`"),
        ({"test_size": -1}, "`test_size: -1`"),
        ({"seed": -1}, "`seed: -1`"),
        ({"layouts": []}, "must be a list of layouts"),
        ({"layouts": 3}, "must be a list of layouts"),
        ({"layouts": ["table", 3]}, "no layout `3`"),
        ({"layouts": ["chrat"]}, "Did you mean `chart`?"),
        ({"layouts": None}, "must be a list of layouts"),
        ({"test_layouts": ["map"]}, "`test_layouts`: there is no layout `map`"),
        ({"test_layouts": []}, "must be a list of layouts"),
        ({"text_layer": "title"}, "Did you mean `titles`?"),
        ({"text_layer": None}, "`text_layer: None`"),
        ({"size": 70_000, "test_size": 1}, "there are titles for 70000"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UserError) as refused:
        page_settings(values, "here")
    assert message in str(refused.value) and str(refused.value).startswith("here: ")
