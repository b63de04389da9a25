"""Whether there is anything to train: an optimizer without a parameter runs through with healthy-looking curves."""

from typing import Any

from hpt_trl.errors import UserError


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
