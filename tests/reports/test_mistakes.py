"""What `hpt-trl report` refuses: one clear line, exit code 2, nothing written, no training library loaded."""

import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.reports.page import write_runs
from hpt_trl.reports.run import read_run
from tests.helpers.processes import ENVIRONMENT


def refused(capsys, *words: object) -> str:
    """The one line that a command ends with."""
    before = {path for path in Path.cwd().rglob("*") if path.is_file()}
    assert main(["report", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert {path for path in Path.cwd().rglob("*") if path.is_file()} == before
    return captured.err


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_folders_that_hold_no_run(copy, capsys, tmp_path):
    run = copy("sft")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "nowhere does not exist" in refused(capsys, "nowhere")
    assert "nowhere does not exist" in refused(capsys, run, "nowhere")
    assert "file is a file" in refused(capsys, "file")
    assert "empty holds no run of hpt-trl" in refused(capsys, "empty")
    assert f"It holds {run}; name these" in refused(capsys, tmp_path)
    (tmp_path / "empty" / "recipe.yaml").write_text("stage: sft\n")
    assert "has not logged a step yet" in refused(capsys, "empty")


def test_a_folder_named_twice(copy, capsys, tmp_path):
    run = copy("sft")
    (tmp_path / "link").symlink_to(run)
    assert "is named twice" in refused(capsys, run, copy("one"), f"{run}/../sft")
    assert f"link is named twice (as {run})" in refused(capsys, run, "link")
    for number in range(9):
        (tmp_path / f"run{number}").mkdir()
    assert "at most 8 runs" in refused(capsys, *(f"run{number}" for number in range(9)))


def test_a_pipeline_beside_runs(chain, copy, capsys):
    message = refused(capsys, copy("two"), chain)
    assert f"{chain} is a pipeline" in message and f"e.g. {chain / 'one'}" in message
    (chain / "sft" / "metrics.jsonl").write_text("broken\n")
    assert "metrics.jsonl, line 1" in refused(capsys, chain)
    (chain / "pipeline.json").write_text('{"stages": 3}')
    assert "pipeline.json is not the record of a pipeline" in refused(capsys, chain)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "{", "results.json is not valid JSON"),
        ("results.json", "[]", "results.json holds list"),
        ("results.json", "{}", "`recipe` is missing or of another kind"),
        ("results.json", '{"recipe": "a", "stage": "sft", "wall_time_s": {}, "measures": 3}', "`measures`"),
        ("results.json", "[" * 100_000, "results.json is not valid JSON"),
        ("results.json", '{"recipe": "a", "stage": "sft", "wall_time_s": {"total": "long"}, "measures": {}}', "number"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "lo\n{"step": 3, "loss": 1}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n{"step": "two"}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", "\0\0\0\n", "metrics.jsonl, line 1"),
        ("warnings.jsonl", '{"step": 1}\n', "warnings.jsonl: a warning is an object with a `message`"),
        ("warnings.jsonl", "nonsense\n", "warnings.jsonl, line 1"),
        ("recipe.yaml", "stage: [", "recipe.yaml is not a recipe's YAML"),
        ("recipe.yaml", "- stage", "recipe.yaml holds list"),
    ],
)
def test_broken_files_are_named(copy, capsys, name, text, said):
    run = copy("sft")
    if name == "warnings.jsonl":
        (run / "results.json").unlink()
    (run / name).write_text(text)
    assert said in refused(capsys, run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"before": 3}, "`before`"),
        ({"steps": None}, "`steps`"),
        ({"tokens": {"training": "many"}}, "`tokens` holds what is no number"),
        ({"wall_time_s": {"total": 3}}, "`wall_time_s` lacks `train`"),
        ({"after": {"completions": [{"prompt": 3}]}}, "a completion is an object"),
        ({"warnings": ["text"]}, "results.json: a warning is an object"),
        ({"after": {"accuracy": 0.5, "accuracy_interval": [0.1]}}, "`accuracy_interval`"),
        ({"after": {"held_out": [1]}}, "`held_out`"),
    ],
)
def test_results_of_another_form_are_named(copy, capsys, change, said):
    run = copy("sft")
    found = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(found | change))
    assert said in refused(capsys, run)


def places(value, place=()):
    """Every place inside of nested mappings and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield (*place, key)
        yield from places(inner, (*place, key))


def test_whatever_results_say_they_are_shown_or_named(copy, tmp_path):
    run = copy("one")
    found = json.loads((run / "results.json").read_text())
    generator, every = random.Random(0), list(places(found))
    for number in range(60):
        changed = json.loads(json.dumps(found))
        *outer, last = generator.choice(every)
        inner = changed
        for key in outer:
            inner = inner[key]
        inner[last] = generator.choice([None, 3, "x", [1], {"a": 1}, True, -1.5, [], {}])
        (run / "results.json").write_text(json.dumps(changed))
        with suppress(UserError):
            write_runs([read_run(run)], tmp_path / f"{number}.html")
    assert 10 < len(list(tmp_path.glob("*.html"))) < 60


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1, "loss": Infinity}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1}\n',
        '{"step": 1, "loss": 1e400}\n{"step": 2, "loss": 1e308}\n{"step": 3, "loss": -1e308}\n{"step": 4, "loss": 1}\n',
        '{"step": -5, "loss": 0}\n{"step": 9007199254740000, "loss": -1e-320}\n',
        '{"step": 5, "loss": 12345678901.5}\n{"step": 2, "loss": true}\n{"step": 5, "loss": "text"}\n',
        '{"step": 1, "loss": 1}\n{"step": 2, "lo',
    ],
)
def test_numbers_of_any_size_are_drawn(copy, text):
    run = copy("sft")
    (run / "metrics.jsonl").write_text(text)
    write_runs([read_run(run)], run / "report.html")
    page = (run / "report.html").read_text()
    assert "<figure>" in page and "nan" not in page.lower() and 'inf"' not in page


def test_a_page_that_cannot_be_written(copy, capsys, tmp_path):
    run = copy("sft")
    (run / "report.html").write_text("<html>my own notes</html>")
    assert "report.html is no page of `hpt-trl report`" in refused(capsys, run)
    (tmp_path / "report.html").write_text("mine")
    assert "report.html is no page" in refused(capsys, run, copy("one"))
    assert "is a folder" in refused(capsys, run, "--output", tmp_path)
    assert "there is no folder" in refused(capsys, run, "--output", "no/where.html")
    assert "there is no folder" in refused(capsys, run, "--output", run / "results.json" / "page.html")
    assert (run / "report.html").read_text() == "<html>my own notes</html>"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(copy, capsys):
    run = copy("sft")
    run.chmod(0o500)
    try:
        assert "cannot be written to" in refused(capsys, run)
    finally:
        run.chmod(0o700)


def test_a_place_where_no_file_can_be_made(copy, capsys):
    # Nobody may, whatever the rights.
    assert main(["report", str(copy("sft")), "--output", "/proc/report.html"]) == 2
    assert "/proc" in capsys.readouterr().err


def test_no_training_library_is_loaded_for_a_mistake_nor_for_a_page(copy):
    """Seconds that an answer would wait; asked of the modules, which no busy machine disturbs."""
    broken, run = copy("sft", "broken"), copy("one")
    (broken / "results.json").write_text("{")
    script = f"""
import sys
from pathlib import Path
from hpt_trl.cli import main
for words in (["nowhere"], [{str(broken)!r}], [{str(run)!r}, {str(run)!r}], [{str(run.parent)!r}]):
    assert main(["report", *words]) == 2
from hpt_trl.reports.page import write_runs
from hpt_trl.reports.run import read_run
write_runs([read_run(Path({str(run)!r}))], Path("page.html"))
print([name for name in ("torch", "transformers", "datasets", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]" and done.stderr.count("error: ") == 4
    assert Path("page.html").stat().st_size > 5000
