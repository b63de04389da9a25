"""Whole runs of recipes on the tiny model: what they leave, resume, refuse and print."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.runs import reporting, runner
from tests.helpers.processes import ROOT

# A tiny model solves nothing, so a demonstration counts as solved only by the threshold: every prompt is gated.
KEYS = {
    "stage": "hpt",
    "dtype": "float32",
    "dataset_name": "arithmetic",
    "dataset_options": {"size": 32, "test_size": 8},
    "reward_funcs": ["math_answer"],
    "num_generations": 2,
    "global_batch_size": 8,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_completion_length": 12,
    "max_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "eval_samples": 6,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "seed": 3,
}


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe with the given keys on top of `KEYS` (None removes one) and returns its path."""

    def write(name: str = "tiny", **changes) -> str:
        values = {**KEYS, "model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "out"), **changes}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_model_metrics_results_recipe_and_curves(recipe, tmp_path, capsys):
    runner.run(recipe(), ["--eval_max_new_tokens", "6"])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
        "results.json",
        "recipe.yaml",
        "curves.png",
    }
    AutoTokenizer.from_pretrained(out)
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0

    results = json.loads((out / "results.json").read_text())
    assert results["recipe"] == "tiny" and results["stage"] == "hpt" and results["steps"] == 2
    for name in ("before", "after"):
        assert results[name]["samples"] == 6 and results[name]["max_new_tokens"] == 6
        assert 0 <= results[name]["accuracy"] <= 1 and len(results[name]["completions"]) == 6
    assert [e["prompt"] for e in results["before"]["completions"]] == [
        e["prompt"] for e in results["after"]["completions"]
    ]
    assert results["tokens"]["training"] > 0 and results["tokens"]["evaluation"] > 0
    assert results["wall_time_s"]["total"] >= results["wall_time_s"]["train"] > 0
    assert results["hardware"]["processes"] == 1 and results["versions"]["trl"]

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "hpt/sft_fraction" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all({"epoch", "reward", "hpt/solved_mean", "hpt/demo_nll", "loss"} <= set(line) for line in steps)

    stored = yaml.safe_load((out / "recipe.yaml").read_text())
    assert stored["eval_max_new_tokens"] == 6 and stored["stage"] == "hpt"
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    printed = capsys.readouterr().out
    assert "Held-out accuracy before:" in printed and "Held-out accuracy after:" in printed
    assert "[before, reward" in printed and str(out) in printed and "curves.png" in printed

    (out / "curves.png").unlink()
    reporting.report(out)
    assert (out / "curves.png").exists()
    assert "Held-out accuracy after:" in capsys.readouterr().out

    # The resolved recipe is a recipe: it gives the same weights again.
    runner.run(str(out / "recipe.yaml"), ["--output_dir", str(tmp_path / "again")])
    assert weights(tmp_path / "again") == weights(out)


def test_the_evaluation_does_not_change_the_training(recipe, tmp_path):
    runner.run(recipe(eval_temperature=1.0, output_dir=str(tmp_path / "with")), [])
    runner.run(recipe(eval_samples=0, output_dir=str(tmp_path / "without")), [])
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    results = json.loads((tmp_path / "without" / "results.json").read_text())
    assert results["before"] is None and results["after"] is None


def test_resume_goes_on_where_the_run_stopped(recipe, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    runner.run(recipe(max_steps=4, output_dir=str(straight), lr_scheduler_type="constant"), [])
    saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    runner.run(recipe(**saving, max_steps=2, output_dir=str(stopped)), [])
    before = json.loads((stopped / "results.json").read_text())["before"]
    # As a run that was killed leaves it: later steps and half a line are in the metrics, no results.
    (stopped / "results.json").rename(stopped / "before.json")
    (stopped / "before.json").write_text(json.dumps(before))
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 9}\n{"step": 4, "lo')
    (stopped / "checkpoint-3").mkdir()
    again = recipe(**saving, max_steps=4, output_dir=str(stopped))
    with pytest.raises(UserError, match=r"stopped after checkpoint-2.*--resume_from_checkpoint true"):
        runner.run(again, [])
    runner.run(again, ["--resume_from_checkpoint", "true"])
    assert weights(stopped) == weights(straight)
    results = json.loads((stopped / "results.json").read_text())
    assert results["before"] == before and results["steps"] == 4
    logged = [line["step"] for line in reporting.read_metrics(stopped) if "hpt/sft_fraction" in line]
    assert logged == [1, 2, 3, 4]
    # A finished run can be trained on; what it could do before any training stays known.
    runner.run(recipe(**saving, max_steps=5, output_dir=str(stopped)), ["--resume_from_checkpoint", "true"])
    results = json.loads((stopped / "results.json").read_text())
    assert results["before"] == before and results["steps"] == 5
    # Its checkpoint is no leave to write over another run.
    kept = weights(straight)
    elsewhere = ["--resume_from_checkpoint", str(stopped / "checkpoint-4")]
    with pytest.raises(UserError, match="finished run"):
        runner.run(recipe(**saving, max_steps=5, output_dir=str(straight)), elsewhere)
    assert weights(straight) == kept


def test_nothing_is_written_over(recipe, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    for words in ([], ["--overwrite", "true"]):
        with pytest.raises(UserError, match=r"output_dir.*not empty and holds no run"):
            runner.run(recipe(), words)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    other = str(tmp_path / "other")
    runner.run(recipe(eval_samples=0), ["--output_dir", other])
    before = {path: path.read_bytes() for path in Path(other).glob("*.*")}
    with pytest.raises(UserError, match=r"finished run.*--output_dir.*--overwrite true"):
        runner.run(recipe(eval_samples=0), ["--output_dir", other, "--max_steps", "1"])
    assert {path: path.read_bytes() for path in Path(other).glob("*.*")} == before
    (Path(other) / "notes.txt").write_text("mine")
    runner.run(recipe(eval_samples=0), ["--output_dir", other, "--max_steps", "1", "--overwrite", "true"])
    assert json.loads((Path(other) / "results.json").read_text())["steps"] == 1
    assert (Path(other) / "notes.txt").read_text() == "mine"


def test_a_run_of_another_recipe_that_did_not_finish_is_kept(recipe, tmp_path):
    out = tmp_path / "out"
    runner.run(recipe(eval_samples=0), [])
    (out / "results.json").unlink()
    with pytest.raises(UserError, match="another recipe"):
        runner.run(recipe(eval_samples=0, learning_rate=1e-4), [])
    runner.run(recipe(eval_samples=0), [])
    assert (out / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from_checkpoint": "true"}, "no complete checkpoint"),
        ({"resume_from_checkpoint": "nowhere"}, "there is no folder nowhere"),
        ({"resume_from_checkpoint": "true", "overwrite": True}, "resumed or started anew"),
        ({"eval_samples": 9}, r"9 rows, but arithmetic \(test\) has 8"),
        ({"eval_samples": 4, "dataset_options": {"size": 32, "test_size": 0}}, "no held-out rows"),
        ({"eval_num_generations": 4}, "eval_temperature"),
        ({"max_completion_length": 512}, "leave no room for a prompt"),
        ({"max_completion_length": 500}, "arithmetic, row .* tokens, more than 12"),
        ({"success_threshold": 1.5}, "at most 1 to the first 8 demonstrations, below `success_threshold` 1.5"),
        ({"reward_funcs": ["tests.runs.test_runner.constant"]}, "gives 0.5 to each .* constant reward"),
        ({"reward_funcs": ["tests.runs.test_runner.broken"]}, "`broken` raised KeyError.*row 1"),
        ({"model_name_or_path": "nowhere/at/all"}, "there is no folder nowhere/at/all"),
        ({"dataset_name": "missing.jsonl", "dataset_options": None}, "there is no file missing.jsonl"),
    ],
)
@pytest.mark.parametrize("command", [runner.run, check])
def test_mistakes_are_refused_before_anything_is_written(recipe, tmp_path, command, changes, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        command(recipe(**changes), [])
    assert not (tmp_path / "out").exists()


def constant(completions, **columns):
    return [0.5] * len(completions)


def broken(completions, **columns):
    return [columns["no_such_column"]]


def test_demonstrations_that_the_reward_calls_wrong_are_named(recipe, tmp_path):
    rows = [{"question": f"{i} + 1?", "solution": f"It is {i + 1}.", "answer": str(i + 1)} for i in range(12)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {"prompt": "question", "completion": "solution"}
    path = recipe(dataset_name=str(data), dataset_options=None, column_mapping=mapping, eval_samples=0)
    with pytest.raises(UserError, match=r"(?s)gives 0 to each of the first 8 demonstrations.*It is 1\.") as error:
        check(path, [])
    assert "data.jsonl, line 1" in str(error.value)


def test_check_prints_the_resolved_facts_and_writes_nothing(recipe, tmp_path, capsys):
    check(recipe(), [])
    printed = capsys.readouterr().out
    for fact in ("stage:", "hpt", "32 rows", "8 rows", "math_answer (weight 1)", "Calculate", "####", "peak memory"):
        assert fact in printed
    assert "1 process x 4 rows x 2 accumulation steps = 8 completions = 4 prompts x 2" in printed
    assert "6 rows x 1, greedy, up to 12 tokens" in printed
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_result_of_one(recipe, tmp_path):
    path = recipe(global_batch_size=16, per_device_eval_batch_size=4, eval_temperature=0.7)
    runner.run(path, ["--output_dir", str(tmp_path / "one")])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", str(port), "--config_file"]
    command += ["accelerate_configs/cpu.yaml", "-m", "hpt_trl", "run", path, "--output_dir", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Held-out accuracy after:") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["hardware"]["processes"] == 1 and two["hardware"]["processes"] == 2
    assert two["before"] == one["before"]
    assert two["tokens"]["training"] > 0 and two["steps"] == one["steps"] == 2
    first = [reporting.read_metrics(tmp_path / name)[0] for name in ("one", "two")]
    assert first[0]["hpt/sft_fraction"] == first[1]["hpt/sft_fraction"] == 1.0


def test_a_run_that_is_refused_in_two_processes_writes_nothing(recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "hpt_trl"]
    done = subprocess.run(
        [*command, "run", recipe(eval_samples=9)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and "error: " in done.stderr and "9 rows, but arithmetic (test) has 8" in done.stderr
    assert "hpt_trl/runs/preparation.py" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_lora_leaves_an_adapter(recipe, tmp_path):
    keys = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
    runner.run(recipe(**keys, max_steps=1), [])
    out = tmp_path / "out"
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()


def test_completions_are_logged_where_asked(recipe, tmp_path):
    runner.run(recipe(max_steps=1, eval_samples=0, log_completions=True), [])
    (table,) = (tmp_path / "out" / "completions").glob("*.parquet")
    assert load_dataset("parquet", data_files=str(table), split="train").num_rows == 8
