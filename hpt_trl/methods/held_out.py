"""Measures on held-out rows: what a trainer finds, and how exactly it is known.

The trainers of TRL and transformers average over batches: a last, smaller one counts as much as the others, rows that
only fill the processes' batches up count twice, and a loss over tokens is averaged over rows. `HeldOutMeasures` goes
around a trainer and measures each row by itself, with the trainer's own loss; the averages follow from these.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer

from hpt_trl.models.random_state import kept_random_state

# Mixed into a trainer, whose methods it wraps; by itself it is none.
_Base: Any = object

# Of a batch without padding: the tokens of each of its rows; where rows have several contexts, how many each has.
# Shape: (rows,).
ROW_LENGTHS = "row_lengths"

_EXTREMES: dict[str, Callable[[list[float]], float]] = {"min_reward": min, "max_reward": max}
# Shares of comparisons -> the margin beside them, and the name of the share that are ties.
_SHARES = {"rewards/accuracies": ("rewards/margins", "rewards/ties"), "accuracy": ("margin", "ties")}


@dataclass(frozen=True)
class RowMeasures:
    """What was measured of one held-out row.

    Attributes:
        place: the row's number in the evaluation, by which rows are told apart.
        values: metric -> its mean over the row, and over how much of it: tokens, or 1 for the row as a whole.
    """

    place: int
    values: dict[str, tuple[float, float]]


class HeldOutMeasures(_Base):
    """Evaluates exactly: each mean is the sum over all held-out tokens, or rows, divided by their number.

    A mixin for `SFTTrainer`, `DPOTrainer` and `RewardTrainer` (before them among the bases). The values do not depend
    on `per_device_eval_batch_size`, padding or the number of processes. `loss`, `entropy`, `mean_token_accuracy` and
    `logits/*` are means over tokens where the base's are, all else over rows; `min_reward` and `max_reward` are those
    of all rows. Where both answers of a comparison score the same, it counts as half right, and `rewards/ties` (`ties`
    of a reward model) is the share of such comparisons. The load-balancing loss of a mixture of experts is the batch's.

    The forward passes are the base's, one per batch. With a sequence or its weights spread over processes (context,
    sequence or tensor parallelism) a process does not hold a row by itself, and the base's means stand.
    """

    accelerator: Any
    _metrics: dict[str, defaultdict[str, list[float]]]
    # Of the last evaluation; empty where the base's means stand.
    held_out_rows: Sequence[RowMeasures] = ()
    _measured: list[RowMeasures] | None = None
    _batches_seen = 0

    # What a base differs in.

    def _held_out_count(self, inputs: dict[str, Any]) -> int:
        """How many rows a batch holds."""
        raise NotImplementedError

    def _held_out_row(self, values: Mapping[str, Any], inputs: dict[str, Any], row: int) -> dict[str, Any]:
        """The share of one row in a batch's tensors: of what goes into the model, or of what comes out of it."""
        raise NotImplementedError

    def _held_out_weights(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, float]:
        """Metric -> over how many tokens of this row it is a mean; metrics that are not named have one value a row."""
        return {}

    def _held_out_inputs(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with what the base would otherwise have to compute for each row anew."""
        return inputs

    # What is wrapped.

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._measured, self._batches_seen = ([] if self.accelerator.parallelism_config is None else None), 0
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            measured = self._measured
        finally:
            self._measured = None
        if measured is None:
            return output
        self.held_out_rows = sorted(gather_object(measured), key=lambda row: row.place)
        means = means_of(self.held_out_rows)
        output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
        # From here the base's `log` takes what it measured beside the loss.
        for name, mean in means.items():
            self._metrics["eval"][name] = [mean]
        return output

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._measured is None:
            inputs.pop(ROW_LENGTHS, None)
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        places = self._places(inputs)
        inputs = self._held_out_inputs(model, inputs)
        batch = {name: value for name, value in inputs.items() if name != ROW_LENGTHS}
        passes: list[Any] = []

        def recording(*args: Any, **kwargs: Any) -> Any:
            passes.append(model(*args, **kwargs))
            return passes[-1]

        accelerator = self.accelerator
        kept = {name: list(values) for name, values in self._metrics["eval"].items()}
        # What the base gathers from all processes stays this one's, row by row.
        self.accelerator = _Alone(accelerator)
        try:
            result = super().compute_loss(recording, batch, return_outputs=return_outputs)
            for row, place in enumerate(places):
                self._measured.append(RowMeasures(place, self._measure_row(inputs, passes, row)))
        finally:
            self.accelerator = accelerator
            self._metrics["eval"].clear()
            self._metrics["eval"].update(kept)
        return result

    def _measure_row(self, inputs: dict[str, Any], passes: list[Any], row: int) -> dict[str, tuple[float, float]]:
        """The base's loss and metrics of one row, from the batch's forward passes."""
        replayed = iter(passes)
        own = self._held_out_row({name: value for name, value in inputs.items() if name != ROW_LENGTHS}, inputs, row)
        shares: list[dict[str, Any]] = []

        def replay(*args: Any, **kwargs: Any) -> Any:
            outputs = next(replayed)
            shares.append(self._held_out_row(outputs, inputs, row))
            return type(outputs)(**shares[-1])

        self._metrics["eval"].clear()
        loss = super().compute_loss(replay, dict(own))
        values = {"loss": loss.item()}
        values |= {name: found[-1] for name, found in self._metrics["eval"].items() if name != "num_tokens"}
        for share, (margin, ties) in _SHARES.items():
            if share in values and margin in values:
                values[ties] = float(values[margin] == 0)
                values[share] = 0.5 if values[margin] == 0 else values[share]
        weights = self._held_out_weights(own, shares[0])
        return {name: (value, weights.get(name, 1.0)) for name, value in values.items()}

    def _places(self, inputs: dict[str, Any]) -> list[int]:
        """Numbers of the batch's rows in the whole evaluation, without those that only fill it up."""
        held = self._held_out_count(inputs)
        size, state = self.args.eval_batch_size, self.accelerator.gradient_state
        total = size * self.accelerator.num_processes
        own = self.accelerator.process_index * size
        start, self._batches_seen = self._batches_seen * total + own, self._batches_seen + 1
        # Of the last round, as accelerate's own `gather_for_metrics` does it.
        real = state.remainder - own if state.end_of_dataloader and state.remainder > 0 else held
        return list(range(start, start + max(0, min(real, held))))

    @property
    def trained_tokens(self) -> int:
        """Tokens trained on so far, also where nothing is logged."""
        return round(self._total_train_tokens)

    def resume_token_count(self, tokens: int) -> None:
        """Count the trained tokens on from an earlier attempt's; the base begins anew at each start."""
        self._total_train_tokens = tokens


class _Alone:
    """An accelerator that gathers from nobody else."""

    def __init__(self, accelerator: Any):
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, values: Any) -> Any:
        return values

    def gather_for_metrics(self, values: Any, *args: Any, **kwargs: Any) -> Any:
        return values


def share_of_rows(values: Mapping[str, Any], rows: Mapping[int, list[int]]) -> dict[str, Any]:
    """Some rows of a batch's tensors.

    Args:
        rows: length of a tensor -> which of its rows; what has another length belongs to the batch as a whole.
    """
    return {
        name: value[rows[len(value)]] if isinstance(value, Tensor) and value.ndim > 0 and len(value) in rows else value
        for name, value in values.items()
        if value is not None
    }


def means_of(rows: list[RowMeasures]) -> dict[str, float]:
    """Metric -> its mean over all rows, each weighted by its tokens where the metric is one of tokens."""
    means = {}
    for name in {name: None for row in rows for name in row.values}:
        values = [row.values[name] for row in rows if name in row.values]
        if name in _EXTREMES:
            means[name] = _EXTREMES[name]([value for value, _ in values])
        else:
            total = math.fsum(weight for _, weight in values)
            means[name] = math.fsum(value * weight for value, weight in values) / total if total > 0 else math.nan
    return means


def shares_of(rows: list[RowMeasures]) -> dict[str, float]:
    """Metric -> its mean, of those that say how many comparisons are right; a tie is half of one."""
    return {name: mean for name, mean in means_of(rows).items() if name in _SHARES}


def errors_of(rows: list[RowMeasures], earlier: list[RowMeasures] | None = None) -> dict[str, float]:
    """Metric -> standard error of its mean over held-out rows drawn at random, rows being independent.

    A mean over tokens is the ratio of two sums over rows; its error is the linearised one (Cochran, Sampling
    Techniques, 1977, chapter 6): sqrt(n / (n - 1) * sum_i (w_i * (x_i - mean))^2) / sum_i w_i.

    Args:
        earlier: the same rows as measured before; the errors are then those of the change since, row by row.

    Returns:
        Nothing for fewer than two rows, whose error is not known.
    """
    count = len(rows)
    if count < 2:
        return {}
    parts = [_influences(rows)] + ([] if earlier is None else [_influences(earlier)])
    errors = {}
    for name in parts[0]:
        if all(name in part for part in parts):
            terms = parts[0][name]
            if earlier is not None:
                terms = [after - before for after, before in zip(terms, parts[1][name], strict=True)]
            errors[name] = math.sqrt(count / (count - 1) * math.fsum(term * term for term in terms))
    return errors


def _influences(rows: list[RowMeasures]) -> dict[str, list[float]]:
    """Metric -> by how much each row moves its mean; of metrics that every row has."""
    means, found = means_of(rows), {}
    for name, mean in means.items():
        values = [row.values[name] for row in rows if name in row.values]
        total = math.fsum(weight for _, weight in values)
        if name not in _EXTREMES and len(values) == len(rows) and total > 0:
            found[name] = [weight * (value - mean) / total for value, weight in values]
    return found


def measure_held_out(trainer: Trainer) -> dict[str, float]:
    """What the trainer's own evaluation finds on its held-out rows: the loss, and what TRL measures beside it.

    The random state of the training stays as it is, and what a step of it has still to do: to log and to evaluate.
    All processes must call it together.

    Returns:
        Metric -> value, without the prefix `eval_` and without times and counters.
    """
    left_out = ("runtime", "_per_second", "num_tokens", "model_preparation_time")
    model: Any = trainer.model
    was_training, control = model.training, trainer.control
    to_do = control.should_log, control.should_evaluate
    with kept_random_state(trainer.accelerator.device):
        metrics = trainer.evaluate()
    model.train(was_training)
    # An evaluation and its log settle these as if they were the step's own.
    control.should_log, control.should_evaluate = to_do
    return {
        key.removeprefix("eval_"): value
        for key, value in metrics.items()
        if key.startswith("eval_") and not key.endswith(left_out)
    }
