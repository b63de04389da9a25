"""The parts of a training's memory, each by a formula: layers, head, copies of weights, optimizer states."""

from typing import TYPE_CHECKING, NamedTuple

from hpt_trl.models.fused_head import NARROWEST_TILE, SMALL_TILE
from hpt_trl.models.parameters import Parameters
from hpt_trl.planning.memory_sizes import Batch, Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Optimizer state in bytes per trainable parameter as (part of fixed size, multiples of the parameter's own size):
# two moments for the Adam family, one for Lion and SGD with momentum; 8-bit states are one byte a moment, bitsandbytes'
# others are in float32 whatever the parameter is.
# The first prefix that fits counts; what is not listed keeps two moments.
OPTIMIZER_STATE = (
    ("adamw_torch_4bit", (1.0, 0)),
    ("adamw_torch_8bit", (2.0, 0)),
    ("adamw_bnb_8bit", (2.0, 0)),
    ("adamw_8bit", (2.0, 0)),
    ("adamw_anyprecision", (8.0, 0)),
    ("paged_adamw_8bit", (2.0, 0)),
    ("paged_adamw", (8.0, 0)),
    ("ademamix_8bit", (3.0, 0)),
    ("paged_ademamix_8bit", (3.0, 0)),
    ("ademamix", (12.0, 0)),
    ("paged_ademamix", (12.0, 0)),
    ("lion_8bit", (1.0, 0)),
    ("paged_lion_8bit", (1.0, 0)),
    ("lion", (4.0, 0)),
    ("paged_lion", (4.0, 0)),
    ("rmsprop_bnb_8bit", (1.0, 0)),
    ("rmsprop_bnb", (4.0, 0)),
    ("rmsprop", (0.0, 1)),
    ("adagrad", (0.0, 1)),
    ("adafactor", (0.0, 0)),
    ("galore_adafactor", (0.0, 0)),
    ("grokadamw", (0.0, 3)),
    ("schedule_free_sgd", (0.0, 1)),
    ("sgd", (0.0, 0)),
    ("lomo", (0.0, 0)),
    ("adalomo", (0.0, 0)),
)

# Positions and vocabulary entries of one tile of TRL's fused head, which never holds the logits of all positions.
HEAD_TILE = (4096, 32768)
# Where TRL has Triton, a tile is turned into its gradient in place. Elsewhere (CPUs) PyTorch does it, with float32
# copies of the tile beside it: scaled logits, their distance from the largest, its exponential, a mask; going back also
# the gradient and its summands (`_forward_tile` and `_backward_tile` of `trl.kernels.chunked_logprob`).
TORCH_HEAD_FORWARD, TORCH_HEAD_BACKWARD = 3 * 4 + 1, 7 * 4 + 1
# Where all logits are needed (label smoothing): float32 values that exist of each at once, and those that stay.
ALL_LOGITS, KEPT_LOGITS = 4, 2
# Logits that exist at a time where several heads' losses are formed with their gradient (`methods/mtp/head.py`).
HEADS_TILE, HEADS_TILE_ON_CPU = 2**27, 2**23

# DeepSpeed's defaults, in elements: gradients that are reduced at once (`reduce_bucket_size`), and weights that ZeRO-3
# keeps gathered for their next use (`stage3_max_live_parameters`).
ZERO_BUCKET, ZERO_LIVE = 5 * 10**8, 10**9


def optimizer_bytes(optimizer: str, parameter_bytes: float) -> float:
    for prefix, (fixed, multiple) in OPTIMIZER_STATE:
        if optimizer.startswith(prefix):
            return fixed + multiple * parameter_bytes
    return 2 * parameter_bytes


def more_of_embeddings(optimizer: str) -> float:
    """Returns bytes that an embedding's parameter has more of: transformers has bitsandbytes keep its states whole."""
    if not optimizer.endswith("_8bit") or optimizer == "adamw_torch_8bit":
        return 0.0
    # Four bytes a moment in place of one.
    return 3 * optimizer_bytes(optimizer, 0.0)


class Layer(NamedTuple):
    """Bytes per token of one layer."""

    kept: float  # for the backward pass
    working: float  # gradients of values that exist at once while it goes back
    input: float  # that gradient checkpointing keeps
    keys_values: float  # of the KV cache


def layer_of(text_config: "PretrainedConfig", sizes: Sizes, counts: Parameters) -> Layer:
    """Returns what a decoder layer holds of a token.

    With hidden width h, query width q, key and value width k (both together) and MLP width i (MoE: of the experts in
    use), in the type of the computation: rotated queries, keys, values and the attention's output; gate, its activation
    and up. Norms compute in float32, and keep their input, and for the gain's gradient its normalised value.
    A projection keeps its input, for the gradient of its weight or its adapter: shared with its neighbours, unless it
    is cast for each of them, by autocast or to the adapter's type.
    """
    values, hidden = text_config.to_dict(), text_config.hidden_size
    heads, groups, head_width = _heads_of(text_config)
    queries, keys_values = heads * head_width, 2 * head_width * groups
    width = values.get("intermediate_size") or 4 * hidden
    if values.get("num_experts_per_tok"):
        width = (values.get("moe_intermediate_size") or width) * values["num_experts_per_tok"]
    size, stream = sizes.activation_bytes, max(sizes.weight_bytes, sizes.activation_bytes)
    attention = 2 * queries + (2 * queries if sizes.padded else keys_values)
    normed = 2 * hidden + (queries + keys_values / 2 if counts.norms_heads else 0)
    norms = normed * (4 if counts.adapter else 4 + stream)
    shared = (2 * hidden + width) * size
    if counts.adapter:
        types = {stream, sizes.trainable_bytes, *([size] if sizes.autocast else [])}
        each = counts.adapted_inputs / text_config.num_hidden_layers
        of_adapter = size if sizes.autocast else sizes.trainable_bytes
        inputs = each * of_adapter if len(types) > 1 else min(each * size, shared)
    else:
        inputs = (5 * hidden + width) * size if size < stream else shared
    return Layer(
        kept=norms + inputs + (attention + 3 * width) * size,
        working=3 * width * size + hidden * stream,
        input=hidden * stream,
        keys_values=keys_values * size,
    )


def _heads_of(text_config: "PretrainedConfig") -> tuple[int, int, int]:
    """Returns attention heads, those of keys and values, and the width of each."""
    values, heads = text_config.to_dict(), text_config.num_attention_heads
    width = values.get("head_dim") or text_config.hidden_size // heads
    return heads, values.get("num_key_value_heads") or heads, width


def activations(
    config: "PretrainedConfig", sizes: Sizes, batch: Batch, counts: Parameters, *, run: int | None = None
) -> tuple[float, float]:
    """Returns bytes of the activations when the backward pass begins, and when it reaches the first layer.

    Args:
        run: layers that are run; by default all.
    """
    text_config = config.get_text_config()
    layers, layer = run or text_config.num_hidden_layers, layer_of(text_config, sizes, counts)
    tokens = batch.tokens
    # The mask of a padded batch as each layer adds it to its scores, and once as it is made.
    mask = batch.rows * batch.length**2 if sizes.padded else 0
    one, working, size = tokens * layer.kept, tokens * layer.working + mask, sizes.activation_bytes
    if sizes.packed:
        one += _of_packed(text_config, sizes, batch)
    if sizes.eager:
        # Softmax is in float32; the product with the values takes it in its own type. Then the gradients of both.
        scores = text_config.num_attention_heads * batch.rows * batch.length**2
        one += scores * (4 + (size if size < 4 else 0))
        working += scores * (4 + size)
    else:
        one += mask * size
    kept = layers * tokens * layer.input if sizes.gradient_checkpointing else (layers - 1) * one
    # Heads read the trunk's state, which is kept already; each has a norm's input of its own.
    heads, passing = sizes.heads, tokens * (layer.input + 4 * text_config.hidden_size)
    if heads.layers and heads.kept and not sizes.gradient_checkpointing:
        passing += one
    kept += heads.count * (passing if heads.kept else 0)
    return kept + one + working, one + working


def _of_packed(text_config: "PretrainedConfig", sizes: Sizes, batch: Batch) -> float:
    """Returns bytes that a layer keeps of packed rows more than of as many tokens of rows that are alike.

    Attention has copies of what it takes, and its output comes once more in the order of the tokens. Behind a beginning
    that rows share, it has that beginning's keys and values for each row, once for each head, and a mask.
    """
    heads, groups, head_width = _heads_of(text_config)
    more = heads * head_width * batch.tokens
    if batch.shares:
        own = batch.completed
        more += 2 * head_width * (batch.rows * batch.length * heads - own * groups) + own * batch.length
    return more * sizes.activation_bytes


def head_of(text_config: "PretrainedConfig", sizes: Sizes, batch: Batch, *, trained: bool) -> tuple[float, float]:
    """Returns bytes that the loss needs when the backward pass begins, and those that stay: the head's gradient."""
    hidden, vocabulary = text_config.hidden_size, text_config.vocab_size
    tokens = batch.tokens
    if sizes.scores:
        # The last hidden states and their gradient; all positions are scored, one of each row counts.
        return 2 * tokens * hidden * sizes.activation_bytes, 0
    gradient = vocabulary * hidden * 4 if trained else 0
    if sizes.heads.count:
        # The losses of all heads at once: states and their gradients, and a tile of logits with its gradient.
        states = (1 + sizes.heads.count) * tokens * hidden * 2 * sizes.activation_bytes
        logits = min(tokens * (1 + sizes.heads.count) * vocabulary, HEADS_TILE if sizes.triton else HEADS_TILE_ON_CPU)
        # On a CPU the tile before, in float32 and its probabilities; what is formed of it, beside what was formed last.
        size = sizes.activation_bytes
        each = size if sizes.triton else 2 * size + 4 + (4 + size if size < 4 else 0)
        return states + logits * each + gradient, gradient
    scored = batch.completed if sizes.triton or sizes.packed else tokens
    states = scored * hidden * (sizes.activation_bytes + 4)
    forward = _tile(text_config, sizes, scored, TORCH_HEAD_FORWARD)
    if sizes.head_logits:
        # On the way to the loss; or TRL's fused head, which measures once more beside what the backward pass needs.
        logits = tokens * vocabulary * 4
        return states + max(KEPT_LOGITS * logits + forward, ALL_LOGITS * logits + gradient), gradient
    back = _tile(text_config, sizes, scored * sizes.trained_positions, TORCH_HEAD_BACKWARD) + gradient
    return states + max(forward, back), gradient


def losses_of(text_config: "PretrainedConfig", sizes: Sizes, batch: Batch) -> float:
    """Returns bytes that the losses of a batch need where nothing goes back."""
    states = batch.tokens * text_config.hidden_size * sizes.activation_bytes
    if sizes.scores:
        return states
    if sizes.head_logits:
        return states + ALL_LOGITS * batch.tokens * text_config.vocab_size * 4
    return states + _tile(text_config, sizes, batch.tokens, TORCH_HEAD_FORWARD)


def _tile(text_config: "PretrainedConfig", sizes: Sizes, positions: float, more: float) -> float:
    """Bytes of a tile of the fused head.

    Args:
        more: bytes of a logit beside its own, without Triton.
    """
    high, wide = min(positions, HEAD_TILE[0]), min(text_config.vocab_size, HEAD_TILE[1])
    if sizes.packed and not sizes.triton:
        wide = min(wide, max(NARROWEST_TILE, SMALL_TILE // max(high, 1)))
    return high * wide * (sizes.activation_bytes + (0 if sizes.triton else more))


def with_heads(counts: Parameters, sizes: Sizes) -> Parameters:
    """Counts with the heads for future tokens, which beside an adapter are trained in its type."""
    more = sizes.heads.parameters
    if counts.adapter:
        return counts._replace(trainable=counts.trainable + more, adapter=counts.adapter + more)
    return counts._replace(total=counts.total + more, linear=counts.linear + more, trainable=counts.trainable + more)


def copies_of(counts: Parameters, layers: int, sizes: Sizes) -> tuple[float, float]:
    """Returns bytes of the copies of weights in a training step, and in a generation."""
    sharding, everything = sizes.sharding, counts.total * sizes.sharding.gathered_bytes
    if not sharding.gathered:
        half = sizes.activation_bytes
        autocast = counts.linear * half if half < sizes.linear_bytes else 0.0
        # Beside an adapter heads for future tokens are none of the base's layers, and are trained in its type.
        heads = sizes.heads.parameters * half if counts.adapter and sizes.autocast else 0.0
        return autocast + heads, autocast
    if sharding.gathered == "layers":
        outside = counts.total - counts.linear
        gathered = min(counts.total, 2 * counts.linear / layers + outside) * sharding.gathered_bytes
        # Their gradients are whole until they are reduced.
        return gathered + outside * sharding.gathered_bytes, gathered
    if sharding.gathered == "window":
        gathered = min(counts.total, ZERO_LIVE) * sharding.gathered_bytes
        return gathered, everything if sharding.gathers_to_generate else gathered
    return everything, everything
