"""LoRA, an evaluation and a search index: what each is called, and what it says of itself."""

import pytest
import yaml

from tests.helpers.stage_runs import LORA, results
from tests.helpers.trackers import read_wandb
from tests.runs.trackers.test_wandb_and_trackio import offline, run_all  # noqa: F401

NAMED = LORA | {"lora_alpha": 8, "max_steps": 1}
SAID = {
    "model/use_peft": True,
    "model/lora_r": 4,
    "model/lora_alpha": 8,
    "model/lora_dropout": 0.0,
    "model/lora_target_modules": ["q_proj", "v_proj"],
}


@pytest.fixture
def index(tmp_path, searched) -> str:
    path = tmp_path / "pages.yaml"
    keys = {"stage": "index", "pages": str(searched.pages), "output_dir": str(tmp_path / "pages")}
    path.write_text(yaml.safe_dump(keys | {"report_to": ["wandb"]}))
    return str(path)


def test_lora_an_evaluation_and_an_index_by_wandb(recipe, evaluation, index, tmp_path, offline):  # noqa: F811
    lora = recipe("sft", **NAMED, report_to="wandb", test_split_size=2)
    codes, said = run_all(offline, *(([path], {}) for path in (lora, evaluation(report_to="wandb"), index)))
    assert codes == [0, 0, 0], said[-3000:]
    # Runs that begin within one second have no order.
    every = sorted(read_wandb(tmp_path), key=lambda one: ["sft", "evaluate", "pages"].index(one["name"]))
    trained, evaluated, indexed = every
    assert [one["config"]["recipe/stage"] for one in every] == ["sft", "evaluate", "index"]
    assert {one["project"] for one in every} == {"hpt-trl"} and {one["exit_code"] for one in every} == {0}

    assert {key: trained["config"].get(key) for key in SAID} == SAID
    # As the recipe has them, and as peft's own settings of the adapter that was trained.
    assert {f"recipe/{key.partition('/')[2]}" for key in SAID} <= trained["config"].keys()
    assert trained["config"]["peft_config"]["default"]["r"] == 4
    assert trained["summary"]["after/held_out/loss"] == results(tmp_path / "sft")["after"]["held_out"]["loss"]

    measures = results(tmp_path / "evaluate")["measures"]
    assert 0 < measures["pass@2"] < 1 and evaluated["summary"]["measures/pass@2"] == measures["pass@2"]
    (table,) = evaluated["tables"]["completions"]
    assert table["columns"][:3] == ["prompt", "answer", "completion"] and len(table["data"]) == 24

    assert indexed["summary"]["measures/pages"] == 12 and "peft_config" not in indexed["config"]
