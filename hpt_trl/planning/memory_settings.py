"""What a recipe and its profile say of memory: the numbers that `hpt_trl.planning.memory.estimate` takes."""

import dataclasses
from typing import TYPE_CHECKING, Any

from hpt_trl.methods.critic.baselines import is_language_model
from hpt_trl.models.future_heads.heads import RESIDUALS
from hpt_trl.models.future_heads.trunk import parts_of
from hpt_trl.models.parameters import build_on_meta, count_parameters
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_batches import attention_of, demonstrated_batches, is_packed, prompts_at_once
from hpt_trl.planning.memory_parts import ZERO_BUCKET
from hpt_trl.planning.memory_sizes import FurtherHeads, Sharding, Sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PretrainedConfig
    from trl import ModelConfig

    from hpt_trl.recipes.profiles import Profile
    from hpt_trl.recipes.recipe import Recipe

# Bytes of a parameter of a quantized linear layer: its bits and the scale of its block (bitsandbytes: 64 values share
# a float32 in 4 bits, or about an eighth of that with nested quantization; a row shares one in 8 bits).
FOUR_BIT, FOUR_BIT_NESTED, EIGHT_BIT = 0.5 + 4 / 64, 0.5 + 1 / 64, 1.0


def sharding_of(profile: "Profile", *, compute_bytes: float, mixed: bool) -> Sharding:
    """Returns what an accelerate profile shares out.

    Args:
        profile: the processes' own.
        compute_bytes: bytes of a weight as the model computes with it.
        mixed: weights are trained in float32 and computed with in half precision.
    """
    processes = profile.num_processes
    offload = {"offload_weights": profile.offload_params, "offload_optimizer": profile.offload_optimizer}
    if profile.distributed_type == "DEEPSPEED":
        stage = profile.zero_stage or 0
        return Sharding(
            weights=processes if stage == 3 else 1,
            gradients=processes if stage >= 2 else 1,
            optimizer=processes if stage >= 1 else 1,
            gathered="window" if stage == 3 else "",
            gathered_bytes=compute_bytes,
            gathers_to_generate=stage == 3,
            gradient_bytes=compute_bytes if mixed else None,
            master_weights=True,
            bucket=ZERO_BUCKET,
            bucket_stays=stage == 3,
            **offload,
        )
    if profile.distributed_type == "FSDP" and (processes := profile.sharded_over) > 1:
        return Sharding(
            weights=processes,
            gradients=processes,
            optimizer=processes,
            gathered="layers" if profile.reshard else "all",
            gathered_bytes=compute_bytes,
            **offload,
        )
    return Sharding(bucket=None if processes > 1 else 0)


def dtype_of(name: str | None, config: "PretrainedConfig") -> "torch.dtype":
    """Returns the type that a recipe's `dtype` loads a model in; `auto` and nothing mean the checkpoint's own."""
    import torch

    given = config.get_text_config().dtype or config.dtype if name in (None, "auto") else name
    # A config holds the type itself, or its name; without either Transformers loads float32.
    return given if isinstance(given, torch.dtype) else getattr(torch, given or "float32")


def sizes_of(
    recipe: "Recipe",
    config: "PretrainedConfig",
    lengths: Lengths,
    reward_models: "Sequence[PretrainedConfig]" = (),
    frozen: "Mapping[str, PretrainedConfig] | None" = None,
) -> Sizes:
    """Reads a recipe's numbers.

    Args:
        recipe: the checked recipe.
        config: the model's config.
        lengths: of the rows that are expected; a recipe does not bound prompts.
        reward_models: the configs of the reward models that score the rollouts.
        frozen: the configs of models that are asked about tokens while training, by the beginning of their keys
            (`reference`, `value`).
    """
    from transformers.utils import is_triton_available

    settings: Any = recipe.config
    zero = recipe.profile.distributed_type == "DEEPSPEED"
    return Sizes(
        **_of_rows(recipe, config, lengths),
        **_of_types(recipe, config),
        **_of_other_models(recipe, config, reward_models, frozen or {}),
        optimizer=str(settings.optim.value),
        gradient_checkpointing=settings.gradient_checkpointing,
        # Label smoothing needs the whole distribution.
        head_logits=not _draws(recipe) and not compares(recipe) and settings.label_smoothing_factor > 0,
        updates_at_once=settings.optim == "adamw_torch" and not _on_cpu(recipe) and not zero,
        triton=not _on_cpu(recipe) and is_triton_available(),
        trained_positions=recipe.setting("select_ratio", 1.0),
        scores=recipe.stage.scores,
        heads=_further_heads(recipe, config),
    )


def rows_at_once(recipe: "Recipe", rows: int) -> int:
    """Returns the sequences of a batch of so many rows, two for each comparison."""
    return rows * (2 if compares(recipe) else 1)


def _of_rows(recipe: "Recipe", config: "PretrainedConfig", lengths: Lengths) -> dict[str, Any]:
    """Of the sizes: what goes through the model at once."""
    settings: Any = recipe.config
    draws = _draws(recipe)
    rows = rows_at_once(recipe, settings.per_device_train_batch_size)
    packed = is_packed(recipe, config)
    # One row is not padded, but a rollout is as wide as those that were drawn with it.
    alike = not draws and (rows == 1 or recipe.setting("packing", False) or recipe.setting("padding_free", False))
    return {
        "rows": rows,
        "generated_rows": settings.per_device_train_batch_size * settings.steps_per_generation if draws else 0,
        "prompt_length": lengths.longest if draws else 0,
        "completion_length": settings.max_completion_length if draws else lengths.longest,
        "accumulates": settings.gradient_accumulation_steps > 1,
        # Of packed rows the worst batch has as many tokens: all are as long as the longest.
        "padded": not (packed or alike or "flash" in attention_of(recipe)),
        "packed": packed,
        "prompts": prompts_at_once(recipe, config) if packed and draws else None,
        "generates": draws and not settings.use_vllm,
        "eager": attention_of(recipe) == "eager",
        "others": demonstrated_batches(recipe, config, lengths),
    }


def _of_types(recipe: "Recipe", config: "PretrainedConfig") -> dict[str, Any]:
    """Of the sizes: bytes of numbers, and what the profile shares out of them."""
    model_args, distributed = recipe.model_args, recipe.profile.distributed_type
    half = recipe.config.bf16 or recipe.config.fp16
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    weight_bytes = dtype_of(model_args.dtype, config).itemsize
    activation_bytes = 2 if half else weight_bytes
    sharding = sharding_of(recipe.profile, compute_bytes=activation_bytes, mixed=half)
    if _on_cpu(recipe):
        # There is no other memory to go to.
        sharding = dataclasses.replace(sharding, offload_weights=False, offload_optimizer=False)
    if distributed == "DEEPSPEED" and half:
        # The model itself is cast, an adapter in it too; what is trained has float32 copies in the optimizer.
        weight_bytes = 2
    elif distributed == "FSDP" and half and not quantized:
        # Accelerate casts the shards to float32; whole layers are gathered in half precision.
        weight_bytes = 4
    # PEFT keeps adapters in float32, TRL those of a quantized model in bfloat16.
    adapter_bytes = 2 if quantized or sharding.gradient_bytes else 4
    return {
        "weight_bytes": weight_bytes,
        "linear_bytes": _linear_bytes(model_args, weight_bytes),
        "trainable_bytes": adapter_bytes if model_args.use_peft else weight_bytes,
        "activation_bytes": activation_bytes,
        "autocast": half and distributed != "DEEPSPEED",
        "sharding": sharding,
    }


def _of_other_models(
    recipe: "Recipe",
    config: "PretrainedConfig",
    reward_models: "Sequence[PretrainedConfig]",
    frozen: "Mapping[str, PretrainedConfig]",
) -> dict[str, Any]:
    """Of the sizes: the models that stand beside the trained one."""
    return {
        "reference_model": _refers(recipe) and not recipe.model_args.use_peft,
        "reference_bytes": sum(_frozen_bytes(recipe, *pair) for pair in frozen.items()),
        "reward_models": _judges_bytes(reward_models),
        "language_model": _of_baselines(recipe, config),
    }


def _draws(recipe: "Recipe") -> bool:
    """Whether completions are drawn to be trained on."""
    return "num_generations" in recipe.keys


def compares(recipe: "Recipe") -> bool:
    """Whether two answers to a prompt are two rows of the batch."""
    return recipe.stage.scores or recipe.layout == "comparisons"


def _on_cpu(recipe: "Recipe") -> bool:
    return recipe.config.device.type == "cpu"


def _refers(recipe: "Recipe") -> bool:
    """Whether the policy is compared with a reference while it is trained."""
    settings: Any = recipe.config
    if _draws(recipe):
        return recipe.setting("kl_coef", settings.beta) != 0
    # DPO's reference is a copy unless an adapter can be switched off or its figures are computed beforehand.
    return compares(recipe) and not recipe.stage.scores and not settings.precompute_ref_log_probs


def _judges_bytes(reward_models: "Sequence[PretrainedConfig]") -> float:
    """Bytes of the reward models, each held whole."""
    return sum(count_parameters(model, scores=True).total * dtype_of("auto", model).itemsize for model in reward_models)


def _of_baselines(recipe: "Recipe", config: "PretrainedConfig") -> float:
    """Bytes of the language model that a critic stands beside; without held-out rows it is not asked after all."""
    if not recipe.setting("baseline_pairs", 0) or not is_language_model(config):
        return 0.0
    return count_parameters(config).total * dtype_of(recipe.model_args.dtype, config).itemsize


def _further_heads(recipe: "Recipe", config: "PretrainedConfig") -> FurtherHeads:
    """The heads for future tokens that a recipe trains; a shipped layer is counted as a decoder layer."""
    count = recipe.setting("n_future_tokens", 1) - 1
    if count < 1:
        return FurtherHeads()
    layers = recipe.config.head_init != RESIDUALS
    each = config.get_text_config().hidden_size ** 2
    if layers:
        each = sum(parameter.numel() for parameter in parts_of(build_on_meta(config)).layer.parameters())
    return FurtherHeads(count, count * each, layers, kept=not recipe.config.checkpoint_heads)


def measuring_sizes(
    recipe: "Recipe",
    config: "PretrainedConfig",
    prompt: int,
    *,
    reads: int,
    generates: bool,
    reward_models: "Sequence[PretrainedConfig]" = (),
) -> Sizes:
    """Reads the numbers of a recipe that trains nothing.

    Args:
        prompt: tokens of the longest prompt that is expected.
        reads: tokens of texts that are read at once; 0 where none are.
        generates: whether completions are drawn in this process, and not by vLLM.
    """
    arguments, settings = recipe.model_args, recipe.config
    weight_bytes = dtype_of(arguments.dtype, config).itemsize
    linear_bytes = _linear_bytes(arguments, weight_bytes)
    rows, half = settings.per_device_eval_batch_size, settings.bf16 or settings.fp16
    return Sizes(
        rows=rows if reads else 0,
        generated_rows=rows if generates else 0,
        prompt_length=0 if reads else prompt,
        completion_length=reads or settings.max_completion_length,
        weight_bytes=weight_bytes,
        linear_bytes=linear_bytes,
        trainable_bytes=weight_bytes,
        activation_bytes=2 if half else weight_bytes,
        autocast=half,
        reward_models=_judges_bytes(reward_models),
    )


def _frozen_bytes(recipe: "Recipe", prefix: str, config: "PretrainedConfig") -> float:
    """Bytes of the weights of a reference or a value model, which each process holds whole."""
    counts = count_parameters(config)
    size = dtype_of(recipe.setting(f"{prefix}_dtype"), config).itemsize
    linear = FOUR_BIT_NESTED if recipe.setting(f"{prefix}_load_in_4bit") else size
    return (counts.total - counts.linear) * size + counts.linear * linear


def _linear_bytes(arguments: "ModelConfig", weight_bytes: int) -> float:
    """Bytes of a weight of a linear layer, which may be quantized."""
    if arguments.load_in_4bit:
        return FOUR_BIT_NESTED if arguments.use_bnb_nested_quant else FOUR_BIT
    return EIGHT_BIT if arguments.load_in_8bit else weight_bytes
