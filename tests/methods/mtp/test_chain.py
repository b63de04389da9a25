"""The bundled chain, cut to seconds, from random weights to code that is run."""

import json
from pathlib import Path

from hpt_trl.cli import main
from hpt_trl.token_scores.weighting import STATE_FILE
from tests.helpers.functions_chain import short_chain


def test_from_random_weights_to_code_that_is_run(tmp_path, capfd):
    # The evaluation of the other arm is the same once more.
    stages = ["pretrain", "ref_tuning", "critic", "verifiable", "evaluate"]
    path = short_chain(tmp_path / "chain.yaml", stages, tmp_path / "out")
    assert main(["run", path]) == 0, capfd.readouterr().err
    capfd.readouterr()

    def results(name: str) -> dict:
        return json.loads((tmp_path / "out" / name / "results.json").read_text())

    assert results("critic")["critic"]["baselines"].keys() >= {"length", "likelihood"}
    assert results("verifiable")["after"]["held_out"]["loss"] < results("verifiable")["before"]["held_out"]["loss"]
    state = json.loads((last_checkpoint(tmp_path / "out" / "verifiable") / STATE_FILE).read_text())
    assert state["statistics"]["std"] > 0
    measures = results("evaluate")["measures"]
    assert measures["rows"] == 3 and measures["unscored"] == 0 and 0 <= measures["pass@1"] <= measures["pass@2"] <= 1
    scored = (tmp_path / "out" / "evaluate" / "scored.jsonl").read_text().splitlines()
    assert len(scored) == 6 and all(json.loads(line)["completion"] for line in scored)
    # An evaluation that was stopped goes on, and nothing else is run again.
    folder, samples = tmp_path / "out" / "evaluate", tmp_path / "out" / "evaluate" / "samples.jsonl"
    whole, kept = samples.read_text(), samples.read_text().splitlines(keepends=True)[:3]
    samples.rename(folder / "samples.0.part").write_text("".join(kept))
    (folder / "results.json").unlink()
    assert main(["run", path]) == 0
    said = capfd.readouterr().out
    assert "goes on (from the completions that are there)" in said and said.count("finished before, not run again") == 4
    assert results("evaluate")["measures"] == measures and samples.read_text() == whole


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
