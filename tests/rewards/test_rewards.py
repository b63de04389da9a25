"""Rewards by name and by dotted path, and the guard around them."""

import asyncio
import logging
import math
import sys
import time

import pytest

from hpt_trl.data.tasks import reasoning_gym as reasoning_gym_rows
from hpt_trl.errors import UserError
from hpt_trl.rewards.functions import (
    REWARDS,
    boxed_format,
    exact_match,
    math_answer,
    reasoning_gym,
)
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.loading import check_columns, load_rewards


def test_plain_numbers_are_compared_fast():
    start = time.perf_counter()
    rewards = math_answer(completions=[f"… \n#### {n}" for n in range(5000)], answer=["7"] * 5000)
    assert sum(rewards) == 1
    assert time.perf_counter() - start < 1


def test_math_answer_takes_text_messages_and_rows_without_answer():
    completions = [
        "2 + 2 = 4\n#### 4",
        [{"role": "assistant", "content": "\\boxed{4}"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "#### 4"}]}],
        "it is 4",
        "#### 5",
        "#### 4",
    ]
    assert math_answer(completions=completions, answer=["4"] * 5 + [None]) == [1, 1, 1, 0, 0, None]


def test_exact_match_and_boxed_format():
    assert exact_match(completions=[" yes\n", "yes!", "x"], answer=["yes", "yes", None]) == [1, 0, None]
    completions = ["#### 4", "\\boxed{4}", "4", "#### 4\n#### 5", "\\boxed{1} \\boxed{2}", "#### \\boxed{4}"]
    assert boxed_format(completions=completions) == [1, 1, 0, 0, 0, 1]
    completions = ["\\boxed{4}\n#### Verification", "x=\\boxed{2} or x=\\boxed{3}", "#### Verification\n#### 4"]
    assert boxed_format(completions=completions) == [1, 1, 1]


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "mini_sudoku", "arc_agi", "number_sorting"])
def test_reasoning_gym_scores_its_own_answers(task):
    train, _ = reasoning_gym_rows(task, {"size": 3, "test_size": 0}, seed=1)
    assert reasoning_gym(completions=train["completion"], metadata=train["metadata"]) == [1.0] * 3
    wrong = reasoning_gym(completions=["#### no"] * 3, metadata=train["metadata"])
    assert all(score < 1 for score in wrong)


def test_reasoning_gym_reads_a_box_and_plain_text():
    train, _ = reasoning_gym_rows("chain_sum", {"size": 1, "test_size": 0}, seed=1)
    answer = train[0]["answer"]
    texts = [f"\\boxed{{{answer}}}", answer, f"so {answer} it is\n#### 0"]
    scores = reasoning_gym(completions=texts, metadata=[train[0]["metadata"]] * 3)
    assert scores[:2] == [1.0, 1.0] and scores[2] < 1


def test_names_and_dotted_paths(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(
        "LIMIT = 3\ndef brevity(completions, **_):\n    return [float(len(c) < LIMIT) for c in completions]\n"
    )
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "leaving_rewards.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    loaded = load_rewards(["math_answer", "own_rewards.brevity"])
    assert loaded[0] is REWARDS["math_answer"]
    assert loaded[1](completions=["ab", "abcd"]) == [1.0, 0.0]
    for name, message in [
        ("math_anwser", "Did you mean `math_answer`"),
        ("own_rewards.breivty", "it has brevity"),
        ("own_rewards.LIMIT", "not callable"),
        ("no_such_module.reward", "cannot be imported"),
        ("broken_rewards.reward", "RuntimeError: not today"),
        ("leaving_rewards.reward", "cannot be imported: SystemExit: 0"),
        ("fractions.Fraction", "is a class"),
    ]:
        with pytest.raises(UserError, match=message):
            load_rewards([name])
    with pytest.raises(UserError, match="at least one"):
        load_rewards([])


def test_a_missing_answer_column_is_named():
    with pytest.raises(UserError, match=r"`math_answer` reads the column `answer`.*column_mapping"):
        check_columns(["math_answer"], ["prompt", "solution"], "data.jsonl")
    check_columns(["math_answer", "boxed_format", "my.own"], ["prompt", "answer"], "data.jsonl")
    with pytest.raises(UserError, match="reads the column `answer`"):
        guard(math_answer)(prompts=["a"], completions=["b"])


def _call(reward, count=3, **columns):
    return guard(reward)(
        prompts=[f"prompt {n}" for n in range(count)],
        completions=[[{"role": "assistant", "content": f"completion {n}"}] for n in range(count)],
        trainer_state=None,
        **columns,
    )


def test_a_reward_cannot_leave_the_process():
    def leaving(prompts, completions, **_):
        return sys.exit(0) if "prompt 1" in prompts else [1.0] * len(prompts)

    with pytest.raises(UserError, match=r"the reward `leaving` raised SystemExit: 0 \(.*\nat position 2 of the batch"):
        _call(leaving)


def test_guard_keeps_the_name_and_the_values():
    def own(prompts, completions, **_):
        return [1, None, 0.5]

    guarded = guard(own)
    assert guarded.__name__ == "own"
    assert guard(guarded) is guarded
    assert _call(own) == [1.0, None, 0.5]


def test_guard_shows_the_row_of_a_raising_reward():
    def picky(completions, answer, **_):
        return [1 / int(value) for value in answer]

    with pytest.raises(UserError) as caught:
        _call(picky, answer=["1", "0", "2"], _row=[11, 12, 13])
    message = str(caught.value)
    for part in ("picky", "ZeroDivisionError", "row 12", "prompt 1", "completion 1", "test_rewards.py, line"):
        assert part in message
    with pytest.raises(UserError, match="position 2 of the batch"):
        _call(picky, answer=["1", "0", "2"])


def test_guard_reports_nan_and_infinity_and_hands_on_infinity(caplog):
    def shaky(completions, **_):
        return [math.nan, 1.0, -math.inf]

    with caplog.at_level(logging.WARNING):
        assert _call(shaky, _row=[4, 5, 6]) == [math.inf, 1.0, math.inf]
    assert "row 4" in caplog.text and "row 6" in caplog.text and "prompt 0" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "1 values for 3 completions"),
        (1.0, "must return a list"),
        ([1, "good", 0], "'good', which is not a number"),
    ],
)
def test_guard_refuses_what_are_not_three_numbers(values, message):
    def odd(completions, **_):
        return values

    with pytest.raises(UserError, match=message):
        _call(odd)


def test_guard_keeps_async_rewards_async():
    async def judge(prompts, completions, answer, **_):
        await asyncio.sleep(0)
        return [1 / int(value) for value in answer]

    from trl.trainer.utils import is_async_callable

    assert is_async_callable(guard(judge))
    assert asyncio.run(_call(judge, answer=["1", "2", "4"])) == [1.0, 0.5, 0.25]
    with pytest.raises(UserError, match="position 3 of the batch"):
        asyncio.run(_call(judge, answer=["1", "2", "0"]))


def test_guard_takes_a_callable_instance():
    class Brevity:
        def __call__(self, completions, **_):
            return [0.0] * len(completions)

    assert guard(Brevity()).__name__ == "Brevity"
    assert _call(Brevity()) == [0.0] * 3
