"""`stage: evaluate` by the command line: what it leaves, goes on from, scores anew and refuses."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.evaluation.measures import pass_at_k
from tests.helpers.processes import ENVIRONMENT, hpt_trl
from tests.helpers.stage_runs import LORA, sums


def remainder(completion_ids, **columns) -> list[float]:
    """Solved or not by what was drawn, so that figures differ between rows."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def length(completion_ids, **columns) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


HERE = "tests.methods.evaluate.test_evaluate"


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe over 6 sums, 4 completions each, and returns its path."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sums(6)))

    def write(name: str = "evaluate", **changes) -> str:
        values = {
            "stage": "evaluate",
            "model_name_or_path": tiny_model_path,
            "dtype": "float32",
            "dataset_name": str(data),
            "output_dir": str(tmp_path / name),
            "reward_funcs": [f"{HERE}.remainder"],
            "measures": ["pass@k", "avg@k"],
            "n": 4,
            "k": [1, 2, 4],
            "temperature": 1.0,
            "max_completion_length": 8,
            "per_device_eval_batch_size": 5,
            "use_cpu": True,
            "seed": 3,
        } | changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def run(*words: str) -> None:
    assert main(list(words)) == 0


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def samples(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_figures_follow_from_the_completions(recipe, tmp_path, capsys):
    run("eval", recipe())
    drawn, measured = samples(tmp_path / "evaluate"), results(tmp_path / "evaluate")["measures"]
    assert [(line["index"], line["generation"]) for line in drawn] == [(i, g) for i in range(6) for g in range(4)]
    solved = [sum(sum(line["ids"]) % 2 for line in drawn[4 * row : 4 * row + 4]) for row in range(6)]
    assert len(set(solved)) > 1
    for k in (1, 2, 4):
        assert measured[f"pass@{k}"] == pytest.approx(sum(pass_at_k(4, c, k) for c in solved) / 6)
        low, high = measured[f"pass@{k}_interval"]
        assert low <= measured[f"pass@{k}"] <= high
    assert measured["avg@4"] == pytest.approx(sum(solved) / 24) == pytest.approx(measured["pass@1"])
    scored = [json.loads(line) for line in (tmp_path / "evaluate" / "scored.jsonl").read_text().splitlines()]
    assert [line["solved"] for line in scored] == [bool(sum(line["ids"]) % 2) for line in drawn]
    assert [line["completion"] for line in scored] == [line["completion"] for line in drawn]
    shown = capsys.readouterr().out
    assert f"pass@2:        {measured['pass@2']:.1%}  (95 % interval" in shown
    run("report", str(tmp_path / "evaluate"))
    assert f"pass@2:        {measured['pass@2']:.1%}  (95 % interval" in capsys.readouterr().out


def test_a_stopped_evaluation_goes_on_to_the_same_completions(recipe, tmp_path, capsys):
    run("eval", recipe())
    whole = (tmp_path / "evaluate" / "samples.jsonl").read_text()
    # As a kill leaves it: some batches in a part, the last line half written.
    folder = tmp_path / "evaluate"
    lines = whole.splitlines(keepends=True)
    (folder / "samples.jsonl").unlink()
    (folder / "results.json").unlink()
    (folder / "samples.0.part").write_text("".join(lines[8:20]) + lines[3][:40])
    capsys.readouterr()
    run("eval", recipe())
    assert "12 completions are there" in capsys.readouterr().out
    assert (folder / "samples.jsonl").read_text() == whole
    assert not list(folder.glob("*.part"))


def test_a_killed_evaluation_goes_on_to_the_same_figures(recipe, tmp_path):
    rows = tmp_path / "many.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in sums(120)))
    keys = {"dataset_name": str(rows), "max_completion_length": 24, "per_device_eval_batch_size": 4}
    command = [sys.executable, "-m", "hpt_trl", "eval", recipe("killed", **keys)]
    part = tmp_path / "killed" / "samples.0.part"
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not part.exists() or part.stat().st_size < 20_000):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    drawn = len(part.read_text().splitlines())
    assert 0 < drawn < 480 and not (tmp_path / "killed" / "results.json").exists()
    run("eval", recipe("killed", **keys))
    run("eval", recipe("whole", **keys))
    assert (tmp_path / "killed" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert results(tmp_path / "killed")["measures"] == results(tmp_path / "whole")["measures"]


def test_given_again_it_only_scores(recipe, tmp_path, monkeypatch):
    run("eval", recipe())
    before = (tmp_path / "evaluate" / "samples.jsonl").read_bytes()

    def refuse(*arguments, **settings):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("hpt_trl.runs.evaluating.load_model", refuse)
    run(
        "eval",
        str(tmp_path / "evaluate"),
        "--k",
        "1",
        "3",
        "--reward_funcs",
        f"{HERE}.length",
        "--success_threshold",
        "5",
    )
    measured = results(tmp_path / "evaluate")["measures"]
    assert "pass@3" in measured and "pass@2" not in measured
    assert measured["reward"] == pytest.approx(measured["mean_length"])
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"temperature": 0.7}, "temperature 1.0 there, 0.7 here"),
        ({"seed": 4}, "seed 3 there, 4 here"),
        ({"prompt_template": "Q: {prompt}"}, "prompts"),
    ],
)
def test_completions_of_something_else_are_not_taken(recipe, tmp_path, capsys, changes, said):
    run("eval", recipe())
    kept = (tmp_path / "evaluate" / "samples.jsonl").read_bytes()
    assert main(["eval", recipe(**changes)]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() == kept
    run("eval", recipe(**changes), "--overwrite", "true")
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() != kept


def test_another_models_completions_are_not_taken_under_the_same_name(recipe, tmp_path, tiny_model_path, capsys):
    from tests.helpers.tiny import save_tiny_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    run("eval", recipe(model_name_or_path=str(folder)))
    save_tiny_model(folder, seed=5)
    assert main(["eval", recipe(model_name_or_path=str(folder))]) == 2
    assert "weights" in capsys.readouterr().err


def test_two_processes_are_one(recipe, tmp_path):
    run("eval", recipe("one"))
    done = hpt_trl("eval", recipe("two"), "--accelerate", "cpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    first, second = tmp_path / "one", tmp_path / "two"
    assert (first / "samples.jsonl").read_text() == (second / "samples.jsonl").read_text()
    one, two = results(first), results(second)
    assert one["measures"] == two["measures"]
    assert two["hardware"]["processes"] == 2


def test_perplexity_of_answers_and_documents(recipe, tmp_path):
    run("eval", recipe("answers", measures=["perplexity"], reward_funcs=None, n=1, k=[1], temperature=0.0))
    measured = results(tmp_path / "answers")["measures"]
    assert measured["perplexity"] > 1 and measured["scored_tokens"] > 0 and "bits_per_byte" not in measured
    assert not (tmp_path / "answers" / "samples.jsonl").exists()
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": row["completion"]}) + "\n" for row in sums(6)))
    documents = {"dataset_name": str(text), "dataset_layout": "documents", "reward_funcs": None, "measures": None}
    run("eval", recipe("documents", **documents, n=1, k=[1], temperature=0.0))
    assert results(tmp_path / "documents")["measures"]["bits_per_byte"] > 0


def test_win_rate_against_itself_another_and_the_demonstrations(recipe, tmp_path, reference_model_path, capsys):
    keys = {"measures": ["win_rate"], "reward_funcs": [f"{HERE}.length"], "k": [1]}
    run("eval", recipe("first", **keys | {"measures": ["avg@k"]}, success_threshold=3.0))
    run("eval", recipe("itself", **keys, against=str(tmp_path / "first")))
    itself = results(tmp_path / "itself")["measures"]
    # The same completions: every pair has its mirror image.
    assert itself["win_rate"] == pytest.approx(0.5)
    run("eval", recipe("other", **keys, model_name_or_path=reference_model_path, against=str(tmp_path / "first")))
    run("eval", recipe("back", **keys, against=str(tmp_path / "other")))
    other, back = (results(tmp_path / name)["measures"]["win_rate"] for name in ("other", "back"))
    assert other + back == pytest.approx(1.0)
    run("eval", recipe("demonstrations", **keys, against="demonstrations"))
    assert 0 <= results(tmp_path / "demonstrations")["measures"]["win_rate"] <= 1
    assert main(["eval", recipe("none", **keys, against=str(tmp_path / "nothing"))]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err


def test_majorities_read_answers(recipe, tmp_path):
    keys = {"reward_funcs": ["math_answer"], "measures": ["maj@k"], "k": [1, 4]}
    run("eval", recipe(**keys))
    measured = results(tmp_path / "evaluate")["measures"]
    assert measured["maj@4"] == 0 and measured["without_answer"] > 0


def test_stop_texts_cut_and_end_completions(recipe, tmp_path):
    keys = {"measures": ["avg@k"], "max_completion_length": 24}
    run("eval", recipe("free", **keys))
    common = max(
        "abcdefghijklmnopqrstuvwxyz 0123456789",
        key=lambda letter: sum(letter in line["completion"] for line in samples(tmp_path / "free")),
    )
    run("eval", recipe("stopped", **keys, stop=[common]))
    free, stopped = samples(tmp_path / "free"), samples(tmp_path / "stopped")
    assert all(common not in line["completion"] for line in stopped)
    ended = [line for line in stopped if common in line["completion"] or not line["truncated"]]
    assert ended and sum(len(line["ids"]) for line in stopped) < sum(len(line["ids"]) for line in free)


def test_an_adapter_is_measured_over_its_base(recipe, tmp_path, tiny_model_path):
    rows = tmp_path / "sums.jsonl"
    sft = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(rows), "max_steps": 3}
    keys |= {"output_dir": str(tmp_path / "adapter"), "learning_rate": 0.05, "dtype": "float32", "use_cpu": True}
    sft.write_text(yaml.safe_dump(keys | LORA | {"report_to": "none", "bf16": False, "save_strategy": "no"}))
    run("run", str(sft))
    run("merge", str(tmp_path / "adapter"), str(tmp_path / "merged"))
    keys = {"measures": ["perplexity"], "reward_funcs": None, "n": 1, "k": [1], "temperature": 0.0}
    losses = {}
    for name, model in {"base": tiny_model_path, "lora": tmp_path / "adapter", "whole": tmp_path / "merged"}.items():
        run("eval", recipe(name, **keys, model_name_or_path=str(model)))
        losses[name] = results(tmp_path / name)["measures"]["loss"]
    assert losses["lora"] == pytest.approx(losses["whole"], rel=1e-4)
    assert losses["lora"] < losses["base"] - 0.01


def test_a_training_names_evaluations_for_its_before_and_after(recipe, tmp_path, tiny_model_path, capsys):
    inner = recipe("held_out", measures=["pass@k", "perplexity"])
    outer = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "sums.jsonl")}
    keys |= {"output_dir": str(tmp_path / "sft"), "max_steps": 3, "learning_rate": 0.01, "dtype": "float32"}
    keys |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    outer.write_text(yaml.safe_dump(keys | {"evaluations": ["held_out.yaml"]}))
    run("check", str(outer))
    assert "held_out (pass@k, perplexity on 6 rows)" in capsys.readouterr().out
    run("run", str(outer))
    found = results(tmp_path / "sft")
    before, after = (found[side]["evaluations"]["held_out"] for side in ("before", "after"))
    assert after["loss"] < before["loss"]
    shown = capsys.readouterr().out
    assert f"held_out after: perplexity:    {after['perplexity']:.4g}" in shown
    # What the trained model says of itself, measured by itself, is the same.
    run("eval", inner, "--model_name_or_path", str(tmp_path / "sft"))
    alone = results(tmp_path / "held_out")["measures"]
    assert alone["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert alone["pass@2"] == after["pass@2"]
    kept = tmp_path / "sft" / "evaluations" / "held_out" / "after" / "samples.jsonl"
    assert kept.read_text() == (tmp_path / "held_out" / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 0.1}, "`learning_rate`: the stage `evaluate` trains nothing"),
        ({"eval_samples": 3}, "`eval_samples`: the stage `evaluate` trains nothing"),
        ({"k": [8]}, "`k`: [8] with `n` 4"),
        ({"temperature": 0.0}, "greedy completions of one prompt are all the same"),
        ({"measures": ["pass@1"]}, "allowed: pass@k, avg@k, maj@k, perplexity, win_rate"),
        ({"measures": ["win_rate"]}, "`against`"),
        ({"reward_funcs": None}, "name at least one reward"),
        ({"dataset_layout": "documents"}, "documents hold no prompts to answer"),
        ({"dataset_test_split": "validation"}, "has no split `validation`"),
        ({"measures": ["perplexity"], "column_mapping": {"prompt": "prompt", "text": "completion"}}, "perplexity"),
        ({"use_peft": True}, "`use_peft`: the stage `evaluate` trains nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(recipe, tmp_path, capsys, changes, said):
    assert main(["eval", recipe(**changes)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "evaluate" / "results.json").exists()


def test_a_folder_with_a_training_is_left_alone(recipe, tmp_path, tiny_model_path, capsys):
    outer = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "sums.jsonl")}
    keys |= {"output_dir": str(tmp_path / "evaluate"), "max_steps": 1, "dtype": "float32", "use_cpu": True}
    recipe()
    outer.write_text(yaml.safe_dump(keys | {"bf16": False, "report_to": "none", "save_strategy": "no"}))
    run("run", str(outer))
    assert main(["eval", recipe()]) == 2
    assert "holds a run of `stage: sft`" in capsys.readouterr().err
    assert main(["eval", str(outer)]) == 2
    assert "`stage: sft`; allowed here: evaluate" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
