"""The FLOPs of a model."""

from typing import Any

import torch
from transformers import PreTrainedModel


class Flops:
    """Counts the model FLOPs of a trainer's forward passes, and of the backward passes that follow them.

    A token's forward pass is 2 FLOPs per parameter of the linear layers, the head among them, and in each layer
    2 x query width x (its position) each for scores and values (causal: half of the square). The backward pass is twice
    that; with frozen weights once, and an adapter's own on top. What gradient checkpointing computes again does not
    count, nor do the head's rows that Rho-1 skips going back: its MFU is a little too high.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        inner = getattr(model, "get_base_model", lambda: model)()
        linear = sum(
            module.in_features * module.out_features
            for name, module in inner.named_modules()
            if isinstance(module, torch.nn.Linear) and "lora_" not in name
        )
        adapter = sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)
        heads = config.num_attention_heads
        queries = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.of_token, self.of_square = 2 * (linear + adapter), 2 * queries * config.num_hidden_layers
        self.back_of_token = 2 * linear + 4 * adapter if adapter else 4 * linear
        self._sums = torch.zeros(4, dtype=torch.float64, device=model.device)
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        lengths = torch.full((len(ids),), ids.size(1), device=ids.device) if mask is None else mask.sum(1)
        sums = torch.stack([lengths.sum(), lengths.square().sum()]).double()
        self._sums[:2] += sums
        if torch.is_grad_enabled():
            self._sums[2:] += sums

    def take(self) -> float:
        """The FLOPs since the last call."""
        tokens, squares, back_tokens, back_squares = self._sums.tolist()
        self._sums.zero_()
        self.trained_tokens = back_tokens
        forward = tokens * self.of_token + squares * self.of_square
        return forward + back_tokens * self.back_of_token + back_squares * 2 * self.of_square
