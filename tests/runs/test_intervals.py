"""Intervals and errors against closed forms and simulated draws."""

import math
import random

import pytest

from hpt_trl.runs.intervals import change_error, wilson


def test_wilson_has_a_width_at_the_ends_and_is_the_score_intervals_solution():
    assert wilson(0, 48) == pytest.approx((0, 0.0741), abs=1e-3)
    assert wilson(48, 48) == pytest.approx((1 - wilson(0, 48)[1], 1))
    for count, trials in ((3, 10), (50, 96), (1, 2)):
        for bound in wilson(count, trials):
            # The interval's ends are the shares from which the found one is 1.96 of their own errors away.
            assert abs(count / trials - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / trials))
    with pytest.raises(ValueError):
        wilson(0, 0)


def test_the_error_of_a_change_is_that_of_repeated_draws():
    generator = random.Random(0)

    def share(p: float) -> dict:
        return {"accuracy": sum(generator.random() < p for _ in range(60)) / 60, "samples": 30, "num_generations": 2}

    changes = [share(0.7)["accuracy"] - share(0.3)["accuracy"] for _ in range(4000)]
    mean = sum(changes) / len(changes)
    drawn = math.sqrt(sum((change - mean) ** 2 for change in changes) / len(changes))
    one, other = ({"accuracy": p, "samples": 30, "num_generations": 2} for p in (0.3, 0.7))
    assert change_error(one, other, "accuracy") == pytest.approx(drawn, rel=0.05)
    assert change_error({**one, "accuracy": 0.0}, {**other, "accuracy": 0.0}, "accuracy") > 0


def test_a_paired_error_comes_before_those_of_the_two_sides():
    before, after = {"held_out_error": {"loss": 3.0}}, {"held_out_error": {"loss": 4.0}}
    assert change_error(before, after, "held_out.loss") == 5.0
    assert change_error(before, after | {"held_out_change_error": {"loss": 0.5}}, "held_out.loss") == 0.5
    assert change_error(before, after, "mean_length") is None
