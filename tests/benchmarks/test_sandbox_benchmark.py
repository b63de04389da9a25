"""The benchmark of sandboxes runs through, small."""

import json
import sys

import pytest

from benchmarks import sandbox


@pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox but on Linux")
def test_every_side_has_figures(tmp_path, monkeypatch, capsys):
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["sandbox", "--programs", "2", "--rounds", "2", "--output", str(output)])
    sandbox.main()
    report = json.loads(output.read_text())
    for sides in report["at_a_time"].values():
        assert set(sides) == {sandbox.BARE, *(isolation.backend.name for isolation in sandbox.working())}
        assert len(sides) > 1 and sides[sandbox.BARE]["times_bare"] == 1
        assert all(side["programs_per_second"] > 0 for side in sides.values())
    assert "PROGRAMS/S" in capsys.readouterr().out
