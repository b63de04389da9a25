"""Stages of a pipeline on the Hub."""

import json
import os
from pathlib import Path

import pytest
import yaml

from hpt_trl import cli
from hpt_trl.errors import UserError
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.runs.going_on import COMMAND as GOES_ON_BY
from tests.helpers.hub import READ_TOKEN, TOKEN


@pytest.fixture
def pipeline(recipe, tmp_path):
    """Writes a pipeline of sft and dpo, and returns its path."""
    recipes = {stage: recipe(stage, max_steps=1) for stage in ("sft", "dpo")}

    def write(**stages) -> Path:
        values = {
            "sft": {"recipe": recipes["sft"], "hub_token": TOKEN, "env": {"MY_KEY": TOKEN}},
            "dpo": {"recipe": recipes["dpo"], "model": "from:sft"},
        }
        values = {name: values[name] | changes for name, changes in stages.items()}
        path = tmp_path / "chain.yaml"
        path.write_text(
            yaml.safe_dump(
                {"stage": "pipeline", "output_dir": str(tmp_path / "chain"), "stages": values}, sort_keys=False
            )
        )
        return path

    return write


def test_each_stage_is_pushed_and_names_the_one_before_as_its_base(pipeline, hub, tmp_path, capfd):
    path, pushed = pipeline(sft={"push_to_hub": True}, dpo={"push_to_hub": True}), {"me/chain-sft", "me/chain-dpo"}
    assert cli.main(["run", str(path)]) == 0
    printed = capfd.readouterr()
    assert GOES_ON_BY not in os.environ, "what is said of the stages alone was left to the next run of this process"
    assert set(hub.repos) == pushed and all(f"Pushed: {hub.address}/{name}" in printed.out for name in pushed)
    assert all("model.safetensors" in hub.repos[name].files() for name in pushed)
    assert "base_model: me/chain-sft" in hub.repos["me/chain-dpo"].files()["README.md"].decode()
    written = [path.read_bytes() for path in (tmp_path / "chain").rglob("*") if path.is_file()]
    assert TOKEN not in printed.out + printed.err and not any(TOKEN.encode() in content for content in written)


@pytest.mark.slow
def test_a_push_that_fails_stops_no_stage_and_is_made_up_for(pipeline, hub, tmp_path, capfd):
    hub.fails = {"POST /api/models/me/chain-sft/commit/": 500}
    path, out = pipeline(sft={"push_to_hub": True}), tmp_path / "chain"
    assert cli.main(["run", str(path)]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: all stages are finished, but not all were pushed. stage `sft`: the run is finished")
    assert json.loads((out / "pipeline.json").read_text())["stages"]["sft"]["finished"]
    written = (out / "sft" / "results.json").read_bytes()

    hub.fails = {}
    assert cli.main(["run", str(path)]) == 0
    assert "finished before, not run again" in (said := capfd.readouterr().out) and "Pushed: " in said
    assert (out / "sft" / "results.json").read_bytes() == written
    assert "model.safetensors" in hub.repos["me/chain-sft"].files()
    asked = len(hub.asked)
    assert cli.main(["run", str(path)]) == 0 and len(hub.asked) == asked, "what is up was asked about again"
    assert cli.main(["push", str(out / "sft"), "--private", "true", "--hub_model_id", "me/by-hand"]) == 0
    assert cli.main(["push", str(out)]) == 2
    assert "name the folder of one of its stages: sft" in capfd.readouterr().err
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in file.read_bytes() for file in written)


def test_two_stages_do_not_share_a_repository(pipeline):
    same = {"push_to_hub": True, "hub_model_id": "me/x"}
    with pytest.raises(UserError, match=r"stages.dpo.hub_model_id`: stage `sft` is pushed to me/x as well"):
        read_plan(pipeline(sft=same, dpo=same), [])
    plan = read_plan(pipeline(sft=same, dpo={**same, "hub_revision": "dpo"}), [])
    assert [stage.is_pushed for stage in plan.stages] == [True, True]


def test_without_the_right_no_stage_is_run(pipeline, hub, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    path = pipeline(sft={"hub_token": None}, dpo={"push_to_hub": True})
    assert cli.main(["run", str(path)]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and "dpo" in said and "the token may read only" in said and READ_TOKEN not in said
    assert not (tmp_path / "chain" / "sft").exists() and not hub.repos
