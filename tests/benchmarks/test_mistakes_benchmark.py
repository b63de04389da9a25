"""The benchmark of mistakes runs through, small."""

import json
import sys

import pytest

from benchmarks import mistakes
from benchmarks.shared import ROOT


def test_both_sides_have_figures(tmp_path, monkeypatch, capsys):
    output = tmp_path / "figures.json"
    words = ["--rounds", "1", "--cases", "1", "--against", str(ROOT), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["mistakes", *words])
    mistakes.main()
    (sides,) = json.loads(output.read_text())["mistakes"].values()
    assert sides["here"]["calls"] == sides["there"]["calls"] == 1 and sides["there"]["times_here"] > 0
    assert "CALLS THERE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nine of them together", "a recipe of alignment-handbook"])
def test_all_that_is_planted_is_told_in_one_call(name, tmp_path):
    assert mistakes.told(mistakes.CASES[name], ROOT, tmp_path).calls == 1


def test_what_nobody_tells_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setitem(mistakes.SOUND, "optim", "nope")
    with pytest.raises(RuntimeError, match="max_steps not told"):
        mistakes.told({"max_steps": 3}, ROOT, tmp_path)
