"""The benchmark of digests runs through, small."""

import json
import sys

from benchmarks import digests


def test_every_way_has_its_time(tmp_path, monkeypatch, capsys):
    words = ["--gib", "0.01", "--rounds", "2", "--folder", str(tmp_path), "--output", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["digests", *words])
    digests.main()
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["rounds"] == 2 and all(seconds > 0 for seconds in report["seconds"].values())
    # A file that is not read is not waited for.
    assert report["seconds"]["sizes"] < report["seconds"]["compare"]
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == list(report["seconds"])
