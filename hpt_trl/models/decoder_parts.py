"""The parts of a decoder: its list of layers, and the norm between the last of them and the output embeddings.

Nothing here knows a family: the parts are found by their shape.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class DecoderParts(NamedTuple):
    """The layers of a decoder, and the norm that stands between the last one and the output embeddings."""

    layers: "nn.ModuleList"
    norm: "nn.Module"


def decoder_parts(model: "PreTrainedModel") -> DecoderParts:
    """The parts of a language model's decoder, without wrappers or adapters around the model.

    Raises:
        ValueError: it has no single list of decoder layers followed by one norm; the message is a clause that says so.
    """
    from torch import nn

    children = list(model.get_decoder().named_children())
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        place
        for place, (_, child) in enumerate(children)
        if isinstance(child, nn.ModuleList) and len(child) == count and count
    ]
    if len(lists) != 1:
        raise ValueError("it has no single list of decoder layers")
    norms = [child for name, child in children[lists[0] + 1 :] if "norm" in name or name.startswith("ln")]
    if len(norms) != 1:
        raise ValueError("its decoder layers are not followed by one norm")
    layers: Any = children[lists[0]][1]
    return DecoderParts(layers, norms[0])


def hidden_of(output: Any) -> "Tensor":
    """The hidden state in what a decoder layer returns, which is a tuple in some families."""
    return output[0] if isinstance(output, tuple) else output
