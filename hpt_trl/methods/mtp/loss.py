"""The loss of several heads within the base's own: the base adds up, scales and logs what it always does."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl import SFTTrainer

from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.methods.mtp.forward import Ahead, AheadOutput
from hpt_trl.methods.mtp.positions import predicted
from hpt_trl.methods.mtp.schedule import active_heads, active_weights, head_weights
from hpt_trl.methods.mtp.weighing import CARRIED, Weighing
from hpt_trl.token_scores.weighting import WEIGHTS

# What a step's batches carry: weights of tokens with the mean 1, as bits, which no launcher rounds on its way; and how
# many tokens each head predicts.
BITS, COUNTS = "token_weight_bits", "tokens_ahead"


class LossAhead(SFTTrainer):
    """The loss of all heads; `MeasuredSFTTrainer` measures each held-out row by it."""

    args: WeightedMTPConfig
    weighing: Weighing | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        counts, bits = inputs.pop(COUNTS, None), inputs.pop(BITS, None)
        inputs.pop(WEIGHTS, None)
        carried = {name: inputs.pop(name) for name in CARRIED if name in inputs}
        if not self.args.looks_ahead and bits is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        training = cast(torch.nn.Module, self.model).training
        weights = None if bits is None else bits.view(torch.float32)
        ahead = self._asked(inputs | carried, counts, weights) if training else self._all_heads(inputs)
        found: list[AheadOutput] = []

        def all_heads(**kwargs: Any) -> Any:
            if not kwargs.pop("fused_lm_head", False):
                return model(**kwargs)
            outputs = model(**kwargs, ahead=ahead)
            found.append(outputs)
            if training:
                # The base divides by the number of next tokens; the sum is one of means already.
                divisor = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
                outputs.log_probs = outputs.log_probs * torch.as_tensor(divisor).clamp(min=1)
            return outputs

        loss = super().compute_loss(
            all_heads, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        self._measure(found[0], "train" if training else "eval")
        if training and self.weighing is not None and weights is not None:
            nll = cast(Tensor, found[0].head_losses)[..., 0]
            self.weighing.note_losses(ahead.labels, weights, pad(nll, (1, 0)))
        return loss

    @property
    def _detached(self) -> bool:
        """Whether the heads learn by themselves in this step."""
        return self.args.detach_trunk or self.state.global_step < self.args.head_warmup_steps

    def _all_heads(self, inputs: dict[str, Any]) -> Ahead:
        valid = [predicted(inputs, k) for k in range(1, self.args.n_future_tokens + 1)]
        return Ahead(valid, inputs["labels"])

    def _asked(self, inputs: dict[str, Any], counts: Tensor | None, weights: Tensor | None) -> Ahead:
        """Heads and coefficients of a micro-batch: head k's position t counts weight_k * w[t + k] / Z_k."""
        args, step = self.args, self.state.global_step
        asked = self._all_heads(inputs)
        active = active_heads(args.curriculum, args.n_future_tokens, step / max(self.state.max_steps, 1))
        own = active_weights(head_weights(args.head_weights, args.n_future_tokens), active)
        if counts is None:
            counts = torch.stack([valid.sum() for valid in asked.valid])
        asked.valid, asked.coefficients = asked.valid[:active], []
        for k, (valid, weight, count) in enumerate(zip(asked.valid, own, counts[:active], strict=True), start=1):
            each = (weight / count.clamp(min=1)).float().to(valid.device)
            if weights is None:
                asked.coefficients.append(each.expand(int(valid.sum())))
            else:
                asked.coefficients.append(each * weights[:, k:][valid])
        if self.weighing is not None:
            asked.weigh = self.weighing.by_losses(inputs, step=step, max_steps=self.state.max_steps)
        asked.detach = self._detached
        asked.keep = not args.checkpoint_heads
        return asked

    def _measure(self, outputs: AheadOutput, mode: str) -> None:
        """Add loss and accuracy of each head over its tokens; in training over those of all processes."""
        valid = cast(Tensor, outputs.head_valid).double()
        parts = [cast(Tensor, part).double() * valid for part in (outputs.head_losses, outputs.head_right)]
        sums = torch.stack([part.flatten(0, 1).sum(0) for part in (*parts, valid)])
        if mode == "train":
            sums = self.accelerator.reduce(sums, "sum")
        for head, (loss, right, tokens) in enumerate(sums.t().tolist(), start=1):
            if tokens > 0:
                self._metrics[mode][f"mtp/loss_head_{head}"].append(loss / tokens)
                self._metrics[mode][f"mtp/accuracy_head_{head}"].append(right / tokens)
