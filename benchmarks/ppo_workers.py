"""One side of `benchmarks.ppo_against_trl`: a PPO trainer that goes one update at a time, when it is told to.

    python -m benchmarks.ppo_workers settings.json FD      # started by the benchmark, not by hand

An update is prompts, generation, scores and all epochs (see `benchmarks.gate`). The stock trainer runs in TRL 1.12's
environment, with which the trainers of hpt_trl do not work: of the package it is given the rule of the positive words.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    set_seed,
)

from benchmarks.gate import Finished, Gate
from benchmarks.ppo_scorers import RuleModel, Scorer, WordScorer


@dataclass(frozen=True)
class Setup:
    """What both sides are given.

    Attributes:
        arm: its name.
        overrides: settings of PPOConfig above the shared ones; None: TRL 1.12's trainer.
        model, tokenizer: folders (or Hub ids).
        reward_model: folder of a classifier; None: the rule of the positive words.
        value_model: folder of the classifier that the stock trainer's value model starts as.
        rows: JSON file, a list of {"prompt": text, "prompt_tokens": ids}.
        output_dir: where the trainer may write.
        batch: completions per PPO update, one per prompt.
        mini_batches: optimizer steps per epoch; each mini-batch is one forward and backward pass.
        lora_r: rank of an adapter on all linear layers, its alpha twice that; 0: all weights are trained.
        same_allocator: freed memory stays with the stock trainer's process as well.
    """

    arm: str
    overrides: dict[str, Any] | None
    model: str
    reward_model: str | None
    value_model: str
    tokenizer: str
    rows: str
    output_dir: str
    seed: int
    updates: int
    batch: int
    mini_batches: int
    epochs: int
    response: int
    learning_rate: float
    kl_coef: float
    vf_coef: float
    cliprange: float
    cliprange_value: float
    gamma: float
    lam: float
    bf16: bool
    lora_r: int
    same_allocator: bool

    @property
    def common(self) -> dict[str, Any]:
        """Settings of `TrainingArguments` that are the same on both sides."""
        return {
            "output_dir": self.output_dir,
            "seed": self.seed,
            "temperature": 1.0,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "kl_coef": self.kl_coef,
            "vf_coef": self.vf_coef,
            "cliprange_value": self.cliprange_value,
            "gamma": self.gamma,
            "lam": self.lam,
            "bf16": self.bf16,
            "use_cpu": not torch.cuda.is_available(),
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }

    def adapter(self, task: TaskType) -> LoraConfig | None:
        """The adapter of a model for this task, None where all weights are trained."""
        if not self.lora_r:
            return None
        return LoraConfig(
            r=self.lora_r, lora_alpha=2 * self.lora_r, lora_dropout=0.0, target_modules="all-linear", task_type=task
        )


def token_count(gate: Gate) -> Callable[[int], None]:
    """What is told the tokens that are scored, prompts and completions; reported as `tokens`: the work of an update."""

    def count(tokens: int) -> None:
        gate.figures["tokens"] = gate.figures.get("tokens", 0) + tokens

    return count


def _classifier(folder: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


def our_config(setup: Setup) -> Any:
    """Settings of this package's trainer.

    Raises:
        TypeError, ValueError: of what the arm overrides.
    """
    from hpt_trl import PPOConfig

    assert setup.overrides is not None
    settings = setup.common | {
        "max_steps": setup.updates * setup.epochs * setup.mini_batches,
        "num_generations": 1,
        "per_device_train_batch_size": setup.batch // setup.mini_batches,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": setup.mini_batches,
        "num_iterations": setup.epochs,
        "max_completion_length": setup.response,
        "epsilon": setup.cliprange,
        "loss_type": "dapo",
        # The stock trainer neither clips gradients nor filters what it samples.
        "max_grad_norm": 0.0,
        "top_k": 0,
        "disable_dropout": True,
    }
    return PPOConfig(**settings | setup.overrides)


def ours(setup: Setup, rows: list[dict[str, Any]], reports: Any) -> Any:
    """PPOTrainer of this package, with the critic that the arm says."""
    from hpt_trl import PPOTrainer
    from hpt_trl.runs.freed_memory import keep_freed_memory

    config = our_config(setup)
    if config.use_cpu:
        keep_freed_memory()  # as a run does
    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # `reward` is the score as it was given, whatever the arm makes of it.
    names = {"ppo/kl": "kl", "reward": "score", "ppo/explained_variance": "explained_variance"}
    gate = Gate(setup.epochs * setup.mini_batches, names, reports)
    count = token_count(gate)
    scorer: Scorer | WordScorer
    if setup.reward_model is None:
        scorer = WordScorer(tokenizer, count)
    else:
        classifier = _classifier(setup.reward_model).to("cpu" if config.use_cpu else "cuda")
        scorer = Scorer(classifier, count)
    return PPOTrainer(
        model,
        scorer,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[gate],
        peft_config=setup.adapter(TaskType.CAUSAL_LM),
    )


def theirs(setup: Setup, rows: list[dict[str, Any]], reports: Any) -> Any:
    """TRL 1.12's PPOTrainer as its example sets it up, with a value model of its own."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **setup.common,
        total_episodes=setup.updates * setup.batch,
        # With accumulation its optimizer would step once per epoch, however many mini-batches there are.
        per_device_train_batch_size=setup.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=setup.mini_batches,
        num_ppo_epochs=setup.epochs,
        local_rollout_forward_batch_size=setup.batch,
        response_length=setup.response,
        stop_token="eos",
        cliprange=setup.cliprange,
        num_sample_generations=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    prompts = [row["prompt_tokens"] for row in rows]
    dataset = Dataset.from_list([{"input_ids": prompt} for prompt in prompts])
    gate = Gate(1, {"objective/kl": "kl", "objective/scores": "score"}, reports)
    count = token_count(gate)
    reward_model: Any
    if setup.reward_model is None:
        reward_model = RuleModel(WordScorer(tokenizer, count), prompts)
    else:
        reward_model = _classifier(setup.reward_model)
        reward_model.base_model.register_forward_pre_hook(
            lambda trunk, args, kwargs: count(int(kwargs["attention_mask"].sum())), with_kwargs=True
        )
    value_model = _classifier(setup.value_model)
    if (adapter := setup.adapter(TaskType.SEQ_CLS)) is not None:
        # The trainer takes the trunk from inside of the model, which the adapter is then a part of.
        value_model = get_peft_model(value_model, adapter).get_base_model()
    watch_critic(value_model, gate)
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=dataset,
        eval_dataset=dataset,  # asked for by its constructor, never used
        callbacks=[gate],
        peft_config=setup.adapter(TaskType.CAUSAL_LM),
    )


def watch_critic(value_model: nn.Module, gate: Gate) -> None:
    """Reports the explained variance of the stock trainer, which does not log it.

    Its values and advantages are seen where its loop passes them to functions of its module. Returns less values are
    the advantages before they are whitened.
    """
    from trl.experimental.ppo import ppo_trainer as module

    get_reward, whiten = module.get_reward, module.masked_whiten
    values: Tensor

    def seen_reward(model: Any, ids: Tensor, pad: int, context: int) -> Any:
        nonlocal values
        found = get_reward(model, ids, pad, context)
        if model is value_model:
            values = found[0][:, context - 1 : -1, 0]
        return found

    def seen_whiten(advantages: Tensor, mask: Tensor) -> Tensor:
        errors = advantages[mask].double()
        returns = errors + values[mask].double()
        gate.figures["explained_variance"] = float(1 - errors.var() / returns.var())
        return whiten(advantages, mask)

    module.get_reward, module.masked_whiten = seen_reward, seen_whiten


def main() -> None:
    setup = Setup(**json.loads(Path(sys.argv[1]).read_text()))
    rows = json.loads(Path(setup.rows).read_text())
    with os.fdopen(int(sys.argv[2]), "w") as reports:
        # The stock trainer shuffles by numpy's generator, which it does not seed.
        set_seed(setup.seed)
        trainer = (theirs if setup.overrides is None else ours)(setup, rows, reports)
        trainer.remove_callback(PrinterCallback)
        with suppress(Finished):
            trainer.train()


if __name__ == "__main__":
    main()
