"""Training of Rho1Trainer and SFTTrainer on a few rows, and the method once more, straight from the paper.

The oracle is float64, one row at a time, without padding, and shares nothing with the package.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hpt_trl import Rho1Config, Rho1Trainer

LEARNING_RATE = 0.5
TEXTS = [f"What is {i} + {3 * i}? " + f"{i} + {3 * i} = {4 * i}\n#### {4 * i} " * (1 + i % 3) for i in range(8)]


def documents(count: int = 8) -> Dataset:
    return Dataset.from_dict({"text": TEXTS[:count]})


def demonstrations(count: int = 8) -> Dataset:
    prompts = [f"What is {i} + {3 * i}?" for i in range(count)]
    completions = [f" It is {4 * i}" + " or so" * (i % 3) for i in range(count)]
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def train(
    trainer: str,
    model_path: str,
    output_dir: str | Path,
    *,
    rows: str = "documents",
    dataset: Dataset | None = None,
    lora: bool = False,
    model: Any = None,
    resume_from_checkpoint: Any = None,
    **settings: Any,
) -> Any:
    """Train one step (by default) on all eight rows in their order; returns the trainer.

    Args:
        trainer: `Rho1Trainer` or `SFTTrainer`.
        rows: `documents` or `demonstrations`.
        settings: config fields; SGD's update is the gradient times the learning rate.
    """
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 7,
    }
    ours = trainer == "Rho1Trainer"
    if ours:
        settings.setdefault("reference_cache_dir", str(Path(output_dir) / "scores"))
    config = (Rho1Config if ours else SFTConfig)(**(defaults | settings))
    made = (Rho1Trainer if ours else SFTTrainer)(
        model or model_path,
        config,
        train_dataset=dataset if dataset is not None else globals()[rows](),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear") if lora else None,
    )
    made.train(resume_from_checkpoint=resume_from_checkpoint)
    return made


class Oracle:
    """The rows of a step, each with its tokens' losses under model and reference, in float64."""

    def __init__(self, model_path: str, reference_path: str, rows: str = "documents"):
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
        reference = AutoModelForCausalLM.from_pretrained(reference_path, dtype=torch.float64)
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.losses, self.references = [], []
        for row in {"documents": documents, "demonstrations": demonstrations}[rows]():
            if rows == "documents":
                ids, first = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"], 1
            else:
                ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
                first = len(tokenizer(row["prompt"])["input_ids"])
            self.losses.append(_loss(self.model, ids)[first - 1 :])
            # The scores are kept in half precision.
            self.references.append(_loss(reference, ids)[first - 1 :].detach().half().double())

    def gradient(self, ratio: float, groups: list[list[int]], selection: str = "excess") -> dict[str, torch.Tensor]:
        """Gradient of the paper's loss (eq. 4), in the mean over all tokens of the step.

        Args:
            groups: numbers of the rows that are ranked together.
        """
        total, tokens = torch.zeros((), dtype=torch.float64), sum(len(loss) for loss in self.losses)
        for group in groups:
            loss = torch.cat([self.losses[row] for row in group])
            reference = torch.cat([self.references[row] for row in group])
            score = loss.detach() - reference if selection == "excess" else -reference
            ranked = sorted(range(len(loss)), key=lambda token, score=score: (-score[token].item(), token))
            chosen = ranked[: max(1, round(ratio * len(loss)))]
            total = total + loss[chosen].mean() * len(loss) / tokens
        self.loss = total.item()
        grads = torch.autograd.grad(total, list(self.model.parameters()), retain_graph=True)
        return {name: grad for (name, _), grad in zip(self.model.named_parameters(), grads, strict=True)}


def _loss(model: Any, ids: list[int]) -> torch.Tensor:
    """Loss of each token after the first, in nats."""
    logp = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], dim=-1)
    return -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
