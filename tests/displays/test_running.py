"""Recipes run and looked at from Python, and what a model writes."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import hpt_trl
from hpt_trl.displays.words import TRIAL
from hpt_trl.errors import UserError
from tests.displays.test_output import Balanced
from tests.helpers.stage_runs import LORA, sums


def test_a_recipe_runs_and_is_read_back(recipe, tmp_path, capsys):
    path = recipe("sft")
    run = hpt_trl.run(path, max_steps=2, output_dir=str(tmp_path / "here"))
    assert isinstance(run, hpt_trl.Run) and str(run.folder) == str(tmp_path / "here")
    assert run.results["steps"] == 2 and "--max_steps=2" in run.results["command"]
    # Outside of a notebook as on the command line.
    assert "Held-out loss" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a finished run"):
        hpt_trl.run(path, max_steps=2, output_dir=str(tmp_path / "here"))
    assert hpt_trl.run(path, max_steps=1, output_dir=str(tmp_path / "here"), overwrite=True).results["steps"] == 1


def test_mistakes_are_messages(recipe):
    with pytest.raises(UserError, match=r"max_step.*[Dd]id you mean.*max_steps"):
        hpt_trl.run(recipe("sft"), max_step=2)
    with pytest.raises(UserError, match=r"there is no recipe `quickstar`"):
        hpt_trl.run("quickstar")
    error = UserError("something is wrong")
    assert error._render_traceback_() == ["UserError: something is wrong"]


def test_the_trial_file_makes_runs_short(recipe, tmp_path, monkeypatch):
    path = recipe("sft")
    trial = tmp_path / "trial.yaml"
    trial.write_text(json.dumps({path: {"max_steps": 1}}))
    monkeypatch.setenv(TRIAL, str(trial))
    assert hpt_trl.run(path, max_steps=4).results["steps"] == 1


def test_look_shows_what_is_trained_and_writes_nothing(recipe, tmp_path):
    path = recipe("sft")
    hpt_trl.run(path, max_steps=1)
    before = sorted(found.name for found in (tmp_path / "sft").iterdir())
    # Also where a finished run lies.
    look = hpt_trl.look(path, count=2)
    assert sorted(found.name for found in (tmp_path / "sft").iterdir()) == before
    assert look.model == look.prepared.model and len(look.rows) == 2
    pieces = dict(look.rows[0])["prompt and demonstration"]
    trained = "".join(text for text, is_trained in pieces if is_trained)
    plain = "".join(text for text, is_trained in pieces if not is_trained)
    row = look.prepared.splits.train[0]
    assert row["completion"][0]["content"] in trained and row["prompt"][0]["content"] in plain
    shown = Balanced(look._repr_html_())
    assert row["prompt"][0]["content"] in shown.text and "18 training rows" in shown.text
    assert f"⟦{trained}⟧" in repr(look)
    assert look.prompts(2) == look.prepared.splits.test["prompt"][:2]


def test_look_at_comparisons_and_documents(recipe, tmp_path):
    parts = dict(hpt_trl.look(recipe("dpo"), count=1).rows[0])
    assert "chosen" in parts and "rejected" in parts and not any(trained for _, trained in parts["prompt"])
    assert "It is" in "".join(text for text, trained in parts["chosen"] if trained)
    look = hpt_trl.look("pretrain/stories-tiny", count=1, dataset_options={"size": 300, "test_size": 4})
    [(name, [(text, trained)])] = look.rows[0]
    assert name == "document" and trained and text.endswith("<|eos|>")
    with pytest.raises(UserError, match="no held-out prompts"):
        look.prompts()


def test_completions_are_those_of_transformers(tiny_model_path):
    prompts = ["What is 12 + 7?", "The sum"]
    found = hpt_trl.complete(tiny_model_path, prompts, max_new_tokens=8)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    for prompt, texts in zip(prompts, found.texts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert texts == [tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)]
    assert prompts[0] in Balanced(found._repr_html_()).text and f"> {prompts[0]}" in repr(found)
    again = hpt_trl.complete(model, prompts, tokenizer=tokenizer, max_new_tokens=8)
    assert again.texts == found.texts


def test_several_draws_and_messages(tiny_model_path):
    found = hpt_trl.complete(tiny_model_path, ["3 + 4"], chat=True, n=3, temperature=1.0, max_new_tokens=6)
    assert len(found.texts[0]) == 3 and len(set(found.texts[0])) > 1
    asked = [[{"role": "user", "content": "3 + 4"}]]
    assert hpt_trl.complete(tiny_model_path, asked, n=3, temperature=1.0, max_new_tokens=6).texts == found.texts
    with pytest.raises(UserError, match="greedy"):
        hpt_trl.complete(tiny_model_path, ["3"], n=2)
    with pytest.raises(UserError):
        hpt_trl.complete("no/such-model-here", ["3"])


def test_an_adapter_completes_and_merges_into_a_model_that_says_the_same(recipe, tmp_path, capsys):
    run = hpt_trl.run(recipe("sft", **LORA))
    said = hpt_trl.complete(run.folder, ["What is 3 + 1?"], max_new_tokens=8).texts
    capsys.readouterr()
    merged = run.merge(tmp_path / "merged")
    # Neither bars nor what others warn of.
    assert capsys.readouterr().err == ""
    assert hpt_trl.complete(merged, ["What is 3 + 1?"], max_new_tokens=8).texts == said
    with pytest.raises(UserError, match="not empty"):
        run.merge(tmp_path / "merged")


def test_live_curves_are_lines_outside_of_a_notebook(tiny_model_path, tmp_path, capsys):
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in sums(8)])
    arguments = SFTConfig(
        str(tmp_path), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no"
    )
    live = hpt_trl.LiveCurves("sums")
    trainer = SFTTrainer(tiny_model_path, arguments, train_dataset=rows, callbacks=[live])
    trainer.train()
    out = capsys.readouterr().out
    assert "step 1/2" in out and "step 2/2" in out
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert [line["loss"] for line in live.lines if "loss" in line] == losses
    assert hpt_trl.complete(trainer, ["3"], max_new_tokens=4).model == "the trainer's model"
