"""Rollouts and demonstration together: who grades them, what they are divided by, and which rows stay out.

Against the float64 oracle, in the settings under which a part of the rollouts is masked or not scored.
"""

import logging
import math

import pytest
import torch

from hpt_trl import UserError
from tests.helpers import oracle
from tests.helpers.processes import assert_two_processes_are_one
from tests.helpers.rollouts import (
    MIXED,
    FixedGRPO,
    FixedHPT,
    as_update,
    assert_same_update,
    build,
    parity_reward,
    rows,
    train,
    weights,
)


def is_cut(member: int) -> bool:
    """Whether a fixed rollout lacks its EOS."""
    return member % 3 == 0


LUFFY = {"unify_strategy": "soft", "soft_table": "on_off"}
SRFT = {"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "srft", "demonstration_reward": 1.0}


class MaskedNormalizer(oracle.Normalizer):
    """The base's denominators of rollouts of which the cut ones are masked."""

    def __init__(self, loss_type, prompts):
        super().__init__(loss_type, prompts)
        self.surviving = sum(len(s.logp) for p in prompts for m, s in enumerate(p.rollouts) if not is_cut(m))

    def rollout(self, per_token, member):
        if is_cut(member):
            return 0.0 * per_token.sum()
        by_tokens = self.loss_type in ("dapo", "cispo", "vespo", "bnpo")
        return per_token.sum() / self.surviving if by_tokens else self(per_token)


# What the demonstrations are divided by.


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo", "grpo", "dr_grpo"])
def test_masking_cut_rollouts_does_not_weigh_the_demonstrations_up(tiny_model_path, run, start, loss_type):
    """LUFFY with `mask_truncated_completions`: demonstrations are divided by all tokens of the rollouts."""

    def loss(prompts):
        normalizer = MaskedNormalizer(loss_type, prompts)
        total = 0.0
        for prompt in prompts:
            advantages, of_demonstration = prompt.union(reward=1.0)
            for member, (rollout, advantage) in enumerate(zip(prompt.rollouts, advantages, strict=True)):
                weight = oracle.ratio(rollout) if loss_type in ("dapo", "grpo", "dr_grpo") else rollout.logp
                total = total + normalizer.rollout(-weight * advantage, member)
            total = total + oracle.off_policy(prompt, normalizer, of_demonstration)
        return total

    settings = LUFFY | {"demonstration_reward": 1.0, "loss_type": loss_type, "mask_truncated_completions": True}
    # `epsilon_high` bounds CISPO's weight, which is 1 here.
    ours = run(**settings, **({"epsilon_high": 5.0} if loss_type == "cispo" else {}))
    expected = oracle.gradient(tiny_model_path, rows(MIXED), loss)
    assert_same_update(weights(ours), as_update(expected, start), start)


def all_cut(completions, **columns):
    return [0.0] * len(completions)


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo", "bnpo"])
@pytest.mark.parametrize("settings", [LUFFY, SRFT], ids=["luffy", "srft"])
def test_the_update_is_no_larger_where_all_rollouts_are_cut(run, start, loss_type, settings):
    class Cut(FixedHPT):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            completions, _ = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            return [[t if t != self._tokenizer.eos_token_id else 5 for t in ids] for ids in completions], None

    settings = settings | {"loss_type": loss_type, "reward": all_cut, "demonstration_reward": 1.0}
    plain, masked = (run(Cut, **settings, mask_truncated_completions=masks) for masks in (False, True))
    assert masked.state.log_history[0]["completions/clipped_ratio"] == 1.0
    assert masked.state.log_history[0]["hpt/off_loss"] == pytest.approx(plain.state.log_history[0]["hpt/off_loss"])


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_srft_with_masked_rollouts(tiny_model_path, run, start, loss_type):
    """SRFT's own loss of the rollouts has the denominator of its other terms."""

    def loss(prompts):
        normalizer = oracle.Normalizer(loss_type, prompts)
        return oracle.srft(prompts, normalizer, lambda prompt, member: not is_cut(member))

    ours = run(**SRFT, loss_type=loss_type, mask_truncated_completions=True)
    expected = oracle.gradient(tiny_model_path, rows(MIXED), loss)
    assert_same_update(weights(ours), as_update(expected, start), start)


# Rollouts without a score.


def some_unscored(completion_ids, kind, **columns):
    values = parity_reward(completion_ids, kind)
    return [None if len(ids) % 4 == 0 else value for ids, value in zip(completion_ids, values, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"skip_dead_rows": False}, {"top_entropy_quantile": 0.999}, {"loss_type": "bnpo"}],
    ids=["dropped", "kept", "quantile", "bnpo"],
)
def test_srft_leaves_rollouts_without_a_score_out(tiny_model_path, run, start, settings):
    settings = {"loss_type": "dapo"} | settings

    def loss(prompts):
        normalizer = oracle.Normalizer("dapo", prompts)
        rewards = [
            torch.tensor(
                [math.nan if len(s.logp) % 4 == 0 else float(r) for s, r in zip(p.rollouts, p.rewards, strict=True)]
            )
            for p in prompts
        ]
        assert any(r.isnan().any() for r in rewards) and not any(r.isnan().all() for r in rewards)
        return oracle.srft(prompts, normalizer, lambda prompt, member: True, [r.double() for r in rewards])

    ours = run(reward=some_unscored, **SRFT, **settings)
    expected = oracle.gradient(tiny_model_path, rows(MIXED), loss)
    assert_same_update(weights(ours), as_update(expected, start), start)


@pytest.mark.parametrize("setting", [{"beta": 0.1}, {"entropy_coef": 0.01}], ids=lambda s: next(iter(s)))
def test_srft_of_unscored_rollouts_where_all_rows_act(run, start, setting):
    """What a KL term or entropy bonus adds is there without SRFT as well: the rest is SRFT's update."""
    settings = {"reward": some_unscored, "loss_type": "dapo"}
    bonus = weights(run(FixedGRPO, **settings | {"reward": all_cut}, **setting))
    alone, both = weights(run(**settings, **SRFT)), weights(run(**settings, **SRFT, **setting))
    assert_same_update(both, {n: alone[n].double() + bonus[n] - start[n] for n in alone}, start)


# The reward that decides what is solved.


def test_a_second_reward_does_not_solve_a_prompt(run, start):
    """A well-formed wrong answer stays wrong, whatever the others add; a penalty does not undo a right one."""

    def bonus(completions, **columns):
        return [1.0] * len(completions)

    def penalty(completions, **columns):
        return [-0.25] * len(completions)

    alone = run()
    for other in (bonus, penalty):
        both = run(reward=[parity_reward, other])
        for name in ("hpt/solved_mean", "hpt/sft_fraction"):
            assert both.state.log_history[0][name] == alone.state.log_history[0][name]
        assert_same_update(weights(both), weights(alone), start)
    named = run(reward=[bonus, parity_reward], success_reward="parity_reward")
    assert named.state.log_history[0]["hpt/solved_mean"] == alone.state.log_history[0]["hpt/solved_mean"]
    assert_same_update(weights(named), weights(alone), start)
    first = run(reward=[bonus, parity_reward])
    assert first.state.log_history[0]["hpt/solved_mean"] == 1.0
    with pytest.raises(ValueError, match="parity_reward"):
        run(reward=parity_reward, success_reward="parity")


# The demonstration's reward.


def is_demonstration(completion) -> bool:
    return "####" in completion[0]["content"]


def length_reward(completions, completion_ids, kind, **columns):
    """By what a reward sees of a completion: its text, shaped like a rollout's, and its ids."""
    assert all(len(c) == 1 and c[0]["role"] == "assistant" for c in completions)
    return [
        float("####" in c[0]["content"]) + 0.01 * len(ids) for c, ids in zip(completions, completion_ids, strict=True)
    ]


def test_a_demonstration_is_graded_by_the_rewards_of_the_rollouts(tiny_model_path, run, start):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    trainer = run(reward=length_reward, **LUFFY)
    lengths = [len(tokenizer(row["completion"][0]["content"])["input_ids"]) + 1 for row in rows(MIXED)]
    log = trainer.state.log_history[0]
    assert log["hpt/demonstration_reward"] == pytest.approx(1 + 0.01 * sum(lengths) / 8, rel=1e-5)
    assert log["hpt/demonstrations_below_best"] == 0.0
    # What is graded is what is trained: a cut demonstration has lost its answer.
    cut = run(reward=length_reward, max_demonstration_length=4, **LUFFY).state.log_history[0]
    assert cut["hpt/demonstration_reward"] == pytest.approx(0.04)


def test_a_demonstration_below_its_rollouts_is_told(run, caplog):
    def generous(completions, completion_ids, **columns):
        pairs = zip(completions, completion_ids, strict=True)
        return [1.0 if is_demonstration(c) else 1.2 + 0.1 * (ids[0] % 2) for c, ids in pairs]

    with caplog.at_level(logging.WARNING):
        trainer = run(reward=generous, max_steps=2, **LUFFY)
    assert trainer.state.log_history[0]["hpt/demonstrations_below_best"] == 1.0
    assert caplog.text.count("score below the best rollout") == 1


def test_an_unscored_demonstration_has_no_off_policy_term(run, start):
    def rollouts_alone(completions, completion_ids, kind, **columns):
        values = parity_reward(completion_ids, kind)
        return [None if is_demonstration(c) else value for c, value in zip(completions, values, strict=True)]

    ours = run(reward=rollouts_alone, **LUFFY)
    assert ours.state.log_history[0]["hpt/off_fraction"] == 0.0
    assert_same_update(weights(ours), weights(run(switch_gate=-1)), start)


def test_what_a_reward_logs_of_a_demonstration_is_not_logged(run):
    def logs(completions, completion_ids, kind, log_metric, log_extra, **columns):
        log_metric("rows_seen", len(completions))
        log_extra("note", list(map(is_demonstration, completions)))
        return parity_reward(completion_ids, kind)

    trainer = run(reward=logs, max_steps=2, **LUFFY)
    assert [log["rows_seen"] for log in trainer.state.log_history[:2]] == [32.0, 32.0]
    assert list(trainer._logs["extra"]["note"]) == [False] * 32


@pytest.mark.parametrize(
    "kinds,settings",
    [
        pytest.param(MIXED, {}, marks=pytest.mark.slow),
        # The second group lies on the second process alone, the only group of the last on both.
        (["mixed", "fail"], {"num_generations": 16}),
        pytest.param(["mixed"], {"num_generations": 32}, marks=pytest.mark.slow),
    ],
    ids=["eight", "two-groups", "one-group"],
)
def test_two_processes_grade_as_one(tiny_model_path, tmp_path, kinds, settings):
    settings = {"loss_type": "dapo", "shuffle_dataset": False, "mask_truncated_completions": True} | LUFFY | settings
    names = ("hpt/demonstration_reward", "hpt/off_loss", "hpt/rl_loss", "entropy", "clip_ratio/region_mean")
    assert_two_processes_are_one(tiny_model_path, tmp_path, names, kinds=kinds, **settings)


@pytest.mark.parametrize("value", ["grade", None, math.nan])
def test_a_demonstration_reward_is_a_number_or_graded(run, value):
    with pytest.raises(ValueError, match="demonstration_reward"):
        run(demonstration_reward=value)


@pytest.mark.parametrize("settings", [LUFFY, SRFT, {"switch_gate_off": 1}], ids=["luffy", "srft", "off-on"])
def test_normalizing_each_reward_is_refused_for_a_union(tiny_model_path, tmp_path, settings):
    with pytest.raises(ValueError, match="multi_objective_aggregation: sum_then_normalize"):
        build(FixedHPT, tiny_model_path, tmp_path, multi_objective_aggregation="normalize_then_sum", **settings)


# vLLM's ratio of a whole sequence.


class WithRatio:
    """Mixin: rollouts as vLLM's sequence-level correction leaves them, one ratio per row."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        batch["importance_sampling_ratio"] = (0.8 + 0.1 * (batch["completion_ids"][:, :1] % 5)).float()
        return batch


class RatioGRPO(WithRatio, FixedGRPO):
    pass


class RatioHPT(WithRatio, FixedHPT):
    pass


def test_one_ratio_per_sequence_stays_one(run, start):
    """VESPO sums the ratio's columns: a widened one would be counted once per token."""
    stock = run(RatioGRPO, loss_type="vespo")
    assert_same_update(weights(run(RatioHPT, loss_type="vespo", switch_gate=-1)), weights(stock), start)
    kept = run(RatioHPT, loss_type="vespo", switch_gate=-1, skip_dead_rows=False)
    assert all(torch.equal(p, weights(stock)[name]) for name, p in weights(kept).items())


def test_missing_demonstration_is_told_before_it_is_graded(tiny_model_path, tmp_path):
    data = rows(MIXED).to_list()
    data[2]["completion"] = None
    from datasets import Dataset

    streamed = Dataset.from_list(data).to_iterable_dataset()
    with pytest.raises(UserError, match="on_missing_demonstration"):
        train(FixedHPT, tiny_model_path, tmp_path, dataset=streamed, **LUFFY)
