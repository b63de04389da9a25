"""Training of ValueTrainer on a few pairs, and its losses once more: float64, one answer at a time, no padding."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from hpt_trl import ValueConfig, ValueTrainer

LEARNING_RATE = 0.5


def pairs(count: int = 6) -> Dataset:
    """Questions with a right and a wrong answer, of lengths that differ."""
    return Dataset.from_list(
        [
            {
                "prompt": f"What is {number} + {3 * number}?",
                "chosen": f" {number} + {3 * number} = {4 * number}" + "\n#### " * (number % 3),
                "rejected": f" It is {4 * number + 1}." * (1 + number % 2),
            }
            for number in range(count)
        ]
    )


def train(model: Any, output_dir: str | Path, *, rows: Dataset | None = None, **settings: Any) -> ValueTrainer:
    """Train a step (by default) on all pairs; returns the trainer."""
    resume, adapter = settings.pop("resume_from_checkpoint", None), settings.pop("peft_config", None)
    name = model if isinstance(model, str) else model.config._name_or_path
    config = configured(output_dir, **settings)
    made = ValueTrainer(
        model,
        config,
        train_dataset=pairs() if rows is None else rows,
        eval_dataset=pairs() if rows is None else rows,
        processing_class=AutoTokenizer.from_pretrained(name),
        peft_config=adapter,
    )
    made.train(resume_from_checkpoint=resume)
    return made


def configured(output_dir: str | Path, **settings: Any) -> ValueConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "head_learning_rate": LEARNING_RATE,
        "value_head_dropout": 0.0,
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
        "seed": 7,
    }
    return ValueConfig(**(defaults | settings))


def plain_loss(
    model: Any, rows: Dataset, *, objective: str, lam: float = 1.0, loss: str = "mse", beta: float = 0.5
) -> torch.Tensor:
    """The loss of all pairs, in float64; the model is in that type."""
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    losses = []
    for row in rows:
        values = []
        for side in ("chosen", "rejected"):
            start = len(tokenizer(row["prompt"])["input_ids"])
            ids = tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]
            hidden = model.trunk(input_ids=torch.tensor([ids])).last_hidden_state[0]
            values.append(model.head.score(hidden)[start:, 0])
        if objective == "pairwise":
            losses.append(-torch.log(torch.sigmoid(values[0].mean() - values[1].mean())))
            continue
        for value, outcome in zip(values, (1.0, 0.0), strict=True):
            target, targets = outcome, [outcome]
            for later in value.tolist()[:0:-1]:
                target = (1 - lam) * later + lam * target
                targets.insert(0, target)
            gap = (value - torch.tensor(targets, dtype=torch.float64)).abs()
            each = gap**2 if loss == "mse" else torch.where(gap < beta, gap**2 / (2 * beta), gap - beta / 2)
            losses.append(each.mean())
    return torch.stack(losses).mean()
