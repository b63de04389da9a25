"""What trainers on rollouts do not compute: padding, and what they have computed.

What is wrapped of the base, and why:

    _generate_and_score_completions       leaves the pass for old log-probabilities out
    _prepare_inputs                       deals rows of a prompt to one micro-batch, where it is computed once; asks for
                                          old log-probabilities of what is trained after the first step
    _get_per_token_logps_and_entropies    asks about several micro-batches at once where there is no gradient
    _compute_loss                         keeps the log-probabilities of a rollout's first update as the old ones, and
                                          logs metrics as if rows had not been dealt anew
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from hpt_trl.models.adapters import base_of
from hpt_trl.models.padding_free.language_models import pad_no_more
from hpt_trl.models.padding_free.settings import log_padding, pads_no_more
from hpt_trl.models.padding_free.trunks import take_packed_rows
from hpt_trl.rollouts.dealing import dealt_anew, goes_by_micro_batch
from hpt_trl.rollouts.rows import SEGMENTS, Row, collate, unpad, unpad_shortened
from hpt_trl.rollouts.step_metrics import PLACES, StepMetrics, lengths_of, take_back

_OLD = "old_per_token_logps"
# Micro-batches that a pass without a gradient takes at once, at most.
_AT_ONCE = 8


class ComputesOnce(GRPOTrainer):
    """`trl.GRPOTrainer` that computes no padding, and nothing twice; equal to it up to rounding.

    With `trl.GRPOConfig` in place of a `RolloutConfig` all is TRL's own arithmetic.
    """

    args: GRPOConfig
    pad_to_multiple_of: int | None
    _buffered_inputs: Any  # the micro-batches of a generation batch; None before the first
    _scored: tuple[Tensor, Any]  # log-probabilities and entropies of the last forward pass, in the batch's layout
    _defers_pass = False  # whether the next pass is the one for old log-probabilities, which is left out

    def _compute_once(self) -> None:
        """Prepare models and metrics; once they are there."""
        self._step_metrics = StepMetrics(self.args, self.accelerator)
        log_padding(self.args)
        if not self.pads_no_more:
            return
        for asked in (self.model, self.ref_model):
            if asked is not None:
                pad_no_more(self.accelerator.unwrap_model(asked))
        # Reward models that are passed as such; those that are named are no modules here.
        for judge in self.reward_funcs:
            base = base_of(self.accelerator.unwrap_model(judge)) if isinstance(judge, torch.nn.Module) else None
            if isinstance(base, PreTrainedModel):
                take_packed_rows(base.base_model)

    @property
    def pads_no_more(self) -> bool:
        """Whether rows are to be computed without padding."""
        return pads_no_more(self.args)

    @property
    def is_padding_free(self) -> bool:
        """Whether they are; the first batch shows whether the model can."""
        return self.pads_no_more and not self._is_vlm and self._base_model.base_model.is_padding_free is not False

    @property
    def _base_model(self) -> Any:
        model: Any = self.accelerator.unwrap_model(self.model)
        return base_of(model)

    # The micro-batches of a generation batch.

    @property
    def _deals_rows(self) -> bool:
        """Whether rows are dealt anew to the micro-batches of their optimizer step, so that prompts are shared."""
        return self.is_padding_free and not (goes_by_micro_batch(self.args) or self.aux_loss_enabled)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        assert self.model is not None
        if not self.model.training or self._buffered_inputs is before:
            return inputs
        buffers, per_step = self._buffered_inputs, self.args.gradient_accumulation_steps
        per_step = 1 if len(buffers) % per_step else per_step
        if self._deals_rows:
            buffers = dealt_anew(
                buffers, self._rows_of, self._collated, per_step, self.accelerator, by_prompt=self.is_padding_free
            )
        if self._finds_old_logps_later:
            for number, batch in enumerate(buffers):
                self._complete_old_logps(batch, is_first=number < per_step)
        self._buffered_inputs = buffers
        return buffers[self._step % len(buffers)]

    def _rows_of(self, batch: dict[str, Any]) -> list[Row]:
        """The rows of a batch; of those without a token that has a loss nothing is used, and little is read."""
        # A load-balancing loss acts on every row.
        return unpad(batch) if self.aux_loss_enabled else unpad_shortened(batch)

    def _collated(self, rows: list[Row]) -> dict[str, Any]:
        return collate(rows, self._tokenizer.pad_token_id, self.pad_to_multiple_of)

    # Old log-probabilities: those of the first optimizer step are its own.

    @property
    def _corrects_sampling(self) -> bool:
        """Whether the base's correction for vLLM needs old log-probabilities of every row before all else."""
        return self.use_vllm and self.vllm_importance_sampling_correction

    @property
    def _leaves_old_logps_out(self) -> bool:
        """Whether the base's own pass for them, of whole rows in the padding of the whole batch, is left out."""
        return self._finds_old_logps_later

    @property
    def _finds_old_logps_later(self) -> bool:
        """Whether they are those of a rollout's own first step, or asked for once rows are dealt."""
        args = self.args
        # Else the base computes none: each generation is one optimizer step.
        several = args.gradient_accumulation_steps % (int(args.steps_per_generation or 1) * self.num_iterations) != 0
        return several and not self._corrects_sampling and self.pads_no_more and not self._is_vlm

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.model is not None
        self._defers_pass = self.model.training and self._leaves_old_logps_out
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._defers_pass = False

    def _complete_old_logps(self, batch: dict[str, Any], *, is_first: bool) -> None:
        """Give a micro-batch its old log-probabilities, where its first update does not find them."""
        if is_first:
            del batch[_OLD]
            return
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        contexts = {name: batch[name] for name in (SEGMENTS,) if name in batch}
        model: Any = self.model
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(model, checkpointing):
            batch[_OLD], _, _ = self._get_per_token_logps_and_entropies(
                model, ids, mask, batch["completion_ids"].size(1), **contexts
            )

    # Forward passes.

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any, Any]:
        if self._defers_pass:
            self._defers_pass = False
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        if batch_size is not None and not torch.is_grad_enabled() and self.is_padding_free:
            batch_size *= self._at_once
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
        )
        self._scored = logps, entropies
        return logps, entropies, aux_loss

    @property
    def _at_once(self) -> int:
        """Micro-batches whose tokens a pass without a gradient holds no more of than a training pass of one."""
        layers = self._base_model.config.get_text_config().num_hidden_layers
        return max(1, min(layers // 4, _AT_ONCE))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        metrics = self._metrics["train"]
        logged = lengths_of(metrics)
        loss = super()._compute_loss(model, inputs)
        if PLACES in inputs:
            logps, entropies = (values.detach() for values in self._scored)
            self._step_metrics.add(logps, entropies, inputs, inputs[PLACES], take_back(metrics, logged), metrics)
        if self.num_iterations > 1 and _OLD not in inputs and model.training:
            inputs[_OLD] = self._scored[0].detach()
        return loss
