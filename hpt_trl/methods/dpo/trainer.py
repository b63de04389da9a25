"""TRL's DPOTrainer with exact measures on held-out rows."""

from collections.abc import Mapping
from typing import Any

from trl import DPOTrainer

from hpt_trl.methods.held_out import HeldOutMeasures, share_of_rows
from hpt_trl.methods.padding_free import compute_without_padding
from hpt_trl.models.moving_reference import KeepsReference


class MeasuredDPOTrainer(KeepsReference, HeldOutMeasures, DPOTrainer):
    """`trl.DPOTrainer`, whose `evaluate()` gives the mean over all held-out comparisons, however they are batched.

    Where policy and reference are the same, its accuracy of a step is 0.5, too, not 0.

    Losses that compare the rows of a batch with one another (`aot`, `aot_unpaired`, `bco_pair`) are measured of each
    comparison alone. A reference that moves (`sync_ref_model`) is kept in the checkpoints.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        compute_without_padding(self, self.model, self.ref_model)

    def _held_out_count(self, inputs: dict[str, Any]) -> int:
        return len(inputs["input_ids"]) // 2

    def _held_out_row(self, values: Mapping[str, Any], inputs: dict[str, Any], row: int) -> dict[str, Any]:
        count = self._held_out_count(inputs)
        # Chosen answers first, then rejected ones; of the reference there is one value each.
        return share_of_rows(values, {2 * count: [row, count + row], count: [row]})

    def _held_out_weights(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, float]:
        chosen, rejected = inputs["completion_mask"][:, 1:].sum(dim=1).tolist()
        return {
            "entropy": chosen + rejected,
            "mean_token_accuracy": chosen,
            "logits/chosen": chosen,
            "logits/rejected": rejected,
        }

    def _held_out_inputs(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if "ref_chosen_logps" in inputs:
            return inputs
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        precomputed = self.precompute_ref_logps
        # What the reference says was computed for the whole batch.
        self.precompute_ref_logps = precomputed or "ref_chosen_logps" in inputs
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = precomputed
        assert self.model is not None
        logged = self._metrics["train" if self.model.training else "eval"]
        # At the first step policy and reference are the same: all comparisons are ties, and the base calls them wrong.
        if logged["rewards/margins"][-1] == logged["rewards/chosen"][-1] == logged["rewards/accuracies"][-1] == 0:
            logged["rewards/accuracies"][-1] = 0.5
        return result
