"""Which reward decides what is solved, and which thresholds it can decide."""

import math

import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.functions import math_answer
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.positive_words import positive_words
from hpt_trl.rewards.success import check_threshold, is_solved, reward_range, success_index

NAMES = ["math_answer", "boxed_format", "brevity", "reward"]


@pytest.mark.parametrize(
    ("given", "index"),
    [(None, 0), ("boxed_format", 1), ("my_package.rewards.brevity", 2), ("outputs/run/reward/", 3), ("reward", 3)],
)
def test_the_first_reward_decides_or_the_one_that_is_named(given, index):
    assert success_index(NAMES, given) == index


def test_an_unknown_success_reward_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(UserError, match=r"Did you mean `math_answer`\? Allowed: math_answer, boxed_format, brevity"):
        success_index(NAMES, "math_anwser")
    with pytest.raises(UserError, match=r"`rewards\.brevity`.*Allowed: a\.brevity, b\.brevity"):
        success_index(["a.brevity", "b.brevity"], "rewards.brevity")


def test_solved_is_a_finite_value_of_at_least_the_threshold():
    assert [is_solved(value, 1.0) for value in (1.0, 0.7 + 0.2 + 0.1, 2.0)] == [True] * 3
    assert [is_solved(value, 1.0) for value in (0.999, None, math.nan, math.inf, -math.inf)] == [False] * 5


def test_a_threshold_outside_of_the_range_of_a_bundled_reward_is_refused():
    reward = guard(math_answer)
    assert reward_range(reward) == (0.0, 1.0)
    assert reward_range(guard(positive_words)) == (-1.0, 1.0)
    for threshold in (0.5, 1.0):
        check_threshold(reward, threshold, name="math_answer", key="success_threshold")
    with pytest.raises(UserError, match=r"success_threshold: 1\.5, which no completion can reach: `math_answer`"):
        check_threshold(reward, 1.5, name="math_answer", key="success_threshold")
    for threshold in (0.0, -1.0):
        with pytest.raises(UserError, match="every completion, also an empty one, reaches"):
            check_threshold(reward, threshold, name="math_answer", key="success_threshold")
    check_threshold(lambda **_: [], 7.0, name="own", key="success_threshold")
