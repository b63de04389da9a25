"""Paths that lead nowhere, in a circle or to a pipe: each place that takes one says so, at once and in a line."""

import os
import sys

import pytest

from hpt_trl.cli.process import main
from hpt_trl.errors import UserError
from hpt_trl.files import folder_fault, path_fault
from hpt_trl.runs.early import check_run
from hpt_trl.runs.output_folder import open_output_folder
from hpt_trl.runs.preparation import prepare

PIPE, LONG = "is neither a file nor a folder", "File name too long"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


@pytest.fixture
def places(tmp_path):
    """What leads nowhere: name -> path, and what is said of it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe")
    return {
        "circle": (str(tmp_path / "one"), "Too many levels of symbolic links"),
        "below a circle": (str(tmp_path / "one" / "x"), "Too many levels of symbolic links"),
        "dangling": (str(tmp_path / "dangling"), "is a link to "),
        "pipe": (str(tmp_path / "pipe"), PIPE),
        "device": ("/dev/null", PIPE),
        "long": (str(tmp_path / ("x" * 300)), LONG),
        "bare and long": ("x" * 300, LONG),
        "longer": ("/".join(["x" * 200] * 30), LONG),
        "null": ("a\0b", "embedded null byte"),
        "half a character": ("a\ud800", "holds half a character"),
        "nobody": ("~no-such-user/x", "home directory"),
    }


KINDS = (
    *("circle", "below a circle", "dangling", "pipe", "device", "long", "bare and long", "longer", "null"),
    *("half a character", "nobody"),
)
KEYS = (
    *("dataset_name", "model_name_or_path", "output_dir", "evaluations", "reward_model_name_or_path"),
    *("resume_from_checkpoint", "search_index", "judge_cache", "deepspeed", "fsdp_config"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_has_one_fault(places, kind):
    path, said = places[kind]
    assert said in str(path_fault(path))
    assert said in str(folder_fault(path)) if kind != "nobody" else folder_fault(path)


def test_what_is_there_or_free_has_none(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep", tmp_path / "link", "owner/name", ".", "~"):
        assert path_fault(path) is None and folder_fault(tmp_path / "new" / "deep") is None
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]


@pytest.mark.parametrize("key", KEYS)
def test_a_recipe_says_it_of_each_key(places, key, tmp_path):
    for kind in KINDS:
        path, said = places[kind]
        words = ["--output_dir", str(tmp_path / "out"), f"--{key}", path]
        with pytest.raises(UserError) as caught:
            check_run("quickstart", words)
        message = str(caught.value)
        assert said in message and key in message and len(message) < 1000, (kind, message)
        message.encode()


def test_the_run_says_it_as_well(places, tmp_path):
    for key, kind in (("dataset_name", "pipe"), ("model_name_or_path", "long"), ("output_dir", "dangling")):
        path, said = places[kind]
        with pytest.raises(UserError, match=said):
            prepare("quickstart", ["--output_dir", str(tmp_path / "out"), f"--{key}", path])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        ["check", "PATH"],
        ["run", "PATH"],
        ["eval", "PATH"],
        ["report", "PATH"],
        ["report", "FOLDER", "--output", "PATH"],
        ["merge", "PATH", "NEW"],
        ["merge", "FOLDER", "PATH"],
        ["push", "PATH"],
        ["index", "PATH", "NEW"],
        ["index", "FOLDER", "PATH"],
        ["search", "PATH", "x"],
        ["pages", "PATH"],
        ["chat", "PATH"],
        ["doctor", "PATH"],
        ["check", "quickstart", "--accelerate", "PATH"],
    ],
    ids=" ".join,
)
def test_commands_say_it(places, kind, words, tmp_path, capsys):
    named = {"PATH": places[kind][0], "FOLDER": str(tmp_path), "NEW": str(tmp_path / "new")}
    try:
        code = main([named.get(word, word) for word in words])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said and "error: " in said
    assert len(said.rpartition("error: ")[2]) < 1000


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("pipe/below", "pipe"),
        ("dangling/below", "is a link to"),
        pytest.param(
            "/proc/x", "cannot be made in /proc", marks=pytest.mark.skipif(sys.platform != "linux", reason="")
        ),
        pytest.param("/proc/self/x", "cannot be made", marks=pytest.mark.skipif(sys.platform != "linux", reason="")),
    ],
)
def test_an_output_folder_that_cannot_be_made_is_told_by_check(places, tmp_path, place, said):
    words = ["--output_dir", str(tmp_path / place)]
    with pytest.raises(UserError, match=f"output_dir.*{said}"):
        check_run("quickstart", words)
    with pytest.raises(UserError, match=f"output_dir.*{said}"):
        prepare("quickstart", words)


@as_user
def test_what_may_not_be_read_or_written_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)
    (tmp_path / "read only").mkdir(mode=0o500)
    assert path_fault(tmp_path / "closed") == "may not be read"
    assert "Permission denied" in str(path_fault(tmp_path / "closed" / "x"))
    assert folder_fault(tmp_path / "read only") == "cannot be written to"
    assert "Permission denied" in str(folder_fault(tmp_path / "read only" / "new"))


def test_overwriting_takes_links_away_and_leaves_what_they_lead_to(recipe, tmp_path):
    prepared = prepare(recipe("sft"), [])
    folder, kept = tmp_path / "sft", tmp_path / "kept"
    kept.mkdir()
    (kept / "precious").write_text("mine")
    open_output_folder(prepared.recipe, resuming=False)
    for name in ("checkpoint-1", "completions", "model.safetensors"):
        (folder / name).symlink_to(kept if name != "model.safetensors" else kept / "precious")
    (folder / "checkpoint-2").symlink_to(tmp_path / "gone")
    again = prepare(recipe("sft"), ["--overwrite", "true"])
    open_output_folder(again.recipe, resuming=False)
    assert not any(path.is_symlink() for path in folder.iterdir()) and (folder / "recipe.yaml").is_file()
    assert (kept / "precious").read_text() == "mine"
