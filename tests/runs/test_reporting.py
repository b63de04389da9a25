"""The files of a run: metrics line by line, curves and summary, also of runs that stopped or broke."""

import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from hpt_trl import reading
from hpt_trl.errors import UserError
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.runs import curves, progress, reporting

pytestmark = pytest.mark.usefixtures("pictures_drawn_anew")


def lines(count: int) -> list[dict]:
    generator = random.Random(0)
    return [
        {
            "step": step,
            "reward": step / count,
            "hpt/solved_mean": step / count,
            "hpt/sft_fraction": 1 - step / count,
            "hpt/off_fraction": 0.0,
            "hpt/sft_loss": 1 / step,
            "hpt/rl_loss": generator.gauss(0, 0.1),
            "completions/mean_length": 40.0,
            "completions/clipped_ratio": 0.5,
        }
        for step in range(1, count + 1)
    ]


def evaluation(accuracy: float, completion: str) -> dict:
    entry = {"row": 0, "prompt": "What is 2 + 3?", "completion": completion, "reward": accuracy, "answer": "5"}
    return {
        "accuracy": accuracy,
        "samples": 96,
        "num_generations": 1,
        "mean_length": 20.0,
        "completions": [entry | {"length": 5}],
    }


def results(steps: int) -> dict:
    return {
        "recipe": "quickstart",
        "stage": "hpt",
        "model": "smollm2-135m",
        "steps": steps,
        "before": evaluation(0.0104, "No idea."),
        "after": evaluation(0.5, "2 + 3 = 5\n#### 5"),
        "wall_time_s": {"total": 372.4, "train": 300.0, "evaluation": 72.0},
        "tokens": {"training": 123456, "evaluation": 1000},
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(20)))
    reading.write_results(tmp_path, results(20))
    return tmp_path


def writer(folder, *, step: int, known: int = 1) -> tuple:
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    state = TrainerState(global_step=step, epoch=step / 10, is_world_process_zero=True)
    state.log_history = [{"step": step - 1}, *[{"step": step}] * known]
    callback = progress.MetricsWriter(folder)
    callback.on_train_begin(arguments, state, TrainerControl())
    return callback, arguments, state


def test_metrics_are_valid_json_whatever_is_logged(tmp_path):
    callback, arguments, state = writer(tmp_path, step=0)
    logs = {"loss": math.nan, "reward": torch.tensor(0.5), "kl": math.inf, "n": np.float32(2), "none": None, "epoch": 9}
    callback.on_log(arguments, state, TrainerControl(), logs=logs)
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line == {"step": 0, "epoch": 0.0, "loss": None, "reward": 0.5, "kl": None, "n": 2.0, "none": None}


def test_a_resumed_run_keeps_the_lines_up_to_its_step(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "re')
    callback, arguments, state = writer(folder, step=12)
    assert [line["step"] for line in reporting.read_metrics(folder)] == list(range(1, 13))
    state.global_step = 13
    callback.on_log(arguments, state, TrainerControl(), logs={"reward": 1.0})
    assert reporting.read_metrics(folder)[-1] == {"step": 13, "epoch": 1.2, "reward": 1.0}
    writer(folder, step=0)
    assert (folder / "metrics.jsonl").read_text() == ""


def test_a_resumed_run_says_again_what_came_after_its_checkpoint(folder):
    metrics = folder / "metrics.jsonl"
    before = metrics.read_text()
    closing = '{"step": 20, "epoch": 2.0, "eval_loss": 1.0}\n{"step": 20, "epoch": 2.0, "train_loss": 1.0}\n'
    metrics.write_text(before + closing)
    writer(folder, step=20)
    assert metrics.read_text() == before
    metrics.write_text(before + closing)
    # An evaluation between the steps comes before the checkpoint.
    writer(folder, step=20, known=2)
    assert [sorted(line) for line in reporting.read_metrics(folder)[20:]] == [["epoch", "eval_loss", "step"]]


def test_another_process_writes_nothing(tmp_path):
    callback, arguments, state = progress.MetricsWriter(tmp_path / "new"), None, TrainerState()
    state.is_world_process_zero = False
    callback.on_train_begin(arguments, state, TrainerControl())
    callback.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "new").exists()


def test_report_redraws_the_curves_and_prints_the_summary(folder, capsys):
    reporting.report(folder)
    printed = capsys.readouterr().out
    assert "quickstart: hpt on smollm2-135m" in printed
    assert "20 steps in 6 min 12 s (training 5 min 00 s" in printed
    assert "before:   1.0%" in printed and "after:   50.0%" in printed
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1500 and picture.height > 900
        # Not an empty sheet: the curves bring their colours.
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 100
    assert not list(folder.glob(".*"))


def test_report_of_a_run_that_has_not_finished(folder, capsys):
    (folder / "results.json").unlink()
    reporting.report(folder)
    assert "Not finished: 20 steps are logged" in capsys.readouterr().out
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize("count", [1, 3, 400])
@pytest.mark.parametrize("keys", [["reward"], ["loss"], ["completions/clipped_ratio", "hpt/sft_fraction"]])
def test_curves_of_any_length_and_with_panels_left_out(tmp_path, count, keys):
    few = [{"step": step, **dict.fromkeys(keys, 0.5)} for step in range(1, count + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in few))
    assert reporting.draw_curves(tmp_path).stat().st_size > 5000


def test_centred_means_are_those_of_the_neighbours():
    generator = random.Random(3)
    values = [generator.gauss(0, 1) for _ in range(260)]
    means = curves.centred_means(values)
    for place, mean in enumerate(means):
        assert mean == pytest.approx(np.mean(values[max(0, place - 5) : place + 6]))
    assert curves.centred_means(values[:49]) is None


def test_series_that_say_nothing_of_their_own_are_left_out():
    logged = curves.logged_series(lines(5))
    assert "reward" not in logged and "hpt/off_fraction" not in logged
    assert logged["hpt/sft_fraction"][0] == (1, 0.8)
    shifted = [line | {"reward": line["reward"] + 1, "hpt/off_fraction": 0.1} for line in lines(5)]
    assert {"reward", "hpt/off_fraction"} <= set(curves.logged_series(shifted))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not the output folder of a run"),
        ("", "is empty"),
        ('{"step": 1}\nnonsense\n{"step": 2}\n', "line 2: not a JSON object with a `step`"),
        ('{"loss": 1}\n', "line 1"),
        ("[1]\n", "line 1"),
        ('{"step": 1, "unknown": 2}\n', "no metric that can be drawn"),
    ],
)
def test_missing_and_broken_metrics_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        reporting.report(tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_broken_results_are_named(folder):
    for text in ("{", "[]"):
        (folder / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results\.json"):
            reporting.report(folder)


def test_completions_side_by_side():
    before, after = evaluation(0.0, "I think that it is six, " * 20), evaluation(1.0, "2 + 3 = 5\n#### 5")
    text = reporting.side_by_side(before, after, width=80)
    rows = text.splitlines()
    assert rows[0] == "What is 2 + 3?   (answer: 5)"
    assert rows[1].startswith("[before, reward 0]") and rows[1].endswith("| [after, reward 1]")
    assert rows[3].endswith("| #### 5")
    assert all(len(row) <= 80 for row in rows) and len(rows) <= 10


def test_pair_accuracy_comes_with_its_interval():
    def found(share: float, margin: float, ties: float) -> dict:
        measures = {"loss": 0.7, "rewards/accuracies": share, "rewards/margins": margin, "rewards/ties": ties}
        interval = list(wilson(share, 60))
        return {"held_out": measures, "held_out_rows": 60, "held_out_intervals": {"rewards/accuracies": interval}}

    before, after = found(0.5, 0.0, 1.0), found(1.0, 0.2, 0.0)
    assert reporting.evaluation_lines(before, after) == [
        "Held-out loss: 0.7 -> 0.7",
        "Held-out pair accuracy before:  50.0%  (95 % interval 37.7% to 62.3%; 60 comparisons, all tie)",
        # Not certain: 60 of 60 may come out by chance.
        "Held-out pair accuracy after:  100.0%  (95 % interval 94.0% to 100.0%; 60 comparisons)",
        "Held-out margin: 0 -> 0.2 (before: tie, policy and reference are the same)",
    ]
    # An older run's results.
    assert reporting.evaluation_lines(None, {"held_out": {"accuracy": 0.62, "margin": 0.1}}) == [
        "Held-out pair accuracy after:   62.0%",
        "Held-out margin: 0.1",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (303, "5 min 03 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds, text):
    assert reporting.duration(seconds) == text
