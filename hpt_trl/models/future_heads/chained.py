"""Heads that a checkpoint ships, to be trained: DeepSeek's chain of layers (arXiv 2412.19437, section 2.2).

Layer j reads what layer j - 1 made of position t, with the embedding of the token t + j, and predicts the token
t + j + 1. The layers are transformers' own, which it has for decoding alone; they are written under the names that they
had in the checkpoint, where `generate(..., use_mtp=True)` and vLLM look for them.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from hpt_trl.errors import UserError
from hpt_trl.models.future_heads.heads import FutureHeads
from hpt_trl.models.future_heads.shipped import add_tensors, find_shipped_heads
from hpt_trl.models.future_heads.trunk import LastLayer, parts_of
from hpt_trl.models.sharded_weights import whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHIPPED = "shipped"

_NUMBERED = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d+)\.(.+)$")
_PART = re.compile(r"^mtp\.layers\.(\d+)\.(.+)$")
# Of a single layer, one level up.
_PART_OUTSIDE = {
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "post_norm.",
}
_OUTSIDE = {"enorm.": "enorm.", "hnorm.": "hnorm.", "eh_proj.": "eh_proj.", "shared_head.norm.": "post_norm."}
# Copies of the model's own embeddings, which these layers share.
_SHARED = {"embed_tokens.weight": "get_input_embeddings", "shared_head.head.weight": "get_output_embeddings"}
# Of the call of the last layer, what the chain has to make for itself.
_OWN = ("attention_mask", "position_embeddings", "position_ids", "past_key_values", "use_cache", "hidden_states")


class ChainedHeads(FutureHeads):
    """The layers that a checkpoint ships, as heads 2 to n.

    Args:
        layers: transformers' `MtpLayer`s.
        chain: the `MtpModel` that they are of; what it shares with the model is not registered here.
        names: name of each tensor in the checkpoint -> its name among the layers, experts one by one.
    """

    def __init__(self, layers: nn.ModuleList, chain: Any, names: dict[str, str]):
        super().__init__(SHIPPED, [])
        self.layers = layers
        # Not as a module: the embeddings would be weights of the heads as well.
        self._chain = SimpleNamespace(model=chain)
        self.names = names

    def states(
        self,
        model: "PreTrainedModel",
        seen: LastLayer,
        *,
        count: int,
        detach: bool = False,
        keep: bool = True,
        input_ids: Tensor | None = None,
    ) -> list[Tensor]:
        assert input_ids is not None
        hidden = parts_of(model).norm(seen.output)
        hidden = hidden.detach() if detach else hidden
        further = {name: value for name, value in seen.kwargs.items() if name not in _OWN}
        embed, states = model.get_input_embeddings(), []
        positions = seen.kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]

        def layer(ahead: int, hidden: Tensor) -> Tensor:
            embedded = embed(pad(input_ids[:, ahead:], (0, min(ahead, input_ids.shape[1]))))
            return self._layer(ahead - 1, hidden, embedded.detach() if detach else embedded, positions + ahead, further)

        for ahead in range(1, count):
            if not keep and torch.is_grad_enabled():
                hidden = checkpoint(layer, ahead, hidden, use_reentrant=False)
            else:
                hidden = layer(ahead, hidden)
            states.append(hidden)
        return states

    def _layer(
        self, number: int, hidden: Tensor, embedded: Tensor, positions: Tensor, further: dict[str, Any]
    ) -> Tensor:
        chain = self._chain.model
        # Documents of a packed row are told apart by the positions.
        masks = chain.create_masks_for_mtp_layer(number, embedded, None, positions)
        given = {}
        if getattr(chain, "has_per_layer_rope", False):
            given["layer_type"] = chain.config.layer_types[number]
        rotary = None if chain.rotary_emb is None else chain.rotary_emb(embedded, position_ids=positions, **given)
        return self.layers[number](
            embedded,
            hidden,
            position_embeddings=rotary,
            position_ids=positions,
            past_key_values=None,
            **masks,
            **further,
        )


def load_chained_heads(model: "PreTrainedModel", name: str, *, revision: str | None = None) -> ChainedHeads:
    """The layers of a model's checkpoint, to be trained.

    Args:
        model: loaded from that checkpoint, without a wrapper around it.
        name: folder or Hub id of the checkpoint.

    Raises:
        UserError: it ships none, or some that transformers does not know, or whose names are not understood.
    """
    from transformers.modeling_layers import MtpModel

    shipped = find_shipped_heads(name, model.config, revision=revision)
    if not shipped.tensors:
        raise UserError(f"{name} ships no layers for future tokens.")
    config = model.config
    kept, config.name_or_path = config.name_or_path, str(name)
    try:
        # Whole in each process; what trains the model spreads them with it.
        with whole_weights():
            chain = MtpModel.from_pretrained(model)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{name} ships layers for future tokens that transformers cannot load: {str(error).splitlines()[0]} "
            "Write `shipped_heads: keep`."
        ) from error
    finally:
        config.name_or_path = kept
    known = ("use_shared_post_norm", "logits_mup_width_multiplier")
    if getattr(chain, known[0]) or getattr(chain.config, known[1], None) is not None:
        raise UserError(f"the layers for future tokens that {name} ships are of a kind that is not trained here.")
    heads = ChainedHeads(chain.layers, chain, _names(shipped.tensors, config))
    _checked(model, heads)
    return heads


def save_chained_heads(model: "PreTrainedModel", weights: dict[str, Tensor], folder: str | Path) -> None:
    """Write trained layers into the folder of the model that was saved there, under the names that they came with.

    Args:
        model: the model that has them.
        weights: of the layers, whole, named as in `ChainedHeads`.
        folder: as `save_pretrained` has just written it.
    """
    heads: Any = model.future_heads
    written = _written(model, heads, weights)
    add_tensors(folder, {name: written[own] for name, own in heads.names.items()})


def _written(model: "PreTrainedModel", heads: ChainedHeads, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names among the layers, as a checkpoint has them: experts one by one."""
    from transformers.core_model_loading import WeightConverter, revert_weight_conversion

    chain = heads._chain.model
    conversions = getattr(model, "_weight_conversions", None) or []
    chain._weight_conversions = [one for one in conversions if isinstance(one, WeightConverter)]
    written = revert_weight_conversion(chain, dict(weights)) if chain._weight_conversions else dict(weights)
    for own in set(heads.names.values()) - set(written):
        for name, embeddings in _SHARED.items():
            if own == name:
                written[own] = getattr(model, embeddings)().weight
    return {name: tensor.detach().cpu() for name, tensor in written.items()}


def _names(tensors: Any, config: Any) -> dict[str, str]:
    """Name of each tensor in the checkpoint -> its name among the layers."""
    before = config.get_text_config().num_hidden_layers
    return {name: _own_name(name, before) for name in tensors}


def _own_name(name: str, before: int) -> str:
    numbered, part = _NUMBERED.match(name), _PART.match(name)
    if numbered:
        number, rest = int(numbered[1]) - before, numbered[2]
        if rest in _SHARED:
            return rest
        for start, own in _OUTSIDE.items():
            if rest.startswith(start):
                return f"layers.{number}.{own}{rest.removeprefix(start)}"
        return f"layers.{number}.mtp_block.{rest}"
    if part:
        return f"layers.{part[1]}.mtp_block.{part[2]}"
    for start, own in _PART_OUTSIDE.items():
        if name.startswith(start):
            return f"layers.0.{own}{name.removeprefix(start)}"
    raise UserError(f"{name}, a weight of the layers for future tokens, has a name that is not understood.")


def _checked(model: "PreTrainedModel", heads: ChainedHeads) -> None:
    """See that what would be written back is what was read, name by name."""
    wanted, found = set(heads.names.values()), set(_written(model, heads, heads.state_dict()))
    if wanted != found:
        raise UserError(
            "the layers for future tokens could not be written back under their names "
            f"({', '.join(sorted(wanted ^ found)[:3])}); write `shipped_heads: keep`."
        )
