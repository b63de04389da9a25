"""Wilson's interval: published values, the ends, and completions of one prompt that succeed together."""

import math
import random

import pytest

from hpt_trl.runs.intervals import change_error, clustered, wilson


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "count", "bounds"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_values(successes, count, bounds):
    assert wilson(successes / count, count) == pytest.approx(bounds, abs=5e-5)


def test_nothing_is_certain_at_the_ends():
    assert wilson(0.0, 8)[1] > 0.3 and wilson(1.0, 8)[0] < 0.7


def test_completions_of_one_prompt_count_as_far_as_they_differ():
    alone = clustered([0.0, 1.0] * 10, 1)
    # Four completions that all do the same say no more than one.
    assert clustered([0.0, 1.0] * 10, 4) == pytest.approx(alone)
    apart = clustered([0.5] * 20, 4)
    assert apart == pytest.approx(wilson(0.5, 80))
    between = clustered([0.25, 0.75] * 10, 4)
    assert between == pytest.approx(apart)
    assert apart[0] > clustered([0.0, 0.5, 0.5, 1.0] * 5, 4)[0] > alone[0]
    assert clustered([1.0] * 20, 4) == pytest.approx(wilson(1.0, 20))


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
