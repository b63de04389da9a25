"""Demonstrations of several turns: the words of the user are context, and the loss is that of the answers alone."""

import pytest
from datasets import Dataset

from hpt_trl import UserError
from hpt_trl.methods.hybrid import demonstrations
from hpt_trl.methods.hybrid import stage as hybrid_stage
from hpt_trl.runs import preparation
from hpt_trl.runs.building import build_trainer
from tests.helpers import oracle
from tests.helpers.rollouts import MIXED, FixedHPT, as_update, assert_same_update, build, rows, weights
from tests.helpers.templates import FORGETFUL, THOUGHTS
from tests.helpers.tiny import CHAT_TEMPLATE

TURNS = 3


def nll_by_tokens(prompts):
    return oracle.token_mean_nll(prompts, lambda p: 1.0)


def nll_by_prompt(prompts):
    return sum(-p.demonstration.logp.mean() for p in prompts) / len(prompts)


def luffy(prompts):
    normalizer = oracle.Normalizer("dapo", prompts)
    rollouts = oracle.grpo_rows(prompts, normalizer, lambda p: p.union(reward=1.0)[0])
    return rollouts + sum(oracle.off_policy(p, normalizer, p.union(reward=1.0)[1]) for p in prompts)


def srft(prompts):
    """Its weight of a demonstration is by the mean entropy of the tokens that have a loss."""
    return oracle.srft(prompts, oracle.Normalizer("dapo", prompts), lambda prompt, member: True)


ALWAYS = {"switch_gate": 4}
UNION = {"unify_strategy": "soft", "demonstration_reward": 1.0, "loss_type": "dapo"}


@pytest.mark.parametrize(
    "loss,settings",
    [
        (nll_by_tokens, ALWAYS),
        (nll_by_tokens, ALWAYS | {"skip_dead_rows": False, "unify_strategy": "soft", "soft_table": {0: [0, 0, 1]}}),
        (nll_by_prompt, ALWAYS | {"sft_loss_normalization": "prompt"}),
        (luffy, UNION | {"soft_table": "on_off"}),
        (srft, UNION | {"soft_table": "on_sft", "offline_loss_type": "srft"}),
    ],
    ids=["switch", "nothing-dropped", "by-prompt", "luffy", "srft"],
)
def test_only_the_answers_have_a_loss(tiny_model_path, run, start, loss, settings):
    ours = run(turns=TURNS, **settings)
    data = rows(MIXED, TURNS)
    assert {len(row["completion"]) for row in data} == {1, 5}
    expected = oracle.gradient(tiny_model_path, data, loss)
    assert_same_update(weights(ours), as_update(expected, start), start)


def test_the_turns_that_fit_are_left_of_a_long_demonstration(tiny_model_path, run, start):
    longest = 40
    ours = run(turns=TURNS, max_demonstration_length=longest, **ALWAYS)
    data = rows(MIXED, TURNS)
    expected = oracle.gradient(tiny_model_path, data, nll_by_tokens, max_demonstration_length=longest)
    assert_same_update(weights(ours), as_update(expected, start), start)
    assert ours.state.log_history[0]["hpt/demonstrations_truncated"] == 0.5


def test_the_trainer_itself_refuses_what_it_would_train_otherwise(model_with, tmp_path):
    data = rows(MIXED).to_list()
    data[2]["completion"][0]["content"] = THOUGHTS
    dataset = Dataset.from_list(data)
    with pytest.raises(UserError, match=r"(?s)train_dataset, row 3.*leaves out .*2 \+ 3 = 5"):
        build(FixedHPT, model_with(FORGETFUL), tmp_path, dataset=dataset)
    data[2]["completion"] = [{"role": "assistant", "content": "5<|im_end|>6"}]
    with pytest.raises(UserError, match=r"(?s)train_dataset, row 3.*goes on after an end-of-sequence token"):
        build(FixedHPT, model_with(CHAT_TEMPLATE), tmp_path, dataset=Dataset.from_list(data))


def test_rows_are_encoded_once_for_check_and_trainer(recipe, monkeypatch):
    """As long as nothing has changed that the ids depend on."""
    encoded = []
    stock = demonstrations.demonstration_ids
    monkeypatch.setattr(demonstrations, "demonstration_ids", lambda *a: encoded.append(a) or stock(*a))
    group = {"num_generations": 2, "max_completion_length": 8, "success_threshold": 3.0}
    path = recipe("hpt", **group, reward_funcs=["tests.helpers.stage_runs.remainder"])
    prepared = preparation.prepare(path, ["--eval_samples", "0"])
    rows_there = len(prepared.splits.train)
    assert len(encoded) == rows_there
    hybrid_stage.check_rows(prepared.recipe, prepared.splits, prepared.encoder, 512)
    assert len(encoded) == rows_there
    hybrid_stage.check_rows(prepared.recipe, prepared.splits, prepared.encoder, 511)
    assert len(encoded) == rows_there
    prepared.recipe.config.max_demonstration_length = 9
    hybrid_stage.check_rows(prepared.recipe, prepared.splits, prepared.encoder, 512)
    assert len(encoded) == 2 * rows_there
    build_trainer(prepared, [])
    assert len(encoded) == 2 * rows_there
