"""Training runs whose rollouts are fixed, so that two trainers can be compared on the same ones.

Only the sampling is replaced, by completions drawn from the prompt and the member of its group: the rest of `.train()`
is the trainer's own. Which completions come out does not depend on the number of processes or on the weights.
"""

import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from hpt_trl import HybridPostConfig, HybridPostTrainer, PPOConfig, PPOTrainer
from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.rollouts.trainer import RolloutTrainer

GROUP = 4
# With SGD an update is minus this times the gradient; at 1 it is not lost in the rounding of the weights.
LEARNING_RATE = 1.0


def fixed_completion(
    prompt_ids: list[int], member: int, step: int, longest: int, vocabulary: int, eos: int
) -> list[int]:
    """Completion of 1 to `longest` tokens of a member of a prompt's group; two of three end on EOS."""
    generator = torch.Generator().manual_seed(zlib.crc32(bytes(str((prompt_ids, member, step)), "utf8")))
    length = int(torch.randint(1, longest + 1, (), generator=generator))
    completion = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
    if member % 3:
        completion[-1] = eos
    return completion


class FixedRollouts:
    """Mixin for a GRPOTrainer whose completions come from `fixed_completion`."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any):
        first = self.accelerator.process_index * len(prompt_ids)
        vocabulary, eos = self._tokenizer.vocab_size, self._tokenizer.eos_token_id
        completions = [
            fixed_completion(
                ids,
                (first + offset) % self.num_generations,
                self.state.global_step,
                self.max_completion_length,
                vocabulary,
                eos,
            )
            for offset, ids in enumerate(prompt_ids)
        ]
        return completions, None


class FixedGRPO(FixedRollouts, GRPOTrainer):
    pass


class FixedHPT(FixedRollouts, HybridPostTrainer):
    pass


class FixedPPO(FixedRollouts, PPOTrainer):
    pass


class FixedMended(FixedRollouts, RolloutTrainer):
    pass


CONFIGS: dict[type, type] = {
    HybridPostTrainer: HybridPostConfig,
    PPOTrainer: PPOConfig,
    RolloutTrainer: RolloutConfig,
}


def parity_reward(completion_ids: list[list[int]], kind: list[str], **_: Any) -> list[float]:
    """1 or 0: by the row's kind (`fail`, `solve`), else by the parity of the first token."""
    fixed = {"fail": 0.0, "solve": 1.0}
    return [fixed.get(name, float(sum(ids) % 2)) for name, ids in zip(kind, completion_ids, strict=True)]


def rows(kinds: list[str], turns: int = 1) -> Dataset:
    """One row per kind, each with its own prompt and demonstration; every other one of `turns` turns, the rest of 1."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"What is {i} + {i * 3}?" + " please" * (i % 3)}],
                "completion": [
                    {"role": "assistant", "content": f"{i} + {i * 3} = {i * 4}\n#### {i * 4}"},
                    *[
                        {"role": role, "content": content}
                        for turn in range(1, turns if i % 2 == 0 else 1)
                        for role, content in (("user", f"And {turn} more?"), ("assistant", f"#### {i * 4 + turn}"))
                    ],
                ],
                "kind": kind,
            }
            for i, kind in enumerate(kinds)
        ]
    )


MIXED = ["fail", "mixed", "solve", "mixed", "fail", "mixed", "fail", "solve"]


def train(*args: Any, resume_from_checkpoint: str | None = None, **settings: Any) -> Any:
    """Train one step (by default) on all prompts at once, see `build`; returns the trainer."""
    trainer = build(*args, **settings)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def build(
    trainer_class: type,
    model_path: str,
    output_dir: str | Path,
    kinds: list[str] = MIXED,
    dataset: Dataset | None = None,
    reward: Any = parity_reward,
    peft_config: Any = None,
    model: Any = None,
    lora: bool = False,
    turns: int = 1,
    **settings: Any,
) -> Any:
    """A trainer of one step (by default) on all prompts at once. Settings are config fields."""
    group = settings.get("num_generations", GROUP)
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_generations": group,
        "max_completion_length": 12,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": max(1, len(kinds) * group // 8),
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "loss_type": "grpo",
        "seed": 7,
    }
    config_class = next((CONFIGS[base] for base in trainer_class.__mro__ if base in CONFIGS), GRPOConfig)
    config = config_class(**(defaults | settings))
    return trainer_class(
        model=model or AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=rows(kinds, turns) if dataset is None else dataset,
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear") if lora else peft_config,
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def start_weights(model_path: str) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in AutoModelForCausalLM.from_pretrained(model_path).named_parameters()}


def as_update(gradient: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights after one step from `start` along minus the gradient."""
    return {name: start[name].double() - LEARNING_RATE * gradient[name] for name in gradient}


def assert_same_update(ours: dict, theirs: dict, start: dict, tolerance: float = 1e-4) -> None:
    """The norm of the difference of two updates is at most `tolerance` of the second's."""
    difference = sum((ours[n].double() - theirs[n]).square().sum() for n in ours)
    update = sum((theirs[n].double() - start[n]).square().sum() for n in theirs)
    distance = float((difference / update).sqrt())
    assert update > 0
    assert distance < tolerance
