"""Checkpoints of models whose weights have other names in files than in memory, such as experts that are one tensor.

`from_pretrained` joins the experts and `save_pretrained` parts them again, but transformers' Trainer (5.23) resumes by
the names in the file: every expert would go on from the weights of the model that the run began with, with no more than
a warning. Drop this when the Trainer converts.
"""

from pathlib import Path
from typing import Any


def load_converted(model: Any, checkpoint: str | Path) -> bool:
    """Load a whole model's weights from a checkpoint, where the names in its files are not those in memory.

    Args:
        model: without a wrapper around it, whole in this process; it has been loaded by name already.

    Returns:
        Whether there was anything to do.
    """
    from transformers.core_model_loading import WeightConverter

    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        conversions = get_model_conversion_mapping(model)
    if not any(isinstance(one, WeightConverter) for one in conversions):
        return False
    loaded = type(model).from_pretrained(checkpoint, dtype="auto")
    # What the files do not hold, such as heads of their own folder, stays.
    model.load_state_dict(loaded.state_dict(), strict=False)
    return True
