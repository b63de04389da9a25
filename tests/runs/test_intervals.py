"""Wilson's interval: published values, the ends, and completions of one prompt that succeed together."""

import pytest
from scipy.stats import binomtest

from hpt_trl.runs.intervals import clustered, wilson


@pytest.mark.parametrize(("successes", "count"), [(0, 96), (96, 96), (1, 3), (48, 96), (69, 96)])
def test_wilson_is_scipys(successes, count):
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson(successes / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_nothing_is_certain_at_the_ends():
    assert wilson(0.0, 8)[1] > 0.3 and wilson(1.0, 8)[0] < 0.7


def test_completions_of_one_prompt_count_as_far_as_they_differ():
    alone = clustered([0.0, 1.0] * 10, 1)
    # Four completions that all do the same say no more than one.
    assert clustered([0.0, 1.0] * 10, 4) == pytest.approx(alone)
    apart = clustered([0.5] * 20, 4)
    assert apart == pytest.approx(wilson(0.5, 80))
    between = clustered([0.25, 0.75] * 10, 4)
    assert apart[0] > between[0] > alone[0] or between == pytest.approx(apart)
    assert clustered([1.0] * 20, 4) == pytest.approx(wilson(1.0, 20))
