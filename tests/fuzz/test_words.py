"""Command lines: whatever words they have, a code and a line."""

import contextlib
import io
import os
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpt_trl.cli.process import main
from tests.fuzz.bounds import CORPUS, bounded, examples
from tests.fuzz.strategies import WORDS

# Nothing can start: it names no output folder, and no word does.
RECIPE = "stage: sft\nmodel_name_or_path: nowhere/model\ndataset_name: nowhere.jsonl\n"
COMMANDS = (
    *("run", "check", "eval", "score-reference", "report", "merge", "search", "completion", "list", "nonesuch"),
    *("chat", "push", "index", "schema", "doctor", "pages --size 1 --test_size 1"),
)
# A walk through all that there is takes its time, and may; so does a training that begins.
LONG = {"index": ("/", ".."), "run": ("quickstart",)}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    before, place = Path.cwd(), tmp_path_factory.mktemp("words")
    os.chdir(place)
    Path("recipe.yaml").write_text(RECIPE)
    yield place
    os.chdir(before)


def answered(words: list[str]) -> None:
    words = [word for word in words if "output_dir" not in word and word not in LONG.get(words[0], ())]
    # As a terminal writes half a character.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    with bounded("words"), contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    said = out.buffer.getvalue().decode()
    assert code in (0, 2) or (code == 1 and words[0] == "doctor"), said
    assert code != 2 or "error: " in said


@pytest.mark.parametrize("line", (CORPUS / "words.txt").read_text().splitlines())
def test_what_was_found(line):
    answered(shlex.split(line))


@examples(80)
@given(st.sampled_from(COMMANDS), st.booleans(), WORDS)
@example("run", True, ["--no_x", "--no_output_dir"])
def test_any_words(command, named, words):
    answered([*command.split(), *(["recipe.yaml"] if named else []), *words])
