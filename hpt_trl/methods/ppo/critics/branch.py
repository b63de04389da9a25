"""A branch: the last layers of the decoder once more, trained for the values over the trunk that both share."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.critics.critic import Critic, of_batch
from hpt_trl.methods.ppo.critics.head import new_head
from hpt_trl.models.adapters import base_of
from hpt_trl.models.decoder_parts import DecoderParts, decoder_parts, hidden_of
from hpt_trl.models.padding_free.attention import ROWS, PackedRows
from hpt_trl.models.twins import twin
from hpt_trl.models.value_model import ValueHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Layers of a branch that nobody has asked for another number of.
DEFAULT_LAYERS = 2

# Families whose layers take more than one hidden state, or read what earlier layers left.
_REFUSED = {
    "gemma3n": "its layers work on several streams of hidden states",
    "gemma3n_text": "its layers work on several streams of hidden states",
    "gemma4": "its last layers read keys and values of earlier layers",
    "gemma4_text": "its last layers read keys and values of earlier layers",
}


class Branch(nn.Module):
    """Decoder layers, the final norm and a value head."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module, head: ValueHead):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    def forward(
        self,
        hidden: Float[Tensor, "rows tokens width"],
        calls: list[tuple[tuple, dict[str, Any]]],
        rows: PackedRows | None,
    ) -> Float[Tensor, "rows tokens"]:
        """Values of every position, or of those that packed rows ask for.

        Args:
            hidden: the trunk's state before the first of the layers.
            calls: what each layer takes beside the hidden state: positions, masks and what else its original was given.
        """
        for layer, (args, kwargs) in zip(self.layers, calls, strict=True):
            hidden = hidden_of(layer(hidden, *args, **kwargs))
        if rows is not None:
            hidden = hidden.index_select(1, rows.kept)
        return self.head(self.norm(hidden))


class BranchCritic(Critic):
    """Own copies of the last layers and of the final norm under a linear head; with an adapter own copies of that.

    The gradient of the values goes into the trunk below, as that of a head does.

    Args:
        policy: the model that is trained.
        layers: how many of the last layers are copied.
        copies: the same parts of another model to train in place of copies.
    """

    def __init__(self, policy: nn.Module, layers: int, copies: DecoderParts | None = None):
        parts = decoder_parts(base_of(policy))
        self._originals = list(parts.layers)[-layers:]
        head = new_head(policy)
        if copies is None:
            copied: Any = twin(nn.ModuleList([*self._originals, parts.norm]))
            branch = Branch(list(copied)[:-1], copied[-1], head)
        else:
            branch = Branch(list(copies.layers)[-layers:], copies.norm, head)
        super().__init__(policy, branch, head)
        self.take_up()

    def listen(self, values: list[Tensor]) -> list[RemovableHandle]:
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def enter(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # A cache is the original's: a second pass would add the same keys to it once more.
            named = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
            hidden = args[0] if args else named.pop("hidden_states")
            # Of the first layer the hidden state counts, of the others only what they are given beside it.
            calls.append(((hidden, *args[1:]), named))

        def leave(trunk: nn.Module, args: tuple, output: Any) -> None:
            # Of the trunk's last pass: it may have tried its rows in two ways before.
            last = calls[-len(self._originals) :]
            (hidden, *_), first = last[0]
            # Where the trunk computed the batch in place of its packed rows, these are not there.
            rows = first.get(ROWS)
            values.append(of_batch(self.module(hidden, [(args[1:], kwargs) for args, kwargs in last], rows), rows))
            calls.clear()

        entries = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in self._originals]
        return [*entries, base_of(self.policy).base_model.register_forward_hook(leave)]


def branch_layers(model: "PreTrainedModel", asked: int | None) -> int:
    """How many layers a branch on a model copies.

    Args:
        model: a language model; one without weights will do.
        asked: `critic_layers`.

    Raises:
        UserError: it has fewer, or none that can be found or run by themselves. The message begins with the key.
    """
    if model.config.model_type in _REFUSED:
        raise _cannot(model.config, _REFUSED[model.config.model_type])
    try:
        found = len(decoder_parts(model).layers)
    except ValueError as error:
        raise _cannot(model.config, str(error)) from error
    if asked is None:
        return min(DEFAULT_LAYERS, found)
    if asked > found:
        raise UserError(f"critic_layers: {asked}, but the model has {found} layers; allowed: 1 to {found}.")
    return asked


def _cannot(config: "PretrainedConfig", why: str) -> UserError:
    return UserError(
        f"critic: a branch cannot be put on a {config.model_type} model: {why}; write `value_model` or `head`."
    )
