"""Bars on a real terminal: one at a time, whole whatever is printed, with the time left; plain lines elsewhere."""

import io
import re
import sys

import pytest

from hpt_trl import progress
from hpt_trl.progress import Bar
from tests.helpers.processes import ROOT, hpt_trl
from tests.helpers.terminals import Terminal, screens

BAR = re.compile(r"\d+%\|.*\| \d+/\d+ \w+, [\d:]+ gone, ([\d:]+|\?) left$")

SCRIPT = """
import logging, sys, time, warnings
logging.basicConfig()
from hpt_trl.progress import Bar, lines_above_bars
with lines_above_bars():
    outer = Bar(6, "Outer", "steps")
    for number in range(3):
        time.sleep(0.11)
        outer.update()
        print("printed", number)
        warnings.warn(f"warned {number}")
        logging.warning("logged %s", number)
    with Bar(3, "Inner", "rows") as inner:
        for number in range(3):
            time.sleep(0.11)
            inner.update()
            print("in", end=" ")
            print("parts", number)
    for number in range(3):
        time.sleep(0.11)
        outer.update()
print("after", file=sys.stderr)
"""


def check_screens(written: str, bars: set[str]) -> list[str]:
    """No moment with two bars or a broken one; returns the last screen."""
    seen, last = set(), []
    for last in screens(written):
        shown = [line for line in last if "%|" in line]
        assert len(shown) <= 1, shown
        # Libraries' own bars, where their work takes long, have another form.
        for line in [line for line in shown if line.partition(":")[0] in bars]:
            assert BAR.search(line), line
            seen.add(line.partition(":")[0])
    assert seen == bars
    assert not [line for line in last if "%|" in line], "a bar stays behind"
    return last


def test_one_bar_is_visible_and_what_is_printed_stands_above_it():
    terminal = Terminal("-c", SCRIPT)
    assert terminal.ended() == 0
    last = check_screens(terminal.seen, {"Outer", "Inner"})
    for number in range(3):
        assert f"printed {number}" in last and f"in parts {number}" in last
        assert any(line.endswith(f"warned {number}") for line in last)
        assert any(line.endswith(f"logged {number}") for line in last)
    assert [line for line in last if line][-1] == "after"


def test_a_training_on_a_terminal(recipe):
    """Evaluations before, during and after it, checkpoints, log lines and a reward that prints."""
    path = recipe(
        "grpo",
        reward_funcs=["tests.test_progress.prints"],
        eval_samples=6,
        eval_max_new_tokens=4,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    terminal = Terminal("-m", "hpt_trl", "run", path, columns=100, PYTHONPATH=str(ROOT))
    assert terminal.ended() == 0, terminal.seen
    last = check_screens(terminal.seen, {"Before training", "Training", "Held-out rows", "After training"})
    assert sum(bool(re.match(r"step \d/4  ", line)) for line in last) >= 4
    assert "a reward prints" in last and any(line.startswith("Talk:    hpt-trl chat ") for line in last)
    # Where it was drawn again and again, the time left was told.
    assert re.search(r"Training: +\d+%\|[^\r]*\d\d:\d\d left", terminal.seen)


def prints(completion_ids, **columns) -> list[float]:
    print("a reward prints")
    return [float(sum(ids) % 7) for ids in completion_ids]


def test_a_training_without_a_terminal_tells_the_time_left_in_its_lines(recipe):
    told = hpt_trl("run", recipe("sft"))
    assert told.returncode == 0, told.stderr
    steps = [line for line in told.stdout.splitlines() if re.match(r"step \d/4  .*loss", line)]
    assert len(steps) == 4
    assert all(re.search(r"\(\d\d:\d\d left\)$", line) for line in steps[:3]) and "left" not in steps[3]
    assert "%|" not in told.stderr and "\r" not in told.stderr, told.stderr


def test_plain_lines_come_every_so_often(monkeypatch):
    for every, count in ((0.0, 5), (60.0, 0)):
        monkeypatch.setattr(progress, "EVERY", every)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with Bar(5, "Reading", "rows") as bar:
            for _ in range(5):
                bar.update()
        lines = sys.stderr.getvalue().splitlines()
        assert len(lines) == count
        assert all(re.fullmatch(r"Reading: \d/5 rows, [\d:]+ gone, [\d:]+ left", line) for line in lines), lines


def test_the_time_left_is_that_of_what_was_done_here(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Bar(20, "Training", "steps", initial=10) as bar:
        assert bar.left() == "?"
        bar.start_t -= 10
        bar.update(5)
        # Five steps in ten seconds; the ten before were another run's.
        assert bar.left() in ("00:10", "00:09")


def test_bars_that_are_left_over_are_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(RuntimeError), progress.lines_above_bars():
        Bar(2, "One", "rows")
        Bar(2, "Two", "rows")
        raise RuntimeError
    assert Bar.visible() is None
    with Bar(2, "Quiet", "rows", shown=False) as bar:
        bar.update()
        assert Bar.visible() is None
