"""Every stage reports to TensorBoard: read back from its event files."""

import json

import pytest

from hpt_trl.cli import main
from hpt_trl.runs.trackers.run import TrackedRun
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.pretraining import MODEL
from tests.helpers.stage_runs import results
from tests.helpers.trackers import cells, read_tensorboard

REWARDS = {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "eval_samples": 3, "eval_max_new_tokens": 4}
STAGES = {
    "pretrain": {
        "model_config": MODEL,
        "model_name_or_path": None,
        "tokenizer_vocab_size": 400,
        "dataset_name": "stories:documents",
        "dataset_options": {"size": 60, "test_size": 6},
        "test_split_size": None,
        "max_length": 64,
    },
    "sft": REWARDS,
    "ref_tuning": {},
    "dpo": {},
    "reward": {},
    "critic": {"dataset_layout": "comparisons"},
    "rho1": {"select_ratio": 0.6, "dataset_layout": "demonstrations"},
    "mtp": {"n_future_tokens": 2, "weighting": "uniform"},
    "grpo": {"eval_samples": 3},
    "hpt": REWARDS | {"num_generations": 2, "max_completion_length": 8, "success_threshold": 5.0},
    "ppo": {"eval_samples": 3},
}
# Beside the loss, which every training has.
FIGURES = {"grpo": "accuracy", "ppo": "accuracy", "hpt": "accuracy"}
COUNTS = {"pretrain": 60, "ref_tuning": 24}
ROWS = {"dpo": "chosen", "reward": "chosen", "critic": "chosen", "pretrain": "text"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_leaves_settings_figures_and_samples(recipe, tmp_path, reference_model_path, stage):
    changes = STAGES[stage] | {"report_to": "tensorboard", "max_steps": 2}
    if stage == "ref_tuning":
        changes |= {"dataset_name": str(write_jsonl(tmp_path / "code.jsonl", solutions()))}
    if stage == "rho1":
        changes |= {"reference_model_name_or_path": reference_model_path}
    assert main(["run", recipe(stage, **changes)]) == 0
    out = tmp_path / stage
    scalars, texts, settings = read_tensorboard(out / "runs" / stage)
    found = results(out)

    # The trainer's own log, by transformers' callback, once.
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in lines if "loss" in line]
    assert scalars["train/loss"] == logged and logged[-1][0] == 2
    # What was held out, before and after.
    figure = FIGURES.get(stage, "loss")
    sides = [found[side][figure] if figure == "accuracy" else found[side]["held_out"][figure] for side in SIDES]
    assert scalars[f"held_out/{figure}"] == [(0, pytest.approx(sides[0])), (2, pytest.approx(sides[1]))]
    # The whole recipe, beside the trainer's arguments.
    assert settings["recipe/name"] == settings["recipe/stage"] == stage
    assert settings["batch/rows_per_step"] == 4 and settings["recipe/learning_rate"] == pytest.approx(3e-3)
    assert settings["model/use_peft"] == 0 and settings["data/rows"] == COUNTS.get(stage, 18)
    assert json.loads(texts["args"][0][1])["run_name"] == stage
    ((_, rows),) = texts["training_rows"]
    assert ROWS.get(stage, "prompt") in cells(rows)[0] and len(cells(rows)) > 4
    if stage in FIGURES:
        (header, *samples) = cells(texts["samples"][-1][1])
        assert [step for step, _ in texts["samples"]] == [1, 2] and len(samples) == 4
        assert {"mode", "prompt", "completion", "remainder"} <= set(header)
        assert ("advantage" in header) is (stage != "ppo")
        (header, *samples) = cells(texts["held_out_samples"][0][1])
        assert header == ["prompt", "answer", "before", "before remainder", "after", "after remainder"]
        assert [row[2] for row in samples] == [as_shown(line["completion"]) for line in found["before"]["completions"]]


SIDES = ("before", "after")


def as_shown(text: str) -> str:
    """Control characters as their pictures: what the tiny model draws is mostly these."""
    return "".join(chr(0x2400 + ord(sign)) if ord(sign) < 32 and sign != "\n" else sign for sign in text)


def test_hpt_says_what_each_rollout_is_used_as(recipe, tmp_path):
    """Prompts are solved by one reward, whose threshold lies between what rollouts have."""
    changes = STAGES["hpt"] | {"num_generations": 4, "per_device_train_batch_size": 8, "global_batch_size": 16}
    assert main(["run", recipe("hpt", **changes, report_to="tensorboard", max_steps=3)]) == 0
    scalars, texts, _ = read_tensorboard(tmp_path / "hpt" / "runs" / "hpt")
    shares = dict(scalars["train/hpt/sft_fraction"])
    seen = set()
    for step, text in texts["samples"]:
        (header, *rows) = cells(text)
        assert len(rows) == 16
        columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
        # By hand: a prompt none of whose four rollouts reaches the threshold is taught by its demonstration.
        groups = [range(first, first + 4) for first in range(0, 16, 4)]
        taught = [not any(float(columns["remainder"][row]) >= 5 for row in group) for group in groups]
        assert sum(taught) / 4 == pytest.approx(shares[step])
        for group, is_taught in zip(groups, taught, strict=True):
            rewards = {columns["remainder"][row] for row in group}
            expected = "SFT" if is_taught else "dropped" if len(rewards) == 1 else "RL"
            modes = {columns["mode"][row] for row in group}
            # A rollout whose reward is the mean of its group has no gradient of its own.
            assert modes == {expected} or (expected == "RL" and modes == {"RL", "dropped"})
            seen |= modes
            number = columns["prompt"][group[0]].split()[-3]
            assert {columns["demonstration"][row].strip() for row in group} == {f"It is {int(number) + 1}."}
    assert {"SFT", "RL"} <= seen


def test_tables_are_bounded_in_number_and_length(recipe, tmp_path):
    settings = {"max_steps": 25, "max_completion_length": 2, "num_generations": 2, "per_device_train_batch_size": 24}
    assert main(["run", recipe("grpo", **settings, report_to="tensorboard", num_completions_to_print=3)]) == 0
    _, texts, _ = read_tensorboard(tmp_path / "grpo" / "runs" / "grpo")
    assert [step for step, _ in texts["samples"]] == list(range(1, 26, 3))
    assert {len(cells(text)) for _, text in texts["samples"]} == {1 + 3}


def test_an_evaluation_reports_its_measures_and_completions(evaluation, tmp_path):
    path = evaluation(report_to="tensorboard", run_name="mine")
    assert main(["run", path]) == 0
    (folder,) = (tmp_path / "evaluate").glob("runs/*")
    scalars, texts, settings = read_tensorboard(folder)
    assert folder.name == "mine" and settings["recipe/stage"] == "evaluate"
    measures = results(tmp_path / "evaluate")["measures"]
    ((_, found),) = scalars["measures/pass@2"]
    assert found == pytest.approx(measures["pass@2"]) and 0 < found < 1
    (header, *rows) = cells(texts["completions"][0][1])
    assert header[:3] == ["prompt", "answer", "completion"] and len(rows) == 24


def test_an_index_reports_its_counts(tmp_path, searched):
    path = tmp_path / "index.yaml"
    path.write_text(f"stage: index\npages: {searched.pages}\noutput_dir: {tmp_path / 'out'}\nreport_to: tensorboard\n")
    assert main(["run", str(path)]) == 0
    scalars, _, settings = read_tensorboard(tmp_path / "out" / "runs" / "index")
    assert scalars["measures/pages"] == [(0, 12.0)] and settings["recipe/pages"] == str(searched.pages)


def test_the_variable_of_tensorboard_stands_above_the_recipe(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    assert main(["run", recipe("sft", report_to="tensorboard", max_steps=1)]) == 0
    scalars, _, _ = read_tensorboard(tmp_path / "logs")
    assert "train/loss" in scalars and not (tmp_path / "sft" / "runs").exists()


def test_a_run_that_goes_on_has_one_curve(recipe, tmp_path):
    path = recipe("sft", report_to="tensorboard", save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    assert main(["run", path]) == 0
    out = tmp_path / "sft"
    (out / "results.json").unlink()
    assert main(["run", path, "--resume_from_checkpoint", str(out / "checkpoint-2"), "--max_steps", "5"]) == 0
    scalars, texts, _ = read_tensorboard(out / "runs" / "sft")
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5]
    assert len(texts["training_rows"]) == 1
    assert [path.name for path in (out / "runs").iterdir()] == ["sft"]


@pytest.mark.parametrize("noted", ['{"tensorboard": {"fol', "null", "[1]", '{"tensorboard": 3}', '{"wandb": null}'])
def test_a_damaged_note_of_the_trackers_stops_nothing(tmp_path, noted, capsys):
    run = TrackedRun(name="sft", project="p", folder=tmp_path, settings={}, step=2)
    (tmp_path / "trackers.json").write_text(noted)
    assert run.earlier("wandb") == {} and "trackers.json is damaged" in capsys.readouterr().out
    run.keep("tensorboard", folder="runs/sft")
    assert run.earlier("tensorboard") == {"folder": "runs/sft"}


def test_what_is_not_known_of_a_step_is_no_point_of_a_curve(recipe, tmp_path, caplog):
    """Here the entropy of rollouts that were all left out, as no reward tells them apart."""
    rewards = REWARDS | {"reward_funcs": ["tests.runs.trackers.test_tensorboard.says_it_is"], "eval_samples": 0}
    changes = STAGES["hpt"] | rewards | {"report_to": "tensorboard", "max_steps": 1, "success_threshold": 1.0}
    assert main(["run", recipe("hpt", **changes)]) == 0
    scalars, _, _ = read_tensorboard(tmp_path / "hpt" / "runs" / "hpt")
    (line, *_) = [json.loads(line) for line in (tmp_path / "hpt" / "metrics.jsonl").read_text().splitlines()]
    assert line["entropy"] is None
    assert "train/entropy" not in scalars and "train/reward" in scalars
    assert "attempting to log" not in caplog.text


def says_it_is(completions, **columns):
    """What demonstrations do, and a model of random weights does not."""
    return [float("It is" in str(completion)) for completion in completions]
