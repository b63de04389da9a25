"""An estimate of the peak memory of one process, from a model's config alone.

`hpt-trl check` shows it, so that a recipe that cannot fit is known before a download. Parameters are counted
(`hpt_trl.models.parameters`), activations follow from a formula (see `estimate`), the numbers come from the recipe and
its profile (`hpt_trl.planning.memory_settings`). `benchmarks/memory.py` compares it with measured peaks.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hpt_trl.models.parameters import Parameters, count_parameters
from hpt_trl.planning.memory_sizes import Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from trl import ModelConfig


# Optimizer state in bytes per trainable parameter as (part of fixed size, multiples of the parameter's own size):
# two moments for the Adam family, one for Lion and SGD with momentum; 8-bit states are one byte a moment.
# The first prefix that fits counts; what is not listed keeps two moments.
OPTIMIZER_STATE = (
    ("adamw_torch_4bit", (1.0, 0)),
    ("adamw_torch_8bit", (2.0, 0)),
    ("adamw_bnb_8bit", (2.0, 0)),
    ("adamw_8bit", (2.0, 0)),
    ("paged_adamw_8bit", (2.0, 0)),
    ("ademamix_8bit", (3.0, 0)),
    ("paged_ademamix_8bit", (3.0, 0)),
    ("ademamix", (0.0, 3)),
    ("paged_ademamix", (0.0, 3)),
    ("lion_8bit", (1.0, 0)),
    ("paged_lion_8bit", (1.0, 0)),
    ("lion", (0.0, 1)),
    ("paged_lion", (0.0, 1)),
    ("rmsprop_bnb_8bit", (1.0, 0)),
    ("rmsprop", (0.0, 1)),
    ("adagrad", (0.0, 1)),
    ("adafactor", (0.0, 0)),
    ("sgd", (0.0, 0)),
    ("lomo", (0.0, 0)),
)

# Positions and vocabulary entries of one tile of TRL's fused head, which never holds the logits of all positions.
HEAD_TILE = (4096, 32768)
# Where TRL has Triton, a tile is turned into its gradient in place. Elsewhere (CPUs) PyTorch does it, with float32
# copies of the tile beside it: scaled logits, their distance from the largest, its exponential, a mask; going back also
# the gradient and its summands (`_forward_tile` and `_backward_tile` of `trl.kernels.chunked_logprob`).
TORCH_HEAD_FORWARD, TORCH_HEAD_BACKWARD = 3 * 4 + 1, 7 * 4 + 1
# Logits that exist at a time where several heads' losses are formed with their gradient (`methods/mtp/head.py`).
HEADS_TILE, HEADS_TILE_ON_CPU = 2**27, 2**23

# DeepSpeed's defaults, in elements: gradients that are reduced at once (`reduce_bucket_size`), and weights that ZeRO-3
# keeps gathered for their next use (`stage3_max_live_parameters`).
ZERO_BUCKET, ZERO_LIVE = 5 * 10**8, 10**9


# Phases of a step, one of which has the peak.
BEGINS_BACKWARD, ENDS_BACKWARD, GENERATES = "begin of the backward pass", "end of the backward pass", "generation"
# After the training of a critic, whose optimizer is still there.
COMPARES = "baselines after the training"
# The only phase of a stage that trains nothing.
MEASURES = "evaluation"

_NOTES = {
    "weights": "",
    "value_model": "",
    "reference_model": "",
    "reward_models": "",
    "optimizer": "",
    "buckets": "",
    "copies": "of weights, while in use",
    "gradients": "",
    "activations": "while training",
    "head": "of the loss",
    "kv_cache": "while generating",
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process, by part, and their sum in each phase of a step.

    Attributes:
        weights: of the trained model, its share where they are spread.
        value_model: the weights of a value model of its own; its gradients and the rest count with the others.
        reference_model: weights.
        reward_models: weights.
        optimizer: states, and master weights where there are any.
        gradients: of all that is trained.
        buckets: buffers in which gradients are reduced.
        copies: weights in the autocast type, or gathered from other processes.
        activations: what the backward pass needs, and its own values of one layer.
        head: of the loss: hidden states, logits, the head's own gradient.
        kv_cache: keys, values and logits of a generation.
        phases: what is held at once, by phase.
    """

    weights: int
    value_model: int
    reference_model: int
    reward_models: int
    optimizer: int
    gradients: int
    buckets: int
    copies: int
    activations: int
    head: int
    kv_cache: int
    phases: dict[str, int]

    @property
    def total(self) -> int:
        """Peak in bytes: of the phase that holds most."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    def parts(self) -> dict[str, int]:
        """Returns the bytes of each part."""
        return {name: getattr(self, name) for name in _NOTES}

    def table(self) -> str:
        """Returns the parts and the peak in GiB, a line each; what a run has not is left out."""
        always: tuple[str, ...] = ("weights", "optimizer", "gradients", "activations", "head", "kv_cache")
        if MEASURES in self.phases:
            always = ("weights", "kv_cache")
        lines = [
            (name.replace("_", " "), getattr(self, name), note)
            for name, note in _NOTES.items()
            if name in always or getattr(self, name)
        ]
        lines.append(("peak per process", self.total, self.peak_phase))
        # Short enough for a terminal of 80 columns.
        shown = [
            f"  {name.replace('kv', 'KV'):<17}{size / 2**30:9.3f} GiB  {note}".rstrip() for name, size, note in lines
        ]
        return "\n".join([*shown, "  without the framework's own few hundred MiB"])


def _optimizer_bytes(optimizer: str, parameter_bytes: float) -> float:
    for prefix, (fixed, multiple) in OPTIMIZER_STATE:
        if optimizer.startswith(prefix):
            return fixed + multiple * parameter_bytes
    return 2 * parameter_bytes


class _Layer(NamedTuple):
    """Bytes per token of one layer."""

    kept: float  # for the backward pass
    working: float  # gradients of values that exist at once while it goes back
    input: float  # that gradient checkpointing keeps
    keys_values: float  # of the KV cache


def _layer(text_config: "PretrainedConfig", sizes: Sizes, counts: Parameters) -> _Layer:
    """Returns what a decoder layer holds of a token.

    With hidden width h, query width q, key and value width k (both together) and MLP width i (MoE: of the experts in
    use), in the type of the computation: rotated queries, keys, values and the attention's output; gate, its activation
    and up. Norms compute in float32, and keep their input, and for the gain's gradient its normalised value.
    A projection keeps its input, for the gradient of its weight or its adapter: shared with its neighbours, unless it
    is cast for each of them, by autocast or to the adapter's type.
    """
    values = text_config.to_dict()
    hidden, heads = text_config.hidden_size, text_config.num_attention_heads
    head_width = values.get("head_dim") or hidden // heads
    queries = heads * head_width
    keys_values = 2 * head_width * (values.get("num_key_value_heads") or heads)
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
    return _Layer(
        kept=norms + inputs + (attention + 3 * width) * size,
        working=3 * width * size + hidden * stream,
        input=hidden * stream,
        keys_values=keys_values * size,
    )


def _activations(config: "PretrainedConfig", sizes: Sizes, counts: Parameters) -> tuple[float, float]:
    """Returns bytes of the activations when the backward pass begins, and when it reaches the first layer."""
    text_config = config.get_text_config()
    layers, layer = text_config.num_hidden_layers, _layer(text_config, sizes, counts)
    length = sizes.prompt_length + sizes.completion_length
    tokens = sizes.rows * length
    # The mask of a padded batch as each layer adds it to its scores, and once as it is made.
    mask = sizes.rows * length**2 if sizes.padded else 0
    one = tokens * layer.kept + mask * sizes.activation_bytes
    kept = layers * tokens * layer.input if sizes.gradient_checkpointing else (layers - 1) * one
    # Heads read the trunk's state, which is kept already; each has a norm's input of its own.
    heads, passing = sizes.heads, tokens * (layer.input + 4 * text_config.hidden_size)
    if heads.layers and heads.kept and not sizes.gradient_checkpointing:
        passing += one
    kept += heads.count * (passing if heads.kept else 0)
    return kept + one + tokens * layer.working + mask, one + tokens * layer.working + mask


def _head(text_config: "PretrainedConfig", sizes: Sizes, *, trained: bool) -> tuple[float, float]:
    """Returns bytes that the loss needs when the backward pass begins, and those that stay: the head's gradient."""
    hidden, vocabulary = text_config.hidden_size, text_config.vocab_size
    tokens = sizes.rows * (sizes.prompt_length + sizes.completion_length)
    if sizes.scores:
        # The last hidden states and their gradient; all positions are scored, one of each row counts.
        return 2 * tokens * hidden * sizes.activation_bytes, 0
    gradient = vocabulary * hidden * 4 if trained else 0
    if sizes.heads.count:
        # The losses of all heads at once: states and their gradients, and a tile of logits with its gradient.
        states = (1 + sizes.heads.count) * tokens * hidden * 2 * sizes.activation_bytes
        logits = min(tokens * (1 + sizes.heads.count) * vocabulary, HEADS_TILE if sizes.triton else HEADS_TILE_ON_CPU)
        each = sizes.activation_bytes if sizes.triton else 8 + sizes.activation_bytes
        return states + logits * each + gradient, gradient
    scored = tokens if not sizes.triton or not sizes.prompt_length else sizes.rows * sizes.completion_length
    states = scored * hidden * (sizes.activation_bytes + 4)
    if sizes.head_logits:
        return 2 * tokens * vocabulary * 4 + states + gradient, gradient

    def tile(positions: float, more: float) -> float:
        logits = min(positions, HEAD_TILE[0]) * min(vocabulary, HEAD_TILE[1])
        return logits * (sizes.activation_bytes + (0 if sizes.triton else more))

    back = tile(scored * sizes.trained_positions, TORCH_HEAD_BACKWARD) + gradient
    return states + max(tile(scored, TORCH_HEAD_FORWARD), back), gradient


def estimate(
    config: "PretrainedConfig",
    sizes: Sizes,
    model_args: "ModelConfig | None" = None,
    value_config: "PretrainedConfig | None" = None,
) -> MemoryEstimate:
    """Estimates the peak memory of one process.

    With N parameters, T of them trained, L layers, hidden width h, key and value width k (both together), vocabulary V,
    rows R, tokens per row S = prompt + completion:

    - weights: N x bytes (quantized linear layers: 0.56 or 1 byte a parameter) and the adapter;
    - copies: the linear layers in the autocast type where that is smaller, or what is gathered of spread weights;
    - gradients: T x bytes; optimizer: T x the state of the optimizer (Adam: two moments) and DeepSpeed's float32 copy;
      buckets: the gradients again (DDP), or DeepSpeed's 5 x 10^8;
    - activations: of all layers (see `_layer`), with gradient checkpointing L inputs and one layer, and the gradients
      of one layer's inner values. Attention scores are not kept (SDPA, flash), the mask of a padded batch is;
    - head: the last hidden states with their gradient in float32, and one tile of the fused head (at most 4096
      positions x 32768 entries), a trained head's float32 gradient V x h. Heads for future tokens count as layers, and
      all their states as the last one's. Without a fused head all R x S x V logits in
      float32, twice; a reward model has the last hidden states alone;
    - KV cache: generated rows x S x k x L x bytes, the prompts' widest values, and the logits of one position.

    The peak is the largest of: the begin of the backward pass (all activations, the head, gradients of earlier
    micro-batches), its end (all gradients, one layer), a generation. Vision towers count as weights, not as
    activations; pass image tokens as prompt tokens.

    Args:
        config: the model's config.
        sizes: the run's numbers.
        model_args: LoRA settings; None trains every parameter.
        value_config: of a value model of its own (PPO), trained whole in float32.
    """
    counts = _with_heads(count_parameters(config, model_args, scores=sizes.scores), sizes)
    text_config, sharding = config.get_text_config(), sizes.sharding
    layers, hidden, vocabulary = text_config.num_hidden_layers, text_config.hidden_size, text_config.vocab_size
    of_value = None if value_config is None else count_parameters(value_config, scores=True)
    value = 0 if of_value is None else of_value.total

    base = (counts.total - counts.linear) * sizes.weight_bytes + counts.linear * sizes.linear_bytes
    weights = (base + counts.adapter * sizes.trainable_bytes) / sharding.weights
    copies, copies_to_generate = _copies(counts, layers, sizes)

    value_bytes = 2.0 if sharding.master_weights and sizes.weight_bytes == 2 else 4.0
    trained = [(counts.trainable, sizes.trainable_bytes), (value, value_bytes)]
    gradient_bytes = sum(number * (sharding.gradient_bytes or size) for number, size in trained)
    gradients = gradient_bytes / sharding.gradients
    buckets = 0.0
    if sharding.bucket is None:
        buckets = gradient_bytes
    elif sharding.bucket:
        # Allocated whole; on a CPU pages that no gradient reaches take no memory.
        elements = sharding.bucket if sizes.triton else min(sharding.bucket, counts.trainable + value)
        buckets = elements * (sharding.gradient_bytes or sizes.trainable_bytes)
    states = sum(
        number * _optimizer_bytes(sizes.optimizer, 4.0 if sharding.master_weights else size) for number, size in trained
    )
    if sharding.master_weights:
        states += 4 * (counts.trainable + value)
    optimizer = states / sharding.optimizer
    if sharding.offload_optimizer:
        optimizer, gradients = 0.0, (0.0 if sharding.gradients > 1 else gradients)
    if sharding.offload_weights:
        weights, value_weights = 0.0, 0.0
    else:
        value_weights = value_bytes * value / sharding.weights

    begin, end = _activations(config, sizes, counts)
    if value_config is not None and of_value is not None:
        critic = _activations(value_config, dataclasses.replace(sizes, weight_bytes=4), of_value)
        begin, end = begin + critic[0], max(end, critic[1])
    head, head_gradient = _head(text_config, sizes, trained=counts.adapter == 0)

    length = sizes.prompt_length + sizes.completion_length
    layer = _layer(text_config, sizes, counts)
    kv_cache = sizes.generated_rows * length * layer.keys_values * layers
    kv_cache += sizes.generated_rows * (sizes.prompt_length * layer.working + vocabulary * (sizes.activation_bytes + 8))

    reference = sizes.reference_bytes + (base / sharding.weights if sizes.reference_model else 0.0)
    stays = weights + value_weights + reference + sizes.reward_models + optimizer + buckets
    waiting = gradients if sizes.accumulates else 0.0
    # Tied or not, the embedding's gradient is made whole before it is added to what is there.
    embedding = 0 if counts.adapter else vocabulary * hidden * sizes.trainable_bytes
    working = layer.working * sizes.rows * length
    phases = {
        BEGINS_BACKWARD: stays + copies + waiting + max(begin - working + head, begin + head_gradient),
        ENDS_BACKWARD: stays + (copies if sharding.gathered else 0) + gradients + embedding + end,
    }
    if sizes.generates:
        phases[GENERATES] = stays + copies_to_generate + kv_cache
    if sizes.language_model:
        phases[COMPARES] = stays + sizes.language_model
    return MemoryEstimate(
        weights=round(weights),
        value_model=round(value_weights),
        reference_model=round(reference),
        reward_models=round(sizes.reward_models),
        optimizer=round(optimizer),
        gradients=round(gradients),
        buckets=round(buckets),
        copies=round(max(copies, copies_to_generate if sizes.generates else 0)),
        activations=round(begin),
        head=round(head),
        kv_cache=round(kv_cache) if sizes.generates else 0,
        phases={name: round(size) for name, size in phases.items()},
    )


def _with_heads(counts: Parameters, sizes: Sizes) -> Parameters:
    """Counts with the heads for future tokens, which beside an adapter are trained in its type."""
    more = sizes.heads.parameters
    if counts.adapter:
        return counts._replace(trainable=counts.trainable + more, adapter=counts.adapter + more)
    return counts._replace(total=counts.total + more, linear=counts.linear + more, trainable=counts.trainable + more)


def estimate_measuring(config: "PretrainedConfig", sizes: Sizes) -> MemoryEstimate:
    """Estimates the peak memory of one process that only generates, or reads texts.

    Weights, their copies in the autocast type, the KV cache, and the larger of one position's logits of all rows and
    all logits of the rows that are read at once; see `estimate`.

    Args:
        sizes: `rows` of `completion_length` tokens are read at once, `generated_rows` are generated.
    """
    counts, text_config = count_parameters(config), config.get_text_config()
    weights = (counts.total - counts.linear) * sizes.weight_bytes + counts.linear * sizes.linear_bytes
    copies, _ = _copies(counts, text_config.num_hidden_layers, sizes)
    layer, vocabulary = _layer(text_config, sizes, counts), text_config.vocab_size
    length = sizes.prompt_length + sizes.completion_length
    # In the type of the computation, in float32, and the distance of each from the largest.
    logits = vocabulary * (sizes.activation_bytes + 8)
    generating = sizes.generated_rows * length * layer.keys_values * text_config.num_hidden_layers
    generating += sizes.generated_rows * (sizes.prompt_length * layer.working + logits)
    reading = sizes.rows * length * (layer.working + logits)
    total = weights + copies + sizes.reward_models + max(generating, reading)
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(MemoryEstimate) if field.name != "phases"), 0)
    parts = {"weights": weights, "copies": copies, "reward_models": sizes.reward_models}
    parts |= {"kv_cache": generating, "head": reading}
    return MemoryEstimate(
        **nothing | {name: round(size) for name, size in parts.items()}, phases={MEASURES: round(total)}
    )


def _copies(counts: Parameters, layers: int, sizes: Sizes) -> tuple[float, float]:
    """Returns bytes of the copies of weights in a training step, and in a generation."""
    sharding, everything = sizes.sharding, counts.total * sizes.sharding.gathered_bytes
    if not sharding.gathered:
        autocast = counts.linear * sizes.activation_bytes if sizes.activation_bytes < sizes.linear_bytes else 0.0
        return autocast, autocast
    if sharding.gathered == "layers":
        outside = counts.total - counts.linear
        gathered = min(counts.total, 2 * counts.linear / layers + outside) * sharding.gathered_bytes
        # Their gradients are whole until they are reduced.
        return gathered + outside * sharding.gathered_bytes, gathered
    if sharding.gathered == "window":
        gathered = min(counts.total, ZERO_LIVE) * sharding.gathered_bytes
        return gathered, everything if sharding.gathers_to_generate else gathered
    return everything, everything
