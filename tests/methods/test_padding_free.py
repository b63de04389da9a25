"""Trainers on rows that compute no padding train and measure what the padded ones do."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import SFTConfig

from hpt_trl import Rho1Config, Rho1Trainer, ValueConfig, ValueTrainer
from hpt_trl.methods.dpo.trainer import MeasuredDPOTrainer
from hpt_trl.methods.padding_free import PaddingFreeDPOConfig, PaddingFreeRewardConfig, PaddingFreeSFTConfig
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer

# Rows of unlike lengths, some of which begin alike.
ROWS = Dataset.from_list(
    [
        {"prompt": f"What is {n}?" + " Please." * (n % 5), "completion": f" It is {n}." + " Yes." * (n * 3 % 7)}
        for n in (11, 12, 13, 14, 25, 26, 37, 38, 49, 50, 51, 52)
    ]
)
COMPARISONS = ROWS.map(lambda row: {"chosen": row["completion"], "rejected": " No." * (len(row["prompt"]) % 4 + 1)})
COMPARISONS = COMPARISONS.remove_columns("completion")
TRAINERS: dict[str, tuple[type, type, Dataset, dict[str, Any]]] = {
    "sft": (MeasuredSFTTrainer, PaddingFreeSFTConfig, ROWS, {}),
    "dpo": (MeasuredDPOTrainer, PaddingFreeDPOConfig, COMPARISONS, {}),
    "reward": (ScoringRewardTrainer, PaddingFreeRewardConfig, COMPARISONS, {}),
    "rho1": (Rho1Trainer, Rho1Config, ROWS, {"select_ratio": 0.6}),
    "critic": (ValueTrainer, ValueConfig, COMPARISONS, {}),
}
# Of times.
NOT_COMPARED = ("runtime", "per_second", "epoch", "step")


@pytest.fixture
def run(tiny_model_path, reference_model_path, tmp_path):
    def run(kind: str, *, lora: bool = False, rows: Dataset | None = None, model: Any = None, **settings: Any) -> Any:
        trainer_class, config_class, own_rows, own = TRAINERS[kind]
        rows = own_rows if rows is None else rows
        defaults = {
            "max_steps": 3,
            "learning_rate": 0.05,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "gradient_accumulation_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "max_length": 64,
        }
        if kind == "rho1":
            own = own | {"reference_model_name_or_path": reference_model_path, "reference_cache_dir": str(tmp_path)}
        args = config_class(str(tmp_path / "out"), **defaults | own | settings)
        args.is_as_trl = False  # as in a recipe
        adapter = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False)
        torch.manual_seed(0)
        trainer = trainer_class(
            model=model or tiny_model_path,
            args=args,
            train_dataset=rows,
            eval_dataset=rows.select(range(7)),
            processing_class=AutoTokenizer.from_pretrained(tiny_model_path),
            **{"peft_config": adapter} if lora else {},
        )
        trainer.train()
        return trainer

    return run


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


def metrics(trainer: Any, leave_out: tuple[str, ...]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.endswith(NOT_COMPARED + leave_out)}
        for line in trainer.state.log_history
    ]


def assert_same(one: Any, two: Any, leave_out: tuple[str, ...] = ()) -> None:
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(two)[name], rtol=1e-5, atol=1e-6)
    for line, other in zip(metrics(one, leave_out), metrics(two, leave_out), strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=2e-6)


@pytest.fixture
def tokens(monkeypatch):
    """How many tokens each forward pass of a trunk computes, in the order of the passes."""
    from transformers.models.llama.modeling_llama import LlamaModel

    counted: list[int] = []
    forward = LlamaModel.forward

    def counting(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        counted.append(input_ids.numel())
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    return counted


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sft": [
        {},
        {"lora": True},
        {"label_smoothing_factor": 0.1},
        {"completion_only_loss": False, "loss_type": "dft"},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    ],
    "dpo": [
        {},
        {"lora": True, "gradient_checkpointing": True},
        {"loss_type": ["ipo", "sft"], "precompute_ref_log_probs": True},
    ],
    "reward": [{}, {"lora": True, "center_rewards_coefficient": 0.1}, {"gradient_checkpointing": True}],
    "rho1": [
        {},
        {"lora": True, "reference_mode": "online"},
        {"selection_scope": "global", "gradient_accumulation_steps": 2},
    ],
    "critic": [{}, {"objective": "regression", "lora": True}],
}
CASES = [(kind, settings) for kind, several in SETTINGS.items() for settings in several]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else ",".join(x) or "plain")
def test_equal_to_the_padded_way(run, tokens, kind, settings):
    computed, trainers = [], []
    for way in (False, None):
        trainers.append(run(kind, padding_free=way, **settings))
        tokens.clear()
        trainers[-1].evaluate()
        computed.append(sum(tokens))
    padded, free = trainers
    # What the reference says was found in batches of others: which of two equal answers is the better is rounding's.
    assert_same(free, padded, leave_out=("rewards/accuracies",) if "precompute_ref_log_probs" in settings else ())
    assert 0 < computed[1] < 0.9 * computed[0]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_load_balancing_loss_is_that_of_padded_rows(run, tiny_model_path, tmp_path, kind):
    """It counts every token, also those that rows share and those that nothing else depends on."""
    vocabulary = len(AutoTokenizer.from_pretrained(tiny_model_path))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(vocab_size=vocabulary, **sizes, **experts)).save_pretrained(tmp_path / "experts")
    settings = {"model": str(tmp_path / "experts"), "router_aux_loss_coef": 0.5, "max_steps": 2}
    free, padded = run(kind, **settings), run(kind, padding_free=False, **settings)
    assert free.state.log_history[0]["aux_loss"] > 0
    assert_same(free, padded)


def test_what_is_saved_is_a_model_as_any(run, tmp_path):
    """The attention that reads rows without padding is no setting of the model."""
    run("sft").save_model(str(tmp_path / "saved"))
    assert "attn" not in (tmp_path / "saved" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_model_that_cannot_computes_padding_and_says_so_once(run, caplog, kind):
    with caplog.at_level(logging.INFO, logger="hpt_trl"):
        eager = run(kind, model_init_kwargs={"attn_implementation": "eager"})
    said = [record.message for record in caplog.records if "computes the padding of its rows" in record.message]
    assert len(said) == 1 and "`attn_implementation` is 'eager'" in said[0]
    assert_same(eager, run(kind, padding_free=False, model_init_kwargs={"attn_implementation": "eager"}))


def test_trls_own_config_asks_for_trls_arithmetic(tiny_model_path, tmp_path):
    """And so does `false`, and noise that is drawn for padded rows."""
    noisy = PaddingFreeSFTConfig(str(tmp_path), use_cpu=True, bf16=False, neftune_noise_alpha=5.0)
    for config in (SFTConfig(str(tmp_path), use_cpu=True, bf16=False), *of_sft(tmp_path, False), noisy):
        trainer = MeasuredSFTTrainer(tiny_model_path, config, train_dataset=ROWS)
        assert "padded_forward" not in vars(trainer.model.base_model)
    (config,) = of_sft(tmp_path, None)
    assert config.learning_rate == SFTConfig.learning_rate and config.logging_steps == SFTConfig.logging_steps
    assert "padded_forward" in vars(MeasuredSFTTrainer(tiny_model_path, config, train_dataset=ROWS).model.base_model)


def test_a_first_batch_without_padding_is_tried_as_well(run):
    """Where another process has one with padding, both try theirs."""
    rows = COMPARISONS.select([0, 0, 0, 0, 0, 0, 0])
    rows = rows.map(lambda row: {"rejected": row["chosen"]})
    trainer = run("reward", rows=rows, max_steps=1, eval_strategy="no")
    assert trainer.model.base_model.is_padding_free is True


def of_sft(folder: Path, *ways: bool | None) -> list[PaddingFreeSFTConfig]:
    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_length": None}
    return [PaddingFreeSFTConfig(str(folder), padding_free=way, **settings) for way in ways]
