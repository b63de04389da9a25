"""Rollouts that a reward could not score: which are left out, and what is still known of them."""

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers.rollouts import (
    MIXED,
    FixedHPT,
    FixedMended,
    assert_same_update,
    parity_reward,
    start_weights,
    train,
    weights,
)


@pytest.fixture
def run(tiny_model_path, tmp_path):
    def run(trainer_class, **settings):
        return train(trainer_class, tiny_model_path, tmp_path, loss_type="dr_grpo", **settings)

    return run


def fails_on_right_ones(completion_ids, kind, **columns) -> list[float]:
    return [math.inf if value == 1 else 0.0 for value in parity_reward(completion_ids, kind)]


def test_a_rollout_is_solved_whatever_another_reward_fails_on(run):
    """The gate asks the success reward: what has no sum of rewards has no gradient, but its prompt is solved."""
    alone = run(FixedHPT).state.log_history[0]
    both = run(FixedHPT, reward=[parity_reward, fails_on_right_ones]).state.log_history[0]
    for name in ("hpt/solved_mean", "hpt/sft_fraction"):
        assert both[name] == alone[name]


@pytest.mark.parametrize("trainer_class", [FixedHPT, FixedMended])
def test_a_reward_that_is_only_measured_takes_no_row_away(run, tiny_model_path, trainer_class):
    alone = run(trainer_class, reward=parity_reward)
    both = run(trainer_class, reward=[parity_reward, fails_on_right_ones], reward_weights=[1.0, 0.0])
    assert_same_update(weights(both), weights(alone), start_weights(tiny_model_path), 1e-6)


def test_nan_of_a_reward_model_leaves_its_row_out(run, tiny_model_path):
    """As NaN of a function does: the row has no reward, not one of the others alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    forward = judge.forward

    def overflowing(input_ids, **arguments):
        outputs = forward(input_ids, **arguments)
        # Of the text's tokens; not of how they are batched.
        odd = (input_ids * arguments["attention_mask"]).sum(1) % 2 == 1
        outputs.logits = torch.where(odd.unsqueeze(1), math.nan, torch.ones_like(outputs.logits))
        return outputs

    judge.forward = overflowing
    trainer = run(FixedMended, reward=[parity_reward, judge], reward_weights=[1.0, 1.0])
    scores = trainer._rewards
    assert 0 < scores.isnan().all(1).sum() < len(scores)
    assert (scores.isnan().all(1) == scores.isnan().any(1)).all()
    assert trainer._each_reward[:, 0].isnan().sum() == 0 and len(scores) == 4 * len(MIXED)
