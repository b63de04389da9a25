"""The trainers take what TRL's own take, by position as by name."""

import inspect

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from hpt_trl import (
    HybridPostConfig,
    HybridPostTrainer,
    PPOConfig,
    PPOTrainer,
    Rho1Config,
    Rho1Trainer,
    ValueConfig,
    ValueTrainer,
    WeightedMTPConfig,
    WeightedMTPTrainer,
)
from hpt_trl.methods.dpo.trainer import MeasuredDPOTrainer
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.rollouts.trainer import RolloutTrainer

ROWS = Dataset.from_list([{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)])
COMPARISONS = ROWS.map(lambda row: {"chosen": row["completion"], "rejected": "No."}, remove_columns="completion")
SETTINGS = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
ROLLOUTS = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}


class Seen(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def length(completion_ids, **columns):
    return [float(len(ids) % 3) for ids in completion_ids]


@pytest.mark.parametrize(
    ("trainer", "base", "own"),
    [
        (HybridPostTrainer, GRPOTrainer, ["environment"]),
        (PPOTrainer, GRPOTrainer, []),
        (Rho1Trainer, SFTTrainer, []),
        (MeasuredSFTTrainer, SFTTrainer, []),
        (WeightedMTPTrainer, SFTTrainer, []),
        (ValueTrainer, RewardTrainer, []),
    ],
)
def test_the_signature_is_the_bases(trainer, base, own):
    parameters = inspect.signature(trainer).parameters
    assert list(parameters) == [*inspect.signature(base).parameters, *own]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)
    with pytest.raises(TypeError, match="'model'"):
        trainer()
    with pytest.raises(TypeError, match="'datasett'"):
        trainer("a", datasett=None)


@pytest.mark.parametrize(
    ("trainer", "config"), [(HybridPostTrainer, HybridPostConfig), (PPOTrainer, PPOConfig), (RolloutTrainer, None)]
)
def test_rollout_trainers_by_position(tiny_model_path, tmp_path, trainer, config):
    args = (config or GRPOConfig)(str(tmp_path), **SETTINGS, **ROLLOUTS)
    tokenizer, seen = AutoTokenizer.from_pretrained(tiny_model_path), Seen()
    # model, reward_funcs, args, train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks
    made = trainer(tiny_model_path, length, args, ROWS, ROWS.select(range(4)), tokenizer, None, [seen])
    assert made.args is args and made.processing_class is tokenizer and len(made.eval_dataset) == 4
    made.train()
    assert seen.steps == 1


def by_position(base, **given):
    """The arguments of a base's `__init__` up to its callbacks, in its order."""
    parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    assert given.keys() <= set(names)
    return [given.get(parameter.name, parameter.default) for parameter in parameters[: names.index("callbacks") + 1]]


@pytest.mark.parametrize(
    ("trainer", "base", "config", "own"),
    [
        (Rho1Trainer, SFTTrainer, Rho1Config, {"selection": "random", "select_ratio": 0.5}),
        (MeasuredSFTTrainer, SFTTrainer, SFTConfig, {}),
        (WeightedMTPTrainer, SFTTrainer, WeightedMTPConfig, {"n_future_tokens": 2}),
        (MeasuredDPOTrainer, DPOTrainer, DPOConfig, {}),
        (ScoringRewardTrainer, RewardTrainer, RewardConfig, {}),
        (ValueTrainer, RewardTrainer, ValueConfig, {}),
    ],
)
def test_trainers_on_rows_by_position(tiny_model_path, tmp_path, trainer, base, config, own):
    args = config(str(tmp_path), **SETTINGS, **own)
    tokenizer, seen = AutoTokenizer.from_pretrained(tiny_model_path), Seen()
    rows = ROWS if base is SFTTrainer else COMPARISONS
    given = {"args": args, "train_dataset": rows, "eval_dataset": rows.select(range(4)), "callbacks": [seen]}
    made = trainer(*by_position(base, model=tiny_model_path, processing_class=tokenizer, **given))
    assert made.args is args and made.processing_class is tokenizer and len(made.eval_dataset) == 4
    made.train()
    assert seen.steps == 1


def test_rho1_without_args_says_what_it_needs(tiny_model_path):
    with pytest.raises(ValueError, match=r"`args` is missing.*args=Rho1Config\(.*reference_model_name_or_path"):
        Rho1Trainer(model=tiny_model_path, train_dataset=ROWS)


@pytest.mark.parametrize("trainer", [HybridPostTrainer, PPOTrainer, Rho1Trainer])
def test_a_config_of_another_trainer_is_named(tiny_model_path, tmp_path, trainer):
    args = GRPOConfig(str(tmp_path), **SETTINGS, **ROLLOUTS)
    with pytest.raises(TypeError, match=f"`args` is a GRPOConfig; {trainer.__name__} takes a "):
        trainer(tiny_model_path, args=args, train_dataset=ROWS)


def test_rewards_and_their_tokenizers_are_counted(tiny_model_path, tmp_path):
    args = GRPOConfig(str(tmp_path), **SETTINGS, **ROLLOUTS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    with pytest.raises(ValueError, match="`reward_processing_classes` has 2 entries for 1 rewards"):
        RolloutTrainer(tiny_model_path, length, args, ROWS, None, tokenizer, [None, tokenizer])
    made = RolloutTrainer(tiny_model_path, (length, length), args, ROWS, None, tokenizer)
    assert len(made.reward_funcs) == 2
