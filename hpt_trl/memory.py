"""An estimate of the peak memory of one process, from a model's config alone.

`hpt-trl check` shows it, so that a recipe that cannot fit is known before a download. Parameters are counted on the
architecture itself, built without storage; activations follow from a formula (see `estimate`).
"""

import copy
import dataclasses
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from trl import ModelConfig

    from hpt_trl.recipes import Recipe

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

# Bytes of a parameter of a quantized linear layer: its bits and the scale of its block (bitsandbytes: 64 values share
# a float32 in 4 bits, or about an eighth of that with nested quantization; a row shares one in 8 bits).
FOUR_BIT, FOUR_BIT_NESTED, EIGHT_BIT = 0.5 + 4 / 64, 0.5 + 1 / 64, 1.0

# Positions and vocabulary entries of one tile of TRL's fused head, which never holds the logits of all positions.
HEAD_TILE = (4096, 32768)


class Parameters(NamedTuple):
    """Numbers of parameters.

    Attributes:
        total: of the base model, tied ones once.
        linear: of the base model's linear layers without the head, which quantization and autocast apply to.
        trainable: that the optimizer updates.
        adapter: that LoRA adds; a part of `trainable`.
    """

    total: int
    linear: int
    trainable: int
    adapter: int


@dataclass(frozen=True)
class Sizes:
    """The numbers of a run that memory depends on, per process.

    Attributes:
        rows: sequences of one forward and backward pass (`per_device_train_batch_size`; two for each comparison).
        generated_rows: completions that are generated at once.
        prompt_length: tokens.
        completion_length: tokens.
        weight_bytes: bytes of a parameter of the base model (4 for float32).
        linear_bytes: the same for the parameters that quantization replaces; equal to `weight_bytes` without it.
        trainable_bytes: bytes of a trained parameter.
        activation_bytes: bytes of an activation: the autocast type where there is one.
        optimizer: name of the optimizer (`optim`).
        gradient_checkpointing: only each layer's input is kept for the backward pass.
        reference_model: a frozen copy of the weights (KL term without LoRA).
        generates: the process holds the KV cache of its rollouts (RL without vLLM).
        head_logits: the logits of all positions are held at once (no fused head).
        scores: the model is a sequence classifier: its head gives one number per row.
        reward_models: bytes of the reward models, each held whole.
        weight_shards: processes that the weights are spread over (ZeRO-3, FSDP).
        state_shards: processes that gradients and optimizer are spread over (ZeRO-1 counts as ZeRO-2).
    """

    rows: int
    generated_rows: int
    prompt_length: int
    completion_length: int
    weight_bytes: float
    linear_bytes: float
    trainable_bytes: float
    activation_bytes: float
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = True
    reference_model: bool = False
    generates: bool = True
    head_logits: bool = False
    scores: bool = False
    reward_models: float = 0.0
    weight_shards: int = 1
    state_shards: int = 1


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process. Training and generation take turns: the total counts the larger of their parts."""

    weights: int
    reference_model: int
    reward_models: int
    optimizer: int
    gradients: int
    activations: int
    head: int
    kv_cache: int

    @property
    def total(self) -> int:
        """Peak in bytes: what always stays, and the larger of a training step and a generation."""
        stays = self.weights + self.reference_model + self.reward_models + self.optimizer
        return stays + max(self.gradients + self.activations + self.head, self.kv_cache)

    def table(self) -> str:
        """Returns the parts and the total in GiB, a line each."""
        notes = {
            "weights": "",
            "reference_model": "",
            "reward_models": "",
            "optimizer": "",
            "gradients": "while training",
            "activations": "while training",
            "head": "while training",
            "kv_cache": "while generating",
        }
        lines = [
            (field.name.replace("_", " "), getattr(self, field.name), notes[field.name])
            for field in fields(self)
            if field.name != "reward_models" or self.reward_models
        ]
        lines.append(("peak per process", self.total, "estimate, without the framework's own few hundred MiB"))
        return "\n".join(
            f"  {name.replace('kv', 'KV'):<17}{size / 2**30:9.3f} GiB  {note}".rstrip() for name, size, note in lines
        )


def build_on_meta(config: "PretrainedConfig", *, scores: bool = False) -> "PreTrainedModel":
    """Returns the model that a config describes, without storage for its parameters.

    Args:
        scores: as a sequence classifier with one output.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if scores:
        config = copy.deepcopy(config)
        config.num_labels = 1
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    seen = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    with torch.device("meta"):
        return (AutoModelForImageTextToText if seen else AutoModelForCausalLM).from_config(config)


def count_parameters(
    config: "PretrainedConfig", model_args: "ModelConfig | None" = None, *, scores: bool = False
) -> Parameters:
    """Counts parameters on the architecture itself; with `use_peft` by putting PEFT's own adapters into it.

    Args:
        scores: of a sequence classifier with one output.
    """
    import torch
    from peft import get_peft_model
    from trl import get_peft_config

    model = build_on_meta(config, scores=scores)
    head = model.score if scores else model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    if scores and model_args is not None:
        model_args = dataclasses.replace(model_args, lora_task_type="SEQ_CLS")
    peft_config = None if model_args is None else get_peft_config(model_args)
    if peft_config is None:
        return Parameters(total, linear, trainable=total, adapter=0)
    adapted = get_peft_model(model, peft_config)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return Parameters(total, linear, trainable, sum(parameter.numel() for parameter in adapted.parameters()) - total)


def _optimizer_bytes(optimizer: str, parameter_bytes: float) -> float:
    for prefix, (fixed, multiple) in OPTIMIZER_STATE:
        if optimizer.startswith(prefix):
            return fixed + multiple * parameter_bytes
    return 2 * parameter_bytes


def _layer_elements(text_config: "PretrainedConfig") -> tuple[int, int, int]:
    """Returns per token and layer: elements kept for backward, further ones in float32, width of keys and values."""
    values = text_config.to_dict()
    hidden, heads = text_config.hidden_size, text_config.num_attention_heads
    head_width = values.get("head_dim") or hidden // heads
    keys_values = 2 * head_width * (values.get("num_key_value_heads") or heads)
    width = values.get("intermediate_size") or 4 * hidden
    if values.get("num_experts_per_tok"):
        width = (values.get("moe_intermediate_size") or width) * values["num_experts_per_tok"]
    # Attention: the input of its projections, queries before and after rotation, keys and values likewise, the
    # output before its projection. MLP: its input, gate, its activation, up, their product.
    kept = 2 * hidden + 3 * heads * head_width + 2 * keys_values + 4 * width
    # Both norms and the residual stream between them are computed in float32 (input and normalised value).
    return kept, 4 * hidden, keys_values


def estimate(config: "PretrainedConfig", sizes: Sizes, model_args: "ModelConfig | None" = None) -> MemoryEstimate:
    """Estimates the peak memory of one process.

    With N parameters, T of them trained, L layers, hidden width h, query width q, key and value width k (both
    together), MLP width i (MoE: of the experts in use), vocabulary V, rows R, tokens per row S = prompt + completion:

    - weights: N x bytes (quantized linear layers: 0.56 or 1 byte a parameter), the adapter, and one copy of the
      linear layers in the autocast type where that is smaller;
    - gradients: T x bytes; optimizer: T x the state of the optimizer (Adam: two moments);
    - activations, one layer: R x S x ((2h + 3q + 2k + 4i) x bytes + 4h x 4); all layers without gradient
      checkpointing, else L inputs (R x S x h x bytes) and one layer. Attention scores are not kept (SDPA, flash);
    - head: the last hidden states in float32 with their gradient, and one tile of the fused head (at most 4096
      positions x 32768 entries) with its float32 copy; a trained head adds its float32 gradient V x h. Without a
      fused head all R x S x V logits in float32, twice; a reward model has the last hidden states alone;
    - KV cache: generated rows x S x k x L x bytes, and the float32 logits of one position;
    - peak: weights + reference + reward models + optimizer + max(gradients + activations + head, KV cache).

    Vision towers count as weights, not as activations; pass image tokens as prompt tokens.

    Args:
        config: the model's config.
        sizes: the run's numbers.
        model_args: LoRA settings; None trains every parameter.
    """
    counts = count_parameters(config, model_args, scores=sizes.scores)
    text_config = config.get_text_config()
    kept, kept_float32, keys_values = _layer_elements(text_config)
    layers, hidden, vocabulary = text_config.num_hidden_layers, text_config.hidden_size, text_config.vocab_size

    base = (counts.total - counts.linear) * sizes.weight_bytes + counts.linear * sizes.linear_bytes
    autocast = sizes.activation_bytes if sizes.activation_bytes < sizes.linear_bytes else 0.0
    weights = base / sizes.weight_shards + counts.adapter * sizes.trainable_bytes / sizes.state_shards
    weights += counts.linear * autocast / sizes.weight_shards

    tokens = sizes.rows * (sizes.prompt_length + sizes.completion_length)
    one_layer = tokens * (kept * sizes.activation_bytes + kept_float32 * 4)
    layer_inputs = layers * tokens * hidden * sizes.activation_bytes
    activations = layer_inputs + one_layer if sizes.gradient_checkpointing else layers * one_layer

    scored = tokens if sizes.head_logits else sizes.rows * sizes.completion_length
    if sizes.scores:
        # The last hidden states and their gradient; all positions are scored, one of each row counts.
        head = 2 * tokens * hidden * sizes.activation_bytes
    elif sizes.head_logits:
        head = 2 * scored * vocabulary * 4
    else:
        tile = min(scored, HEAD_TILE[0]) * min(vocabulary, HEAD_TILE[1])
        head = scored * hidden * 8 + tile * (sizes.activation_bytes + 4)
        head += 0 if counts.adapter else vocabulary * hidden * 4

    generated = sizes.generated_rows * (sizes.prompt_length + sizes.completion_length)
    kv_cache = generated * keys_values * layers * sizes.activation_bytes + sizes.generated_rows * vocabulary * 4
    return MemoryEstimate(
        weights=round(weights),
        reference_model=round(base / sizes.weight_shards) if sizes.reference_model else 0,
        reward_models=round(sizes.reward_models),
        optimizer=round(
            counts.trainable * _optimizer_bytes(sizes.optimizer, sizes.trainable_bytes) / sizes.state_shards
        ),
        gradients=round(counts.trainable * sizes.trainable_bytes / sizes.state_shards),
        activations=round(activations),
        head=round(head),
        kv_cache=round(kv_cache) if sizes.generates else 0,
    )


def _shards(world_size: int) -> tuple[int, int]:
    """Returns over how many processes the launcher spreads weights, and gradients with optimizer."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return world_size, world_size
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        return (world_size if stage == 3 else 1), (world_size if stage >= 1 else 1)
    return 1, 1


def dtype_of(name: str | None, config: "PretrainedConfig") -> "torch.dtype":
    """Returns the type that a recipe's `dtype` loads a model in; `auto` and nothing mean the checkpoint's own."""
    import torch

    given = config.get_text_config().dtype or config.dtype if name in (None, "auto") else name
    # A config holds the type itself, or its name; without either Transformers loads float32.
    return given if isinstance(given, torch.dtype) else getattr(torch, given or "float32")


def sizes_of(
    recipe: "Recipe", config: "PretrainedConfig", longest: int, reward_models: "Sequence[PretrainedConfig]" = ()
) -> Sizes:
    """Reads a recipe's numbers.

    Args:
        recipe: the checked recipe.
        config: the model's config.
        longest: tokens of the longest prompt that is expected (a recipe does not bound it); in stages without
            rollouts of the longest row, prompt and answer together.
        reward_models: the configs of the reward models that score the rollouts.
    """
    from trl import GRPOConfig

    model_args: ModelConfig = recipe.model_args
    settings: Any = recipe.config
    weight_bytes = dtype_of(model_args.dtype, config).itemsize
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    linear_bytes: float = weight_bytes
    if model_args.load_in_4bit:
        linear_bytes = FOUR_BIT_NESTED if model_args.use_bnb_nested_quant else FOUR_BIT
    elif model_args.load_in_8bit:
        linear_bytes = EIGHT_BIT
    # PEFT keeps adapters in float32, TRL those of a quantized model in bfloat16.
    trainable_bytes = (2 if quantized else 4) if model_args.use_peft else weight_bytes
    weight_shards, state_shards = _shards(recipe.world_size)
    rl = isinstance(settings, GRPOConfig)
    comparisons, scores = recipe.stage.layout(recipe.arguments) == "comparisons", recipe.stage.name == "reward"
    # DPO's reference is a copy unless an adapter can be switched off or its figures are computed beforehand.
    refers = (
        recipe.setting("kl_coef", settings.beta) != 0
        if rl
        else comparisons and not scores and not settings.precompute_ref_log_probs
    )
    return Sizes(
        rows=settings.per_device_train_batch_size * (2 if comparisons else 1),
        generated_rows=settings.per_device_train_batch_size * settings.steps_per_generation if rl else 0,
        prompt_length=longest if rl else 0,
        completion_length=settings.max_completion_length if rl else longest,
        weight_bytes=weight_bytes,
        linear_bytes=linear_bytes,
        trainable_bytes=trainable_bytes,
        activation_bytes=2 if settings.bf16 or settings.fp16 else weight_bytes,
        optimizer=str(settings.optim.value),
        gradient_checkpointing=settings.gradient_checkpointing,
        reference_model=(refers and not model_args.use_peft)
        or (recipe.setting("reference_mode") == "online" and settings.needs_reference),
        generates=rl and not settings.use_vllm,
        # Label smoothing needs the whole distribution.
        head_logits=not rl and settings.label_smoothing_factor > 0,
        scores=scores,
        reward_models=sum(
            count_parameters(model, scores=True).total * dtype_of("auto", model).itemsize for model in reward_models
        ),
        weight_shards=weight_shards,
        state_shards=state_shards,
    )
