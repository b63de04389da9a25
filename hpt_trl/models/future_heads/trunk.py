"""Where the trunk of a decoder-only model ends: its last layer, the norm after it, and what the layer is called with.

Nothing here knows a family: the parts are found by their shape, what the last layer is given (masks, rotary embeddings)
is caught on its way in, and a training compares once that norm(last layer) is the model's own last hidden state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hpt_trl.errors import UserError
from hpt_trl.models.decoder_parts import decoder_parts, hidden_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

# Layers whose copies read the trunk as they do: attention over all, or over the nearest, earlier positions.
_ATTENTION = ("full_attention", "sliding_attention")
# Families that were tried, or read, and whose last layer is not all that lies between trunk and norm.
_REFUSED = {
    "gemma3n": "its last layer works on several streams of hidden states, which are merged after it",
    "gemma3n_text": "its last layer works on several streams of hidden states, which are merged after it",
    "gemma4": "its last layers read keys and values of earlier layers and embeddings of their own",
    "gemma4_text": "its last layers read keys and values of earlier layers and embeddings of their own",
    "bloom": "its layers take the position of each token in a tensor of the whole sequence (ALiBi)",
    "falcon": "its layers may take the position of each token in a tensor of the whole sequence (ALiBi)",
    "mpt": "its layers take the position of each token in a tensor of the whole sequence (ALiBi)",
}


class Parts(NamedTuple):
    """The end of a trunk: the last decoder layer, and the norm that stands between it and the output embeddings."""

    layer: "nn.Module"
    norm: "nn.Module"


@dataclass
class LastLayer:
    """What went into the last decoder layer in a forward pass, and what came out.

    Attributes:
        args, kwargs: of the call; `args[0]` is the trunk's hidden state, (B, T, d).
        output: hidden state before the final norm, (B, T, d).
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None

    @property
    def hidden(self) -> "Tensor":
        """The trunk's hidden state, the input of the last layer: (B, T, d)."""
        return self.args[0]


def check_architecture(config: "PretrainedConfig") -> None:
    """Check that heads can be put on the model that a config describes, before a weight is loaded.

    Raises:
        UserError: it is no decoder-only language model, or its last layer cannot be copied.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from hpt_trl.models.parameters import build_on_meta

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise _cannot(kind, "it is an encoder-decoder model; name a decoder-only language model")
    if config.get_text_config() is not config:
        raise _cannot(kind, "it is a vision-language model; name a language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _cannot(kind, "it is no causal language model")
    if kind in _REFUSED:
        raise _cannot(kind, _REFUSED[kind])
    layer_types = getattr(config, "layer_types", None)
    if layer_types and layer_types[-1] not in _ATTENTION:
        raise _cannot(kind, f"its last layer is of the type {layer_types[-1]}; allowed: {', '.join(_ATTENTION)}")
    model = build_on_meta(config)
    if model._is_stateful:
        raise _cannot(kind, "some of its layers keep a state, which decoding by drafts cannot take back")
    parts_of(model)


def parts_of(model: "PreTrainedModel") -> Parts:
    """The end of a causal language model's trunk, without wrappers or adapters around the model.

    Raises:
        UserError: it has no list of decoder layers followed by one norm.
    """
    try:
        layers, norm = decoder_parts(model)
    except ValueError as error:
        raise _cannot(model.config.model_type, str(error)) from error
    return Parts(layers[-1], norm)


@contextmanager
def watched(layer: "nn.Module") -> Iterator[LastLayer]:
    """While open, each forward pass of the layer leaves what it was called with and what it returned."""
    seen = LastLayer()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:
            kwargs = dict(kwargs)
            args = (kwargs.pop("hidden_states"),)
        seen.args, seen.kwargs = args, kwargs

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        seen.output = hidden_of(output)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _cannot(kind: str, why: str) -> UserError:
    return UserError(f"model_name_or_path: heads for future tokens cannot be put on a {kind} model: {why}.")
