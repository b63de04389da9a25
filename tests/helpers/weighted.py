"""Training with a weight for each token: TokenWeights on the package's SFTTrainer, as any trainer may have it."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.token_scores.cache import WithScores
from hpt_trl.token_scores.samples import TokenSamples
from hpt_trl.token_scores.scoring import autocast_of
from hpt_trl.token_scores.values import load_frozen, token_values, value_cache
from hpt_trl.token_scores.weighting import WEIGHTS, TokenWeights
from hpt_trl.token_scores.weighting_config import TokenWeightingConfig
from hpt_trl.token_scores.weights_page import SAMPLES_FILE
from tests.helpers.rho1 import demonstrations

LEARNING_RATE = 0.5


class WeightedTrainer(MeasuredSFTTrainer):
    """SFTTrainer whose tokens have weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config, device, score = self.args, self.accelerator.device, None
        self._collate_train = self.data_collator
        if config.needs_values and config.value_mode == "cached":
            cache = value_cache(config, self.processing_class, self.train_dataset, self.data_collator, device=device)
            self._collate_train = WithScores(self.data_collator, cache)
        elif config.needs_values:
            critic = load_frozen(config, device)

            def score(batch: dict[str, Any]) -> torch.Tensor:
                with autocast_of(config, device)():
                    return token_values(critic, batch)

        self.weights = TokenWeights(
            config,
            all_sum=lambda value: self.accelerator.reduce(value, reduction="sum"),
            score=score,
            decode=self.processing_class.decode,
        )
        self.seen: list[torch.Tensor] = []
        self._samples = TokenSamples(Path(config.output_dir) / SAMPLES_FILE, self.processing_class)
        self.add_callback(self._samples)
        self._first_nll: torch.Tensor | None = None

    def get_train_dataloader(self) -> Any:
        plain, self.data_collator = self.data_collator, self._collate_train
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.weights.add_to(batches, step=self.state.global_step)
        self._first_nll = None
        return batches, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        weights = inputs.pop(WEIGHTS, None)
        if weights is None:
            return super().compute_loss(model, inputs, **kwargs)
        batch = {**inputs, WEIGHTS: weights}

        def weighted(**arguments: Any) -> Any:
            outputs = model(**arguments)
            nll = torch.zeros_like(weights)
            nll[:, 1:] = -outputs.log_probs.detach()
            self.weights.note_nll(batch, nll)
            self._first_nll = nll[0] if self._first_nll is None else self._first_nll
            outputs.log_probs = outputs.log_probs * weights[:, 1:]
            return outputs

        self.seen.append(weights.detach().clone())
        return super().compute_loss(weighted, inputs, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        found = self.weights.sample(self._first_nll) if self._first_nll is not None else None
        if found is not None and self.is_world_process_zero():
            self._samples.write(self.state.global_step, *found)
        super().log({**logs, **{f"weights/{name}": value for name, value in self.weights.pop_metrics().items()}}, *args)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            self.weights.save(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.weights.load(checkpoint)


def train(
    model_path: str, value_model: str | None, output_dir: str | Path, *, rows: Dataset | None = None, **settings: Any
) -> WeightedTrainer:
    """Train one step (by default) on eight rows in their order; returns the trainer."""
    resume = settings.pop("resume_from_checkpoint", None)
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "value_model_name_or_path": value_model,
        "value_cache_dir": str(Path(output_dir) / "values"),
        "per_device_train_batch_size": 8,
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
    trainer = WeightedTrainer(
        model_path,
        TokenWeightingConfig(**(defaults | settings)),
        train_dataset=demonstrations() if rows is None else rows,
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
