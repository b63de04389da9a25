"""Time and cost of a step: computed by a model of a device, not measured.

On paper the device is an H100 SXM of NVIDIA's data sheet: 989 TFLOPS in dense bfloat16, 3.35 TB/s, 80 GB; of a recipe
whose model and rows are here it is this machine's (`hpt_trl.planning.devices`).

    a forward pass      2 FLOPs per parameter of the linear layers, the head among them, and token, and in each layer
                        2 x query width x row length for attention (causal: half of the square)
    a training step     3 forward passes, 2 over frozen weights (LoRA), one more with gradient checkpointing, of every
                        row at `utilisation` of the peak; heads for future tokens are a layer and a head each, trained
                        whole; a critic's layers are trained as the policy's; a comparison is two rows
    scoring             1 forward pass: old log-probabilities of rollouts and a critic's values of them, the reference
                        of DPO and of rollouts with a KL term, a reference's losses or a value model's values
    generation          of each new token the weights and the row's KV cache, read at `bandwidth` of the memory's; rows
                        at once: as many as the KV cache of vLLM's share of the memory holds, at most a GPU's part of
                        the batch; without vLLM all rows of a process, each token at least at the training's speed
                        and with half a millisecond a layer, in which transformers prepares it; prompts at the
                        training's speed

Left out, so that real runs take longer: communication, the optimizer's step, data, rewards, weight sync, evaluation,
checkpoints, vision towers, and the tail of a generation, when few rows are left. Left in, so that HPT takes less: the
rows that it drops. Lengths that no recipe bounds are assumptions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpt_trl.methods.environments import context_limit
from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning.devices import H100, LAUNCH, Device
from hpt_trl.planning.memory_settings import compares, rows_at_once

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.planning.critics import CriticSize
    from hpt_trl.recipes.recipe import Recipe

GPU = H100.name
GPU_BYTES = 80e9


@dataclass(frozen=True)
class Assumptions:
    """What no recipe says."""

    utilisation: float = 0.4  # of the peak FLOPs, over all that is computed
    bandwidth: float = 0.6  # of the memory's bandwidth, while generating
    longest_prompt: int = 1024  # tokens; HPT's official preparation leaves longer ones out
    mean_prompt: int = 256
    mean_completion: int = 2048
    mean_row: int = 1024  # of rows that are padded, padding included


@dataclass(frozen=True)
class Cost:
    """What a step comes to.

    Attributes:
        gpus: number of them.
        rows: trained at once.
        row_length: tokens of a row that are counted.
        train_seconds: of a step.
        generation_seconds: of a step; its part of a generation.
        scoring_seconds: of a step's rows, by a model that scores the corpus once.
    """

    gpus: int
    rows: int
    row_length: int
    train_seconds: float
    generation_seconds: float
    scoring_seconds: float

    @property
    def tokens(self) -> int:
        """Trained tokens of a step."""
        return self.rows * self.row_length

    @property
    def seconds(self) -> float:
        """Of a step, without the scoring."""
        return self.train_seconds + self.generation_seconds

    def gpu_hours(self, steps: int) -> float:
        """Of a run, the scoring included."""
        return steps * (self.seconds + self.scoring_seconds) / 3600 * self.gpus


def cost_of(
    recipe: "Recipe",
    config: "PretrainedConfig",
    assumed: Assumptions,
    *,
    generated_rows: int = 0,
    weight_bytes: float = 2.0,
    device: Device = H100,
    scored_by: "PretrainedConfig | None" = None,
    most_rows: int | None = None,
    critic: "CriticSize | None" = None,
) -> Cost:
    """Computes what a step of a training costs on as many devices as it has processes.

    Args:
        config: of the model.
        generated_rows: completions that a process generates at once; 0 in stages without rollouts.
        weight_bytes: of a weight, and of a number of the KV cache, as a generation reads it.
        device: what a process computes on; its FLOPs are reached as far as is assumed.
        scored_by: of a model that scores the corpus once.
        most_rows: that a step can have; None without a bound.
        critic: of more than a head.
    """
    settings, gpus = recipe.config, recipe.world_size
    devices = 1 if device.shared else gpus
    flops = devices * device.flops * assumed.utilisation
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * gpus
    rows = rows if most_rows is None else min(rows, most_rows)
    pairs = compares(recipe)
    rows = rows_at_once(recipe, rows)
    length = row_length(recipe, assumed)
    tokens, forward = rows * length, forward_flops(config, length)
    passes = (2 if recipe.model_args.use_peft else 3) + settings.gradient_checkpointing
    heads = recipe.setting("n_future_tokens", 1) - 1
    further = heads * _of_head(config, length) * (3 + settings.gradient_checkpointing)
    if critic is not None:
        further += (passes + 1) * critic.layers * _of_layer(critic.config, length)
    rl = "num_generations" in recipe.keys
    generation = 0.0
    if rl:
        # Old log-probabilities, and those of the reference.
        passes += 1 + (recipe.setting("kl_coef", settings.beta) != 0)
        generated = rows / devices
        generation = generated * _completion_seconds(recipe, config, generated_rows, assumed, device, weight_bytes)
        generation += rows * assumed.mean_prompt * forward_flops(config, assumed.mean_prompt) / flops
    elif pairs and not recipe.stage.scores:
        passes += 1
    return Cost(
        gpus=gpus,
        rows=rows,
        row_length=length,
        train_seconds=tokens * (passes * forward + further) / flops,
        generation_seconds=generation,
        scoring_seconds=0.0 if scored_by is None else tokens * forward_flops(scored_by, length) / flops,
    )


def row_length(recipe: "Recipe", assumed: Assumptions) -> int:
    """Tokens of a row that are counted: what the recipe bounds, else what is assumed; contexts of turns in full."""
    if (context := context_limit(recipe)) is not None:
        return context
    if "num_generations" in recipe.keys:
        return assumed.mean_prompt + _mean_completion(recipe, assumed)
    longest = recipe.setting("max_length")
    if recipe.setting("packing", False) and longest:
        return longest
    return min(assumed.mean_row, longest or assumed.mean_row)


def forward_flops(config: "PretrainedConfig", length: int) -> float:
    """FLOPs of a forward pass per token of a row of some length; of the text model."""
    text = config.get_text_config()
    head = text.vocab_size * text.hidden_size
    return 2 * (_linear(config) + head) + 2 * _queries(text) * length * text.num_hidden_layers


def _linear(config: "PretrainedConfig") -> int:
    """Parameters of the text model's linear layers, without the head."""
    text = config.get_text_config()
    if text is config:
        return count_parameters(config).linear
    # Tokens of text and images pass through the text model alone.
    width = text.hidden_size
    queries = _queries(text)
    keys_values = 2 * queries * text.num_key_value_heads // text.num_attention_heads
    return text.num_hidden_layers * (width * (2 * queries + keys_values) + 3 * width * text.intermediate_size)


def _queries(text: "PretrainedConfig") -> int:
    """Width of all queries of a layer."""
    return (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) * text.num_attention_heads


def _of_head(config: "PretrainedConfig", length: int) -> float:
    """FLOPs of a forward pass per token of a head for future tokens: a layer, and the output embeddings."""
    text = config.get_text_config()
    return _of_layer(config, length) + 2 * text.vocab_size * text.hidden_size


def _of_layer(config: "PretrainedConfig", length: int) -> float:
    """FLOPs of a forward pass per token of a decoder layer."""
    text = config.get_text_config()
    head = 2 * text.vocab_size * text.hidden_size
    return (forward_flops(config, length) - head) / text.num_hidden_layers


def _mean_completion(recipe: "Recipe", assumed: Assumptions) -> int:
    return min(assumed.mean_completion, recipe.config.max_completion_length)


def _completion_seconds(
    recipe: "Recipe",
    config: "PretrainedConfig",
    rows: int,
    assumed: Assumptions,
    device: Device,
    weight_bytes: float,
) -> float:
    """Seconds of a device for a completion, of `rows` that it generates."""
    text, length = config.get_text_config(), _mean_completion(recipe, assumed)
    # Keys and values of a token.
    heads = text.num_key_value_heads / text.num_attention_heads
    cached = 2 * text.num_hidden_layers * _queries(text) * heads * weight_bytes
    weights = weight_bytes * count_parameters(config).total
    # Half of a completion is there on average.
    mean = row_length(recipe, assumed) - length / 2
    at_once: float = rows
    if recipe.setting("use_vllm") and recipe.setting("vllm_mode") == "colocate":
        share = recipe.config.vllm_gpu_memory_utilization * GPU_BYTES
        at_once = max(min(rows, (share - weights) / (cached * mean)), 1)
    step = (weights + at_once * mean * cached) / (device.bandwidth * assumed.bandwidth)
    if not recipe.setting("use_vllm"):
        computed = at_once * forward_flops(config, int(mean)) / (device.flops * assumed.utilisation)
        step = max(step, computed) + text.num_hidden_layers * LAUNCH
    return length * step / at_once
