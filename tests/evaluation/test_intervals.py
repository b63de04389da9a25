"""Wilson's interval: published values, the ends, and completions of one prompt that succeed together."""

import numpy as np
import pytest

from hpt_trl.evaluation.intervals import clustered, wilson


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
    apart = clustered([0.25, 0.75] * 10, 4)
    # 0.25 over the variance of the mean, 0.0625 / 19, less by Student's t with 19 degrees of freedom, 2.0930.
    assert apart == pytest.approx(wilson(0.5, 76 * (1.959964 / 2.0930) ** 2), abs=1e-4)
    # Never more trials than completions.
    assert clustered([0.5, 0.5, 0.5, 0.75] * 5, 4) == pytest.approx(wilson(0.5625, 80))
    assert apart[0] > clustered([0.0, 0.5, 0.5, 1.0] * 5, 4)[0] > alone[0]
    assert clustered([1.0] * 20, 4) == pytest.approx(wilson(1.0, 20))


@pytest.mark.parametrize("shares", [[0.5], [0.5, 0.5], [0.25] * 6])
def test_prompts_that_do_not_differ_count_once_each(shares):
    assert clustered(shares, 20) == pytest.approx(wilson(shares[0], len(shares)))


@pytest.mark.parametrize("rows", [3, 6, 30])
def test_few_rows_are_covered(rows):
    """Rows with shares of their own, drawn from a known population, whose mean the interval is to hold."""
    generator, size, hits = np.random.default_rng(rows), 8, 0
    for _ in range(2000):
        # Uniform over 0 to 1, whose mean is a half.
        solved = generator.binomial(size, generator.random(rows)) / size
        low, high = clustered(solved.tolist(), size)
        hits += low <= 0.5 <= high
    assert hits / 2000 > 0.93
