"""Better and worse are said beyond the error of the difference alone."""

import pytest

from hpt_trl.evaluation.intervals import wilson
from hpt_trl.pipeline import summary
from hpt_trl.pipeline.record import Record, StageRecord
from hpt_trl.runs import runner
from hpt_trl.runs.verdicts import _trials, standard_error, verdict
from tests.helpers.stage_runs import results


def shares(share: float, rows: int) -> dict:
    return {"held_out": {"accuracy": share}, "held_out_rows": rows}


def answered(accuracy: float, samples: int) -> dict:
    return {"accuracy": accuracy, "samples": samples, "num_generations": 1}


def losses(loss: float, error: float | None, change: float | None = None) -> dict:
    found = {"held_out": {"loss": loss}, "held_out_errors": {} if error is None else {"loss": error}}
    return found | ({} if change is None else {"held_out_change_errors": {"loss": change}})


@pytest.mark.parametrize(
    ("measure", "before", "after", "expected"),
    [
        ("held_out.loss", losses(2.0, 0.1), losses(1.5, 0.1), "better"),
        ("held_out.loss", losses(2.0, 0.1), losses(2.5, 0.1), "worse"),
        ("held_out.loss", losses(2.0, 0.2), losses(1.5, 0.2), "no clear difference"),
        # The same rows, each a little better: what they differ in among themselves does not matter.
        ("held_out.loss", losses(2.0, 0.2), losses(1.9, 0.2, 0.01), "better"),
        ("held_out.loss", losses(2.0, None), losses(1.5, 0.1), "no error known"),
        ("held_out.loss", losses(2.0, 0.0), losses(2.0, 0.0), "same"),
        # 45 and 60 of 75: a two-sided z-test has p = 0.007.
        ("held_out.accuracy", shares(0.6, 75), shares(0.8, 75), "better"),
        ("accuracy", answered(0.8, 75), answered(0.6, 75), "worse"),
        ("accuracy", answered(0.5, 10), answered(0.8, 10), "no clear difference"),
        # All right after none: two rows prove nothing, twenty do.
        ("accuracy", answered(0.0, 2), answered(1.0, 2), "no clear difference"),
        ("accuracy", answered(0.0, 20), answered(1.0, 20), "better"),
        ("reward", {"reward": 0.1, "reward_error": 0.02}, {"reward": 0.3, "reward_error": 0.02}, "better"),
        ("mean_length", {"mean_length": 8.0}, {"mean_length": 9.0}, "no error known"),
    ],
)
def test_a_verdict_needs_more_than_the_error(measure, before, after, expected):
    assert verdict(measure, before, after) == expected


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_trials_that_are_not_independent_count_for_less(share):
    # 50 prompts of 8 completions each that count as 80 trials: the interval says so.
    old = {"accuracy": share, "samples": 50, "num_generations": 8, "accuracy_interval": list(wilson(share, 80))}
    assert _trials("accuracy", old) == pytest.approx(80)
    assert _trials("accuracy", {**old, "accuracy_interval": None}) == 400


def test_the_standard_error_of_a_mean():
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.6454972)
    assert standard_error([1.0]) is None


def test_a_run_leaves_the_errors_that_verdicts_need(recipe, tmp_path, capsys):
    runner.run(recipe("dpo", max_steps=2, learning_rate=1e-6), [])
    found = results(tmp_path / "dpo")
    assert found["before"]["held_out_rows"] == 6 and found["before"]["held_out"]["rewards/accuracies"] == 0.5
    assert set(found["after"]["held_out_change_errors"]) >= {"loss", "rewards/margins"}
    for side in ("before", "after"):
        share = found[side]["held_out"]["rewards/accuracies"]
        assert found[side]["held_out_intervals"] == {"rewards/accuracies": list(wilson(share, 6))}
    printed = capsys.readouterr().out
    assert "(before: tie, policy and reference are the same)" in printed
    assert "Held-out pair accuracy before:  50.0%  (95 % interval 18.8% to 81.2%; 6 comparisons, all tie)" in printed
    stage = StageRecord("dpo", [], None, {}, finished=True)
    found = summary.measures(Record(tmp_path, "chain", ["dpo"], {"dpo": stage}))["dpo"]
    # From a tie to all six right, or to any other share: six comparisons decide nothing.
    assert found["held_out.rewards/accuracies"]["verdict"] in ("no clear difference", "same")
    runner.run(recipe("sft", max_steps=8), [])
    stage = StageRecord("sft", [], None, {}, finished=True)
    found = summary.measures(Record(tmp_path, "chain", ["sft"], {"sft": stage}))["sft"]
    assert found["held_out.loss"]["verdict"] == "better"
