"""The ranges of recipe values that Transformers and TRL take unchecked, in one table.

TRL 1.16 accepts `loss_type: grppo`, `beta: -1`, `temperature: 0` or `max_completion_length: -5` and fails, or trains
on something else, after the model is loaded. A stage's own settings are checked by its config.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt_trl.settings.values import did_you_mean

if TYPE_CHECKING:
    from hpt_trl.recipes.stages import Stage


@dataclass(frozen=True)
class Rule:
    """What the values of some keys must satisfy; a value of None (the default) is never asked."""

    keys: tuple[str, ...]
    holds: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()


def at_least(least: float, *keys: str) -> Rule:
    return Rule(keys, lambda value: value >= least, f"{least} or more")


def above(bound: float, *keys: str) -> Rule:
    return Rule(keys, lambda value: value > bound, f"above {bound}")


def share(*keys: str, zero: bool = True, one: bool = True) -> Rule:
    def holds(value: float) -> bool:
        return (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1)

    return Rule(keys, holds, f"{'from' if zero else 'above'} 0 {'to' if one else 'to below'} 1")


def one_of(key: str, *names: str) -> Rule:
    return Rule((key,), lambda value: value in names, ", ".join(names), names)


COMMON_RULES = (
    at_least(
        1,
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("global_batch_size", "eval_num_generations", "eval_max_new_tokens", "eval_accumulation_steps"),
        *("save_total_limit", "max_length", "lora_r", "lora_alpha", "torch_empty_cache_steps", "ddp_timeout"),
        *("ddp_bucket_cap_mb", "dataloader_prefetch_factor", "dataset_num_proc"),
    ),
    at_least(0, "weight_decay", "warmup_steps", "max_grad_norm", "eval_samples", "eval_temperature", "eval_delay"),
    at_least(0, "dataloader_num_workers", "router_aux_loss_coef", "neftune_noise_alpha"),
    above(0, "learning_rate", "num_train_epochs", "adam_epsilon"),
    share("adam_beta1", "adam_beta2", "lora_dropout", "label_smoothing_factor", one=False),
    Rule(("max_steps",), lambda value: value == -1 or value >= 1, "1 or more, or -1 to count by `num_train_epochs`"),
    Rule(("seed", "data_seed"), lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    Rule(
        ("test_split_size", "logging_steps", "save_steps", "eval_steps"),
        lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
        "a whole number of 1 or more, or a share between 0 and 1",
    ),
)

GRPO_RULES = (
    one_of("loss_type", "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    one_of("importance_sampling_level", "token", "sequence"),
    one_of("scale_rewards", "group", "batch", "none"),
    one_of("multi_objective_aggregation", "sum_then_normalize", "normalize_then_sum"),
    one_of("vllm_mode", "colocate", "server"),
    one_of("vllm_model_impl", "vllm", "transformers"),
    one_of("vllm_importance_sampling_mode", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    at_least(2, "num_generations"),
    at_least(
        1,
        *("max_completion_length", "num_generations_eval", "generation_batch_size", "steps_per_generation"),
        *("num_iterations", "ref_model_sync_steps", "num_completions_to_print", "max_tool_calling_iterations"),
        *("vllm_max_model_length", "vllm_tensor_parallel_size"),
    ),
    at_least(0, "beta", "top_k", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    at_least(0, "entropy_coef"),
    above(0, "temperature", "repetition_penalty", "epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"),
    above(0, "sapo_temperature_neg", "sapo_temperature_pos"),
    above(0, "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    above(0, "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_server_timeout"),
    share("top_p", "vllm_gpu_memory_utilization", zero=False),
    share("min_p", "top_entropy_quantile", "ref_model_mixup_alpha"),
    Rule(("vllm_server_port", "vllm_group_port"), lambda value: 1 <= value <= 65535, "1 to 65535"),
    Rule(("pad_to_multiple_of",), lambda value: value == "auto" or value >= 1, "1 or more, or auto"),
)


PREFERENCE_RULES = (
    at_least(0, "beta", "center_rewards_coefficient", "label_smoothing", "discopop_tau"),
    at_least(1, "precompute_ref_batch_size", "ref_model_sync_steps"),
    share("ref_model_mixup_alpha"),
)


def rules_for(stage: "Stage") -> dict[str, Rule]:
    """Returns key -> rule for the keys of a stage; its own rules stand above these."""
    from trl import GRPOConfig

    rules = GRPO_RULES if issubclass(stage.config_class, GRPOConfig) else PREFERENCE_RULES
    return {key: rule for rule in (*COMMON_RULES, *rules, *stage.rules) for key in rule.keys}


def problem(rule: Rule, value: Any) -> str | None:
    """Returns what to say after a value that is out of range, or None where it is in range."""
    if value is None or rule.holds(value):
        return None
    return f"is not allowed; allowed: {rule.allowed}.{did_you_mean(str(value), rule.names)}"
