"""The ranges of the keys of trainers on rollouts.

TRL 1.16 accepts `loss_type: grppo`, `beta: -1`, `temperature: 0` or `max_completion_length: -5` and fails, or trains
on something else, after the model is loaded.
"""

from hpt_trl.settings.ranges import Rule, above, at_least, one_of, share

# Those of `transformers.generation` that are not about to go.
CACHES = ("static", "offloaded_static", "dynamic", "offloaded", "quantized")

ROLLOUT_RULES = (
    one_of("loss_type", "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    one_of("importance_sampling_level", "token", "sequence"),
    one_of("scale_rewards", "group", "batch", "none"),
    one_of("multi_objective_aggregation", "sum_then_normalize", "normalize_then_sum"),
    one_of("cache_implementation", *CACHES),
    one_of("vllm_mode", "colocate", "server"),
    one_of("vllm_model_impl", "vllm", "transformers"),
    one_of("vllm_importance_sampling_mode", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    Rule(("num_generations",), "2 or more", least=2, needed=True),
    Rule(("max_completion_length",), "1 or more", least=1, needed=True),
    at_least(
        1,
        *("num_generations_eval", "generation_batch_size", "steps_per_generation"),
        *("num_iterations", "ref_model_sync_steps", "num_completions_to_print", "max_tool_calling_iterations"),
        *("vllm_max_model_length", "vllm_tensor_parallel_size"),
    ),
    at_least(0, "beta", "top_k", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    at_least(0, "entropy_coef"),
    above(0, "temperature", "repetition_penalty", "epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"),
    above(0, "sapo_temperature_neg", "sapo_temperature_pos"),
    above(0, "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    above(0, "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_server_timeout"),
    above(0, "vllm_importance_sampling_cap"),
    share("top_p", "vllm_gpu_memory_utilization", zero=False),
    share("min_p", "top_entropy_quantile", "ref_model_mixup_alpha"),
    Rule(("vllm_server_port", "vllm_group_port"), "1 to 65535", least=1, most=65535),
)
