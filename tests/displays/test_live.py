"""Curves of a training that goes on from a checkpoint: with the trainers of others, and in a notebook."""

import shutil
import sys

import nbformat
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import hpt_trl
from hpt_trl.runs import runner
from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import sums

sys.path.append(str(ROOT / "notebooks"))
from execute import execute


def stock(model: str, folder, live, **changes) -> SFTTrainer:
    """TRL's own trainer."""
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in sums(8)])
    settings = {
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    return SFTTrainer(model, SFTConfig(str(folder), **settings | changes), train_dataset=rows, callbacks=[live])


def test_a_trainer_of_trl_goes_on_with_the_curves_up_to_its_checkpoint(tiny_model_path, tmp_path, capsys):
    straight = hpt_trl.LiveCurves()
    stock(tiny_model_path, tmp_path, straight).train()
    assert not (tmp_path / "metrics.jsonl").exists()
    # What lies there is somebody else's.
    (tmp_path / "metrics.jsonl").write_text("not ours\n")
    capsys.readouterr()
    live = hpt_trl.LiveCurves()
    trainer = stock(tiny_model_path, tmp_path, live)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["step"] for line in live.lines] == [1, 2, 3, 4]
    assert live.lines[:2] == straight.lines[:2]
    assert [line["loss"] for line in live.lines] == [
        entry["loss"] for entry in trainer.state.log_history if "loss" in entry
    ]
    out = capsys.readouterr().out
    assert "step 3/4" in out and "step 2/4" not in out


def test_a_trainer_that_logged_nothing_before_its_checkpoint_goes_on(tiny_model_path, tmp_path):
    stock(tiny_model_path, tmp_path, hpt_trl.LiveCurves(), logging_steps=3).train()
    live = hpt_trl.LiveCurves()
    stock(tiny_model_path, tmp_path, live, logging_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["step"] for line in live.lines] == [3]


def test_a_run_in_a_notebook_goes_on_where_nothing_was_logged_before_its_checkpoint(recipe, tmp_path, monkeypatch):
    path, out = recipe("sft", save_strategy="steps", save_steps=2, logging_steps=3), tmp_path / "sft"
    runner.run(path, [])
    # As a run leaves it that was killed in its third step.
    (out / "results.json").unlink()
    shutil.rmtree(out / "checkpoint-4")
    (out / "metrics.jsonl").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = f"import hpt_trl\nhpt_trl.run({path!r}, resume_from_checkpoint=True).results['steps']"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    execute(notebook, tmp_path)
    shown = [output.data for output in notebook.cells[0].outputs if "data" in output]
    assert shown[-1]["text/plain"] == "4"
    assert any(data["text/plain"].startswith("step 4 of 4") for data in shown) and any(
        "image/png" in data for data in shown
    )
