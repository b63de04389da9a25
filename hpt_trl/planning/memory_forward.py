"""What passes without a backward pass hold: generations, held-out losses, texts that are read."""

from typing import TYPE_CHECKING

from hpt_trl.planning.memory_parts import Layer, losses_of
from hpt_trl.planning.memory_sizes import Batch, Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def generation_of(text_config: "PretrainedConfig", sizes: Sizes, layer: Layer, batch: Batch) -> float:
    """The KV cache of a generation, the prompts' widest values, and the logits of one position."""
    cache = batch.tokens * layer.keys_values * text_config.num_hidden_layers
    return cache + batch.rows * (batch.prompt_length * layer.working + logits_of(text_config, sizes))


def logits_of(text_config: "PretrainedConfig", sizes: Sizes) -> float:
    """Of a position: in the type of the computation, in float32, and the distance of each from the largest."""
    return text_config.vocab_size * (sizes.activation_bytes + 8)


def evaluation_of(text_config: "PretrainedConfig", sizes: Sizes, layer: Layer) -> float:
    """The largest that an evaluation before or after the training holds beside the model; 0 without one."""
    evaluated = sizes.evaluated
    needs = [generation_of(text_config, sizes, layer, batch) for batch in evaluated.answered]
    needs += [batch.tokens * layer.working + losses_of(text_config, sizes, batch) for batch in evaluated.held_out]
    needs += [batch.tokens * (layer.working + logits_of(text_config, sizes)) for batch in evaluated.read]
    return max(needs, default=0.0)
