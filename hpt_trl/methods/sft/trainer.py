"""TRL's SFTTrainer with exact measures on held-out rows."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, tensor
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from hpt_trl.methods.held_out import ROW_LENGTHS, HeldOutMeasures, share_of_rows
from hpt_trl.methods.padding_free import compute_without_padding
from hpt_trl.methods.signatures import takes_arguments_of

# Metrics that the base averages over the tokens that have a label.
_OF_TOKENS = ("loss", "entropy", "mean_token_accuracy")


class MeasuredSFTTrainer(HeldOutMeasures, SFTTrainer):
    """`trl.SFTTrainer`, whose `evaluate()` gives the mean over all held-out tokens, however they are batched.

    A step is the mean over its tokens for every model. Some (Qwen2.5-VL and its like) say that their own loss cannot be
    divided by the tokens of a whole step, and transformers then averages over micro-batches and processes instead; TRL
    computes the loss itself, and can.
    """

    @takes_arguments_of(SFTTrainer, SFTConfig)
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Where a sequence is spread over processes the loss is the model's.
        if self.accelerator.parallelism_config is None:
            self.model_accepts_loss_kwargs = True
        compute_without_padding(self, self.model)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        plain = self.data_collator
        self.data_collator = _WithRowLengths(plain)
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = plain

    def _held_out_count(self, inputs: dict[str, Any]) -> int:
        return len(inputs[ROW_LENGTHS] if ROW_LENGTHS in inputs else inputs["input_ids"])

    def _held_out_row(self, values: Mapping[str, Any], inputs: dict[str, Any], row: int) -> dict[str, Any]:
        if ROW_LENGTHS not in inputs:
            return share_of_rows(values, {len(inputs["input_ids"]): [row]})
        # Without padding a batch is one row of tokens: (1, T), and (1, T - 1) of what is known of a next token.
        lengths, width = inputs[ROW_LENGTHS].tolist(), inputs["input_ids"].shape[1]
        start, end = sum(lengths[:row]), sum(lengths[: row + 1])
        ends = {width: end, width - 1: end - 1}
        return {
            name: value[:, start : ends[value.shape[1]]]
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] in ends
            else value
            for name, value in values.items()
            if value is not None
        }

    def _held_out_weights(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, float]:
        # Label smoothing and a user's own loss read the model's logits first; the labels are the same.
        tokens = float((inputs["labels"][:, 1:] != -100).sum())
        return dict.fromkeys(_OF_TOKENS, tokens)


class _WithRowLengths:
    """A collator whose batches say where their rows end, where these lie one after the other without padding."""

    def __init__(self, collate: Any):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        if ROW_LENGTHS not in batch and len(batch["input_ids"]) != len(examples):
            lengths = [len(example["input_ids"]) for example in examples]
            batch[ROW_LENGTHS] = tensor(lengths)
        return batch
