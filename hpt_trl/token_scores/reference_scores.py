"""Losses under a reference model: of a batch, and of a data set in its cache."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hpt_trl.models import fused_head
from hpt_trl.token_scores.cache import ScoreCache
from hpt_trl.token_scores.config import ReferenceConfig
from hpt_trl.token_scores.kinds import REFERENCE_NLL, scored_positions
from hpt_trl.token_scores.reference import fingerprint, load_reference
from hpt_trl.token_scores.scoring import Scorer, autocast_of, prepare_cache


@torch.no_grad()
def reference_nll(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the reference's losses of a batch, -log p(label), 0 where there is no label.

    Args:
        model: the reference, in evaluation mode, with TRL's fused head.
        batch: from SFTTrainer's collator, on the model's device.

    Returns:
        (rows, tokens) float16, in nats, at the places of the labels.
    """
    with fused_head.labelled_alone(scored_positions(batch["labels"])[:, 1:].flatten()):
        outputs = model(**batch, fused_lm_head=True)
    losses = torch.zeros(batch["labels"].shape, dtype=torch.float16, device=batch["labels"].device)
    losses[:, 1:] = -outputs.log_probs
    return losses


def reference_scorer(config: ReferenceConfig, device: torch.device) -> Scorer:
    """The reference of a run, loaded when it is first asked."""
    autocast = autocast_of(config, device)
    return Scorer(REFERENCE_NLL, lambda: load_reference(config, device), reference_nll, device, autocast)


def reference_cache(
    config: ReferenceConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    device: torch.device,
) -> ScoreCache:
    """Open the cache of a run's reference and fill it, see `prepare_cache`.

    Args:
        tokenizer: of the trained model.
        dataset: prepared rows (`input_ids`, `labels`, `seq_lengths` where they are packed).
        collator: the trainer's.
        device: of this process.

    Raises:
        UserError: no room on the disk, a cache whose scores are not this reference's, or a loss that is not finite.
    """
    return prepare_cache(
        reference_scorer(config, device),
        config,
        lambda autocast: fingerprint(config, tokenizer, autocast=autocast),
        dataset,
        collator,
    )
