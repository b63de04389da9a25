"""HybridPostTrainer under the settings that users combine: each works, or is refused at construction with a reason."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hpt_trl import HybridPostConfig, HybridPostTrainer, UserError
from tests.helpers import oracle
from tests.helpers.rollouts import (
    MIXED,
    FixedGRPO,
    FixedHPT,
    as_update,
    assert_same_update,
    parity_reward,
    rows,
    weights,
)

# Every setting acts.

OFF_POLICY = {"offline_loss_type": "off_policy", "demonstration_reward": 1.0}


@pytest.mark.parametrize(
    "base,change",
    [
        ({}, {"sft_loss_coef": 0.5}),
        ({}, {"switch_gate": 3}),
        ({"switch_gate": -1, "demonstration_reward": 1.0}, {"switch_gate_off": 0}),
        ({"switch_gate": -1, "switch_gate_off": 0}, {"demonstration_reward": 1.0}),
        ({"switch_gate": -1, "switch_gate_off": 0, "demonstration_reward": 1.0}, {"demonstration_reward": -1.0}),
        ({}, {"success_threshold": 0.0}),
        ({}, {"sft_loss_normalization": "prompt"}),
        ({}, {"offline_loss_type": "off_policy"}),
        ({}, {"offline_loss_type": "srft"}),
        ({}, {"offline_loss_type": "chord"}),
        ({}, {"max_demonstration_length": 5}),
        ({"unify_strategy": "soft"}, {"soft_table": "type_1"}),
        ({"unify_strategy": "soft"}, {"soft_table": "type_2"}),
        ({"unify_strategy": "soft", "soft_table": {0: [1, 1, 1]}}, {"soft_table": {0: [0.5, 1, 1]}}),
        ({"unify_strategy": "soft", "soft_table": {0: [1, 1, 1]}}, {"soft_table": {0: [1, 0.5, 1]}}),
        ({"unify_strategy": "soft", "soft_table": {0: [1, 1, 1]}}, {"soft_table": {0: [1, 1, 0.5]}}),
        (OFF_POLICY, {"off_policy_reshape_gamma": 0.3}),
        (OFF_POLICY, {"off_policy_reshape": "no_reshape"}),
        (OFF_POLICY, {"off_policy_reshape": "logp"}),
        (OFF_POLICY, {"off_policy_reshape": "p_logp"}),
        (OFF_POLICY, {"off_policy_reshape": "square_root"}),
        (OFF_POLICY, {"off_policy_reshape": "pow"}),
        ({"offline_loss_type": "chord"}, {"chord_mu": 0.5}),
        ({"offline_loss_type": "chord", "max_steps": 2}, {"chord_mu_final": 0.9}),
        ({"offline_loss_type": "chord", "max_steps": 2}, {"chord_mu_decay_steps": 1}),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) or "default",
)
def test_every_setting_changes_the_gradient(run, base, change):
    settings = {"learning_rate": 0.1} | base
    before, after = weights(run(**settings)), weights(run(**settings | change))
    difference = sum((after[n] - before[n]).square().sum() for n in before).sqrt()
    assert difference > 1e-4


def test_sft_loss_coef_is_linear(run, start):
    """All prompts gated: half the coefficient is half the update."""
    full, half = (weights(run(switch_gate=4, sft_loss_coef=c)) for c in (1.0, 0.5))
    assert_same_update(half, {n: start[n] + (full[n] - start[n]) / 2 for n in full}, start)


def test_a_cut_demonstration_keeps_its_end(tiny_model_path, run, start):
    trainer = run(switch_gate=4, max_demonstration_length=6)
    expected = oracle.gradient(
        tiny_model_path,
        rows(MIXED),
        lambda prompts: oracle.token_mean_nll(prompts, lambda p: 1.0),
        max_demonstration_length=6,
    )
    assert_same_update(weights(trainer), as_update(expected, start), start)
    assert trainer.state.log_history[0]["hpt/demonstrations_truncated"] == 1.0


# Metrics.


def test_metrics(run):
    log = run().state.log_history[0]
    solved = [0, None, 1, None, 0, None, 0, 1]
    assert log["hpt/sft_fraction"] >= solved.count(0) / len(solved)
    assert log["hpt/solved_mean"] == pytest.approx(log["reward"])
    assert 0 < log["hpt/rows_kept"] < 0.6
    assert log["loss"] == pytest.approx(log["hpt/rl_loss"] + log["hpt/sft_loss"] + log["hpt/off_loss"], rel=1e-3)
    assert log["hpt/demo_nll"] == pytest.approx(log["hpt/sft_loss"], rel=1e-4)  # coefficient 1, token mean
    assert log["hpt/demonstrations_truncated"] == 0.0
    assert all(math.isfinite(value) for name, value in log.items() if name.startswith("hpt/"))


# Settings of GRPO under which rows may not be dropped.


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1},
        {"entropy_coef": 0.01},
        {"use_adaptive_entropy": True, "entropy_coef": 0.01},
        {"top_entropy_quantile": 0.5},
        {"loss_type": "bnpo"},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
    ids=lambda s: next(iter(s)),
)
def test_rows_stay_where_dropping_is_not_exact(run, start, settings):
    stock = run(FixedGRPO, **settings)
    ours = run(switch_gate=-1, **settings)
    assert ours.state.log_history[0]["hpt/rows_kept"] == 1.0
    assert_same_update(weights(ours), weights(stock), start)


def test_gated_rollouts_keep_the_kl_term(tiny_model_path, run, start):
    """Gate at the group size: what is left of the stock loss is the KL term, which acts on every row."""
    ours = run(switch_gate=4, beta=0.1)
    without_reward = run(FixedGRPO, reward=lambda completions, **_: [0.0] * len(completions), beta=0.1)
    sft = run(switch_gate=4)
    expected = {n: weights(without_reward)[n] + weights(sft)[n] - start[n] for n in start}
    assert_same_update(weights(ours), expected, start)


# Steps, iterations, precision of the old log-probabilities.


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2, "max_steps": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "max_steps": 4, "num_iterations": 2},
        {"importance_sampling_level": "sequence", "num_iterations": 2, "max_steps": 2},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"mask_truncated_completions": True},
        {"delta": 1.5, "num_iterations": 2, "max_steps": 2},
        {"off_policy_mask_threshold": 0.1, "num_iterations": 2, "max_steps": 2},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_several_updates_of_a_generation_are_those_of_grpo(run, start, settings, loss_type):
    settings = {"learning_rate": 0.1, "loss_type": loss_type} | settings
    stock = weights(run(FixedGRPO, **settings))
    ours = run(switch_gate=-1, **settings)
    assert ours.state.log_history[0]["hpt/rows_kept"] < 0.6
    assert_same_update(weights(ours), stock, start)


def test_demonstrations_are_replayed_by_every_iteration(run, start):
    """Two iterations over a gated batch are two steps of gradient descent on the demonstrations."""
    twice = weights(run(switch_gate=4, num_iterations=2, max_steps=2, learning_rate=0.1))
    # The second generation of this run draws the same prompts and so the same demonstrations.
    fresh = weights(run(switch_gate=4, max_steps=2, learning_rate=0.1))
    assert_same_update(twice, fresh, start)


def test_demonstrations_are_spread_over_the_steps_of_a_generation(run):
    trainer = run(switch_gate=4, steps_per_generation=4, gradient_accumulation_steps=1, max_steps=4)
    assert sum("hpt/demo_nll" in log and log["hpt/demo_nll"] > 0 for log in trainer.state.log_history) >= 2


# Models.


def test_lora_trains_the_adapter_only(run, tiny_model_path, tmp_path):
    trainer = run(peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear"), max_steps=2)
    trained = weights(trainer)
    assert trained and all("lora_" in name for name in trained)
    assert any(p.abs().max() > 0 for name, p in trained.items() if "lora_B" in name)
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_lora_with_kl_to_the_base_model(run):
    trainer = run(peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear"), beta=0.1)
    assert trainer.state.log_history[0]["hpt/rows_kept"] > 1.0


def test_gradient_checkpointing(run, start):
    assert_same_update(weights(run(gradient_checkpointing=True)), weights(run()), start)


def test_text_prompts(tiny_model_path, run, start):
    """Text prompts are taken as they are; the demonstration gets the end-of-sequence token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    chat = rows(MIXED)
    text = Dataset.from_list(
        [
            {
                "prompt": tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False),
                "completion": row["completion"][0]["content"],
                "kind": row["kind"],
            }
            for row in chat
        ]
    )
    assert_same_update(weights(run(dataset=text)), weights(run(dataset=chat)), start)


def test_another_demonstration_column(run, start):
    renamed = rows(MIXED).rename_column("completion", "target")
    assert_same_update(
        weights(run(dataset=renamed, demonstration_column="target")), weights(run(dataset=rows(MIXED))), start
    )


def test_streamed_dataset(run, start):
    settings = {"shuffle_dataset": False}
    streamed = run(dataset=rows(MIXED).to_iterable_dataset(), **settings)
    assert_same_update(weights(streamed), weights(run(dataset=rows(MIXED), **settings)), start)


# Demonstrations and rewards that are missing or broken.


def without_demonstration(index: int) -> Dataset:
    data = rows(MIXED).to_list()
    data[index]["completion"] = None
    return Dataset.from_list(data)


def test_missing_demonstration_is_an_error_that_names_the_row(run):
    with pytest.raises(UserError, match=r"row 5"):
        run(dataset=without_demonstration(4))


def test_missing_demonstration_may_stay_with_rl(run):
    log = run(dataset=without_demonstration(4), on_missing_demonstration="rl").state.log_history[0]
    assert log["hpt/sft_fraction"] == pytest.approx(run().state.log_history[0]["hpt/sft_fraction"] - 1 / 8)


def test_missing_column_is_an_error(run):
    with pytest.raises(UserError, match="completion"):
        run(dataset=rows(MIXED).remove_columns("completion"))


def test_nan_reward_is_reported_and_not_trained_on(run, start, caplog):
    def broken(completion_ids, kind, **columns):
        values = parity_reward(completion_ids, kind)
        return [math.nan if name == "solve" else value for name, value in zip(kind, values, strict=True)]

    def partial(completion_ids, kind, **columns):
        values = parity_reward(completion_ids, kind)
        return [math.inf if name == "solve" else value for name, value in zip(kind, values, strict=True)]

    # Groups that are all solved carry no gradient: losing their rewards changes nothing but the log.
    expected = weights(run(switch_gate=-1))
    for reward in (broken, partial):
        trainer = run(reward=reward, switch_gate=-1)
        assert "nan" in caplog.text.lower() or "inf" in caplog.text.lower()
        assert all(p.isfinite().all() for p in weights(trainer).values())
        assert_same_update(weights(trainer), expected, start)


def test_raising_reward_shows_the_sample(run):
    def fails(completions, **_):
        raise KeyError("answer")

    with pytest.raises(UserError, match=r"(?s)fails.*What is"):
        run(reward=fails)


# Refused at construction.


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"temperature": 0.7}, "temperature"),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4}, "steps_per_generation"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"switch_gate": 9}, "switch_gate"),
        ({"switch_gate": -2}, "switch_gate"),
        ({"switch_gate": 1, "switch_gate_off": 1}, "switch_gate_off"),
        ({"unify_strategy": "mix"}, "unify_strategy"),
        ({"offline_loss_type": "nll"}, "offline_loss_type"),
        ({"off_policy_reshape": "p"}, "off_policy_reshape"),
        ({"soft_table": "type_3"}, "soft_table"),
        ({"soft_table": {2: [1, 0, 0]}}, "soft_table"),
        ({"soft_table": {0: [1, 0]}}, "soft_table"),
        ({"sft_loss_coef": -1.0}, "sft_loss_coef"),
        ({"chord_mu": 2.0}, "chord_mu"),
        ({"max_demonstration_length": 0}, "max_demonstration_length"),
    ],
    ids=lambda value: str(value),
)
def test_refused_with_a_reason(run, settings, reason):
    with pytest.raises(ValueError, match=reason):
        run(**settings)


def test_tools_are_refused_with_demonstrations(tiny_model_path, tmp_path):
    def search(query: str) -> str:
        """Search.

        Args:
            query: what to look for
        """
        return query

    config = HybridPostConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=4, bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match="tools"):
        HybridPostTrainer(tiny_model_path, parity_reward, config, rows(MIXED), tools=[search])


def test_four_bit_base_model(tiny_model_path, tmp_path):
    from transformers import AutoTokenizer, BitsAndBytesConfig

    config = HybridPostConfig(
        str(tmp_path),
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        max_completion_length=12,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    trainer = FixedHPT(
        tiny_model_path,
        parity_reward,
        config,
        rows(MIXED),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_path),
        peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear"),
        quantization_config=quantization,
    )
    assert trainer.model.is_loaded_in_4bit
    trainer.train()
    assert any(p.abs().max() > 0 for name, p in weights(trainer).items() if "lora_B" in name)
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))


def test_a_soft_table_that_is_no_json_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`soft_table` is .* no JSON"):
        HybridPostConfig(str(tmp_path), use_cpu=True, bf16=False, unify_strategy="soft", soft_table="{0: [0, 0, 1]}")
