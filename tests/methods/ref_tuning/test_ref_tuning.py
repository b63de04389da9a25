"""Ref-tuning by recipe: what it trains on, the models it keeps, resume, LoRA, two processes, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl.chat_template_utils as templates
import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.errors import UserError
from hpt_trl.methods.ref_tuning.checkpoints import checkpoint_steps
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.planning.check import check
from hpt_trl.runs import reporting, runner
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.preparation import prepare
from tests.helpers import stage_runs
from tests.helpers.code_problems import problems_with_lists, solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.processes import ROOT
from tests.helpers.templates import ENDLESS, THOUGHTS

KEYS = stage_runs.KEYS | {
    "stage": "ref_tuning",
    "test_split_size": 3,
    "per_device_eval_batch_size": 4,
    "max_steps": 5,
}
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj", "v_proj"],
}


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe over `solutions` with the given keys on top of `KEYS` (None removes one); returns its path."""
    data = write_jsonl(tmp_path / "code.jsonl", solutions())

    def write(**changes) -> str:
        values = {**KEYS, "dataset_name": str(data), "model_name_or_path": tiny_model_path}
        values |= {"output_dir": str(tmp_path / "out"), **changes}
        path = tmp_path / "ref.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def digest(folder: Path, file: str = "model.safetensors") -> str:
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


def test_the_loss_is_on_the_solution_and_its_end(recipe, tmp_path, tiny_model_path):
    # A tokenizer without a padding token pads with the end-of-sequence token, which is learnt all the same.
    folder = shutil.copytree(tiny_model_path, tmp_path / "no-pad")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = [row | {"output": f"\n\n{row['output']}\n"} for row in solutions()]
    data = write_jsonl(tmp_path / "code.jsonl", rows)
    trainer = build_trainer(prepare(recipe(model_name_or_path=str(folder), dataset_name=str(data)), []), [])
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(len(trainer.train_dataset))])
    assert (batch["input_ids"] == tokenizer.eos_token_id).sum() > len(batch["input_ids"])
    problems = {row["instruction"]: row for row in rows}
    given = 0
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        learnt = tokenizer.decode(labels[labels != -100])
        prompt = tokenizer.decode(ids[(labels == -100) & (mask == 1)])
        instruction = prompt.partition("### Instruction:\n")[2].partition("\n")[0]
        row = problems[instruction]
        assert learnt.startswith("n = int(input())\nprint(n + ") and learnt.endswith("<|im_end|>")
        assert learnt.count("<|im_end|>") == 1 and "\n<|im_end|>" not in learnt
        assert prompt.startswith("Below is an instruction that describes a task") and prompt.endswith("### Response:\n")
        assert ("### Input:\n" in prompt) == (row["input"] is not None)
        given += row["input"] is not None
    assert 0 < given < len(batch["labels"])


def test_a_run_keeps_models_along_the_way_and_the_best(recipe, tmp_path, capsys, caplog):
    path, out = recipe(n_samples=100, max_steps=10), tmp_path / "out"
    check(path, [])
    said = capsys.readouterr().out
    assert "36 of 63 solutions, of 9 of 9 problems (data_seed 0): 36 correct" in said
    assert "36 rows, prompts of up to" in said and "### Instruction:" in said and "demonstration:" in said
    assert "100 solutions are asked for, 36 are drawn" in caplog.text
    runner.run(path, [])
    kept = out / "checkpoints"
    names = ["20-percent", "40-percent", "60-percent", "80-percent", "best"]
    assert sorted(folder.name for folder in kept.iterdir()) == names
    said = capsys.readouterr().out
    assert f"{kept}: 20-percent, 40-percent, 60-percent, 80-percent, best (step " in said
    # On the shared measure: held-out loss, of TRL's trainer on its own rows.
    measured = [line for line in reporting.read_metrics(out) if "eval_loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4, 6, 8, 10]
    losses = {line["step"]: line["eval_loss"] for line in measured if line["step"]}
    best = min(losses, key=losses.__getitem__)
    assert digest(kept / "best") == digest(out if best == 10 else kept / f"{10 * best}-percent")
    assert len({digest(kept / name) for name in names[:4]} | {digest(out)}) == 5
    results = json.loads((out / "results.json").read_text())
    assert results["after"]["held_out"]["loss"] < results["before"]["held_out"]["loss"]
    for folder in (kept / "40-percent", kept / "best", out):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("print(", return_tensors="pt")["input_ids"]
        assert model(ids).logits.shape[-1] == len(tokenizer)
    # Without the models on the way the last one is the same.
    runner.run(path, ["--output_dir", str(tmp_path / "plain"), "--checkpoint_fraction", "null"])
    assert digest(tmp_path / "plain") == digest(out) and not (tmp_path / "plain" / "checkpoints").exists()


def test_a_worse_model_is_not_the_best(recipe, tmp_path):
    runner.run(recipe(learning_rate=0.3, lr_scheduler_type="constant", max_steps=4, checkpoint_fraction=0.25), [])
    out = tmp_path / "out"
    losses = {line["step"]: line["eval_loss"] for line in reporting.read_metrics(out) if line.get("eval_loss")}
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert best != 4 and digest(out / "checkpoints" / "best") == digest(out / "checkpoints" / f"{25 * best}-percent")


def test_a_stopped_run_goes_on_to_the_same_models(recipe, tmp_path):
    path = recipe(save_strategy="steps", save_steps=2, **LORA)
    runner.run(path, [])
    out = tmp_path / "out"
    folders = [out, *sorted((out / "checkpoints").iterdir())]
    assert len(folders) == 6
    straight = [digest(folder, "adapter_model.safetensors") for folder in folders]
    before = json.loads((out / "results.json").read_text())["before"]
    logged = losses_of(out)
    # A model that is kept takes no log from the training, nor a second evaluation.
    assert list(logged) == [1, 2, 3, 4, 5]
    # Killed at the fourth step, while it saved a model.
    (out / "results.json").unlink()
    (out / "before.json").write_text(json.dumps(before))
    shutil.rmtree(out / "checkpoint-4")
    shutil.rmtree(out / "checkpoint-5", ignore_errors=True)
    (out / "checkpoints" / "80-percent").rename(out / "checkpoints" / ".80-percent.partial")
    runner.run(path, ["--resume_from_checkpoint", "true"])
    assert [digest(folder, "adapter_model.safetensors") for folder in folders] == straight
    assert sorted([out, *(out / "checkpoints").iterdir()]) == sorted(folders)
    assert losses_of(out) == logged
    # An adapter is loaded over its base as any model is.
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "best")
    assert any("lora" in name for name, _ in model.named_parameters())


def losses_of(folder: Path) -> dict[int, tuple[float, float]]:
    """Step -> what was logged of the training there: its loss and the tokens until then."""
    lines = [line for line in reporting.read_metrics(folder) if "loss" in line]
    return {line["step"]: (line["loss"], line["num_tokens"]) for line in lines}


def test_a_step_is_evaluated_once(recipe, tmp_path):
    runner.run(recipe(max_steps=4, checkpoint_fraction=0.25, eval_strategy="steps", eval_steps=2), [])
    lines = reporting.read_metrics(tmp_path / "out")
    # The last one is also that of the run's end.
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 1, 2, 3, 4, 4]
    assert list(losses_of(tmp_path / "out")) == [1, 2, 3, 4]


@pytest.mark.parametrize("profile", ["cpu", "fsdp2"])
def test_two_processes_keep_the_models_of_one(recipe, tmp_path, profile):
    settings = {"max_steps": 4, "checkpoint_fraction": 0.5, "global_batch_size": 8, "logging_steps": 2, "use_cpu": None}
    path, two = recipe(**settings), tmp_path / "two"
    runner.run(path, ["--output_dir", str(tmp_path / "one")])
    words = ["run", path, "--output_dir", str(two), "--gradient_checkpointing", "true"]
    words += ["--accelerate", profile, "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "hpt_trl", *words], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Drawn from") == 2
    for folder in (".", "checkpoints/50-percent", "checkpoints/best"):
        models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / folder) for name in ("one", "two")]
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    losses = [
        [line["eval_loss"] for line in reporting.read_metrics(tmp_path / name) if "eval_loss" in line]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3


def test_fractions_of_runs_of_any_length():
    assert checkpoint_steps(1000, 0.1) == {100 * number: f"{10 * number}-percent" for number in range(1, 10)}
    assert checkpoint_steps(10, 0.3) == {3: "30-percent", 6: "60-percent", 9: "90-percent"}
    assert checkpoint_steps(8, 0.125)[1] == "12.5-percent"
    assert checkpoint_steps(3, 0.2) == {1: "40-percent", 2: "80-percent"}
    assert checkpoint_steps(1, 0.5) == {}


def test_solutions_that_do_not_fit_are_left_out(recipe, tmp_path, caplog):
    rows = solutions()
    rows[0] |= {"output": "print(1)\n" * 60}
    path = recipe(dataset_name=str(write_jsonl(tmp_path / "code.jsonl", rows)), max_length=256, test_split_size=None)
    prepared = prepare(path, [])
    assert len(prepared.splits.train) == 47 and prepared.splits.layout == "demonstrations"
    assert "1 of 48 solutions have more than 256 tokens" in caplog.text
    with pytest.raises(UserError, match=r"all 48 solutions of .* have more than 20 tokens"):
        prepare(path, ["--max_length", "20"])


@pytest.mark.parametrize("template", [ENDLESS, templates.deepseek_r1_distill_chat_template])
def test_messages_are_trained_as_check_shows_them(recipe, tmp_path, model_with, capsys, caplog, template):
    """Where the template ends no turn, and where it drops the thoughts of stored ones."""
    rows = [row | {"output": THOUGHTS} for row in solutions()]
    data = str(write_jsonl(tmp_path / "code.jsonl", rows))
    path = recipe(dataset_name=data, model_name_or_path=model_with(template), conversational=True, test_split_size=None)
    trainer = build_trainer(prepare(path, []), [])
    tokenizer = trainer.processing_class
    for row in trainer.train_dataset:
        trained = [label for label in row["labels"] if label != -100]
        text = tokenizer.decode(trained)
        assert "2 + 3 = 5\n</think>\n\n5" in text and trained.count(tokenizer.eos_token_id) == 1
    check(path, [])
    assert " ".join(f"⟦{text}⟧".split()) in " ".join(capsys.readouterr().out.split())
    # What the template adds counts: a limit that the texts alone would meet leaves all out.
    longest, plain = (
        max(len(row["input_ids"]) for row in build_trainer(prepare(path, words), []).train_dataset)
        for words in ([], ["--conversational", "false"])
    )
    assert plain < longest
    with pytest.raises(UserError, match="all 48 solutions"):
        shortest = min(len(row["input_ids"]) for row in trainer.train_dataset)
        prepare(path, ["--max_length", str(shortest - 1)])
    prepare(path, ["--max_length", str(longest)])
    assert "are left out" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": 0}, "`n_samples`: 0 is not allowed; allowed: 1 or more"),
        ({"correct_ratio": 0}, "`correct_ratio`: 0 is not allowed; allowed: above 0 to 1"),
        ({"correct_ratio": 0.5}, "`correct_ratio` gives shares of a number of solutions; write that number"),
        ({"difficulty_bins": [1]}, "`difficulty_bins`: .1.: write two or more rising edges, e.g. .1, 25."),
        ({"difficulty_bins": [7, 1]}, "write two or more rising edges"),
        ({"difficulty_weights": [1]}, r"one number of 0 or more for each bin of `difficulty_bins` \(0 here\)"),
        ({"difficulty_bins": [1, 25], "difficulty_weights": [0]}, r"\(1 here\), not all 0"),
        ({"difficulty_bins": [20, 25]}, "holds no correct solution .* whose difficulty is \\d+ to \\d+"),
        ({"checkpoint_fraction": 1}, "`checkpoint_fraction`: 1 is not allowed; allowed: above 0 to below 1, or null"),
        ({"test_split_size": 12}, "12 held-out problems, but .* has 12 problems"),
        ({"completion_only_loss": False}, "tuned on the solutions alone"),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "load_best_model_at_end"),
        ({"reward_funcs": ["exact_match"]}, "the stage `ref_tuning` uses no rewards"),
        ({"model_name_or_path": "outputs/nowhere"}, "there is no folder outputs/nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        runner.run(recipe(**changes), [])
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_teach_is_refused(recipe, tmp_path):
    rows = [row | {"is_correct": False} for row in solutions()]
    path = recipe(dataset_name=str(write_jsonl(tmp_path / "wrong.jsonl", rows)))
    with pytest.raises(UserError, match="none of its 9 problems has a correct solution"):
        runner.run(path, [])
    rows = solutions()
    del rows[2]["output"]
    path = recipe(dataset_name=str(write_jsonl(tmp_path / "no-output.jsonl", rows)))
    with pytest.raises(UserError, match="line 3: `output` is missing"):
        runner.run(path, [])


def test_a_pipeline_hands_the_reference_on(tmp_path, recipe):
    base = recipe()
    chain = tmp_path / "chain.yaml"

    def write(*lines: str) -> Path:
        head = {"stage": "pipeline", "output_dir": str(tmp_path / "chain")}
        chain.write_text(yaml.safe_dump(head) + "stages:\n" + "".join(f"  {line}\n" for line in lines))
        return chain

    rho1 = f"rho1: {{recipe: {base}, stage: rho1, reference: from:ref}}"
    plan = read_plan(write(rho1, f"ref: {{recipe: {base}}}"), [])
    assert [stage.name for stage in plan.stages] == ["ref", "rho1"] and plan.stages[1].uses == ["ref"]
    values = plan.resolved(plan.stages[1])
    assert values["reference_model_name_or_path"] == str(tmp_path / "chain" / "ref")
    # An adapter stays one: the reference is loaded with it.
    (tmp_path / "chain" / "ref").mkdir(parents=True)
    (tmp_path / "chain" / "ref" / "adapter_config.json").touch()
    assert plan.resolved(plan.stages[1]) == values
    with pytest.raises(UserError, match=r"stages.rho1.reference`: `ref` is a reward model.* gives tokens a likelihood"):
        read_plan(write(rho1, f"ref: {{recipe: {base}, stage: reward}}"), [])


def loss_of(model, rows: list[list[int]]) -> float:
    """Mean over the tokens of all rows, in nats."""
    with torch.no_grad():
        found = [-model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids in rows]
    losses = [loss.gather(-1, torch.tensor(ids[1:])[:, None]) for loss, ids in zip(found, rows, strict=True)]
    return torch.cat(losses).mean().item()


def test_rho1_takes_what_a_run_leaves_as_its_reference(recipe, tmp_path, tiny_model_path):
    short = ["--max_steps", "2", "--checkpoint_fraction", "0.5", "--learning_rate", "1e-2"]
    runner.run(recipe(), ["--output_dir", str(tmp_path / "whole"), *short])
    runner.run(recipe(**LORA), ["--output_dir", str(tmp_path / "lora"), *short])
    texts = [f"{row['instruction']} {row['output']}" for row in solutions(4, 1, 0)]
    data = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    keys = {"stage": "rho1", "dataset_layout": "documents", "dataset_name": str(data), "test_split_size": None}
    keys |= {"max_steps": 2, "reference_dtype": "float32", "reference_cache_dir": str(tmp_path / "scores")}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    rows = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
    start = loss_of(AutoModelForCausalLM.from_pretrained(tiny_model_path), rows)
    excesses = []
    for reference in ("whole", "whole/checkpoints/50-percent", "lora"):
        folder, out = str(tmp_path / reference), tmp_path / "rho1" / reference
        runner.run(recipe(**keys, reference_model_name_or_path=folder, output_dir=str(out)), [])
        AutoModelForCausalLM.from_pretrained(out)
        # All rows are in the first batch: the excess is that of the model as it was over this very reference.
        excesses.append(reporting.read_metrics(out)[0]["rho1/mean_excess"])
        expected = start - loss_of(AutoModelForCausalLM.from_pretrained(folder), rows)
        assert excesses[-1] == pytest.approx(expected, abs=1e-3)
    assert min(excesses) > 0.01 and len({round(excess, 2) for excess in excesses}) == 3


@pytest.mark.parametrize("name", ["sheared-llama-2.7b-codecontests", "sheared-llama-2.7b-codecontests-lora"])
def test_the_recipes_train_on_rows_as_codecontests_has_them(tmp_path, tiny_model_path, name):
    rows = Dataset.from_list(problems_with_lists(12))
    DatasetDict({"train": rows.select(range(10)), "valid": rows.select([10, 11])}).save_to_disk(tmp_path / "code")
    out = tmp_path / "out"
    overrides = {"dataset_name": tmp_path / "code", "model_name_or_path": tiny_model_path, "output_dir": out}
    overrides |= {"n_samples": 8, "num_train_epochs": 0.1, "use_cpu": True, "dataset_num_proc": "null"}
    # What these tiny rows do not fill.
    overrides |= {"global_batch_size": 4, "max_length": 256}
    runner.run(f"ref_tuning/{name}", [word for key, value in overrides.items() for word in (f"--{key}", str(value))])
    results = json.loads((out / "results.json").read_text())
    assert results["steps"] == 1 and results["after"]["held_out"]["loss"] > 0
    assert (out / ("adapter_model" if "lora" in name else "model")).with_suffix(".safetensors").exists()


def test_data_with_its_own_held_out_problems(recipe, tmp_path):
    rows = solutions()
    parts = {"train": rows[:42], "valid": rows[42:]}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "saved")
    keys = {"dataset_test_split": "valid", "test_split_size": None, "n_test_samples": 5}
    splits = prepare(recipe(dataset_name=str(tmp_path / "saved"), **keys), []).splits
    assert (len(splits.train), len(splits.test)) == (24, 5)
