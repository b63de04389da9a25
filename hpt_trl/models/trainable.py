"""Whether a model can be trained and asked at all: weights that are numbers, and some of them not frozen."""

from typing import Any

import torch

from hpt_trl.errors import UserError
from hpt_trl.models.sharded_weights import local_part

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def refuse_broken(model: torch.nn.Module, name: str) -> None:
    """Find weights that are no numbers, or embeddings of zeros alone, as a damaged file gives them.

    Args:
        model: that was loaded; spread over processes or not.
        name: of it, for the message.

    Raises:
        UserError: the first such weight.
    """
    for key, parameter in model.named_parameters():
        part = local_part(parameter)
        if part.is_meta or not part.numel() or not part.is_floating_point() or part.element_size() < 2:
            continue
        if not bool(torch.isfinite(part).all()):
            raise UserError(
                f"{name}: weights of {key} are NaN or infinite: its file is damaged, or its training had diverged."
            )
        # A part may be of rows that pad the vocabulary.
        if key.endswith(_EMBEDDINGS) and _is_all(part, parameter) and not bool(part.any()):
            raise UserError(f"{name}: all weights of {key} are 0: its file is damaged. Copy the model anew.")


def refuse_untrainable(model: Any) -> None:
    """Find a model of which no parameter would be trained.

    Args:
        model: a module; a name or folder passes unseen.

    Raises:
        UserError: what to write instead.
    """
    if isinstance(model, str) or any(parameter.requires_grad for parameter in model.parameters()):
        return
    if getattr(model, "peft_config", None):
        raise UserError(
            "Nothing to train: every weight of the model and of its adapter is frozen. PEFT loads an adapter for "
            "inference unless it is told otherwise; write `PeftModel.from_pretrained(base, adapter, is_trainable=True)`"
            ", or pass the base model with a `peft_config` for a new adapter."
        )
    raise UserError(
        "Nothing to train: every weight of the model is frozen. Unfreeze what is to be trained, e.g. "
        "`model.requires_grad_(True)`, or pass a `peft_config` for a new adapter."
    )


def _is_all(part: torch.Tensor, parameter: Any) -> bool:
    """Whether what this process holds of a parameter is all of it; ZeRO-3 leaves an empty one in its place."""
    return part.numel() == getattr(parameter, "ds_numel", parameter.numel())
