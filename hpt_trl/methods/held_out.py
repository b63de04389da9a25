"""The loss on held-out rows, as the trainer itself measures it."""

from typing import Any

from transformers import Trainer

from hpt_trl.models.random_state import kept_random_state


def measure_held_out(trainer: Trainer) -> dict[str, float]:
    """What the trainer's own evaluation finds on its held-out rows: the loss, and what TRL measures beside it.

    The random state of the training stays as it is. All processes must call it together. The loss is a mean over the
    rows; what TRL measures beside it is a mean over the batches, in which a last, smaller one counts as much.

    Returns:
        Metric -> value, without the prefix `eval_` and without times and counters.
    """
    left_out = ("runtime", "_per_second", "num_tokens", "model_preparation_time")
    model: Any = trainer.model
    was_training = model.training
    with kept_random_state(trainer.accelerator.device):
        metrics = trainer.evaluate()
    model.train(was_training)
    return {
        key.removeprefix("eval_"): value
        for key, value in metrics.items()
        if key.startswith("eval_") and not key.endswith(left_out)
    }
