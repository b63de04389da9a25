"""The benchmarks on GSM8K: every share that they write has Wilson's interval of what was counted."""

import json

import pytest

from benchmarks import gsm8k_methods, gsm8k_reward_model
from benchmarks.shared import ROOT
from hpt_trl.evaluation.intervals import wilson


def recorded(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}-cpu.json").read_text())


def test_the_recorded_intervals_are_those_of_the_counts():
    shares = [
        (run[side], run[f"{side}_interval"], run["samples"])
        for run in recorded("gsm8k_methods")["runs"]
        for side in ("before", "after")
    ]
    pairs = recorded("gsm8k_reward_model")
    count = pairs["settings"]["held_out_pairs"]
    shares += [(found["accuracy"], found["interval"], count) for found in pairs["held_out"].values()]
    words = recorded("positive_words")
    shares += [
        (words[side]["success"], words[side]["success_interval"], words[side]["samples"])
        for side in ("base", "trained")
    ]
    for share, interval, count in shares:
        # Ties count half.
        assert 2 * share * count == pytest.approx(round(2 * share * count))
        assert interval == pytest.approx(wilson(share, count))


def test_a_method_that_solves_nothing_is_not_certain_to(tmp_path):
    sides = {"accuracy": 0.0, "accuracy_interval": list(wilson(0.0, 48)), "samples": 48}
    results = {"before": sides, "after": sides, "steps": 1, "wall_time_s": {"train": 60.0}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text('{"hpt/solved_mean": 0.0, "hpt/sft_fraction": 1.0}\n')
    found = gsm8k_methods.figure("hpt", 0, tmp_path)
    assert found["after"] == 0 and found["after_interval"][1] == pytest.approx(0.0741, abs=1e-4)


def test_verdicts_of_pairs():
    verdicts = [gsm8k_reward_model.preferred(gap) for gap in (0.3, -1.0, 0.0, 2.0)]
    found = gsm8k_reward_model.share(verdicts)
    assert found == {"accuracy": 0.625, "interval": list(wilson(0.625, 4))}
    # Pair by pair: what both get right or wrong says nothing of which is better.
    assert gsm8k_reward_model.difference(verdicts, verdicts) == {"accuracy": 0, "standard_error": 0}
