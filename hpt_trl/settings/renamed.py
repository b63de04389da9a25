"""What to write in place of keys that others' recipes hold: of older TRL and Transformers, and of other projects.

Every recipe of alignment-handbook (at 925acdf) and open-r1 (at 1416fa0) holds several of them. Only keys that the stage
at hand does not know are looked up here.
"""

from collections.abc import Callable, Collection
from typing import Any

# Letters of a value that are written out, and entries of a mixture.
_QUOTED, _SHOWN = 100, 8

# Key -> the key of the same meaning.
_SAME = {
    # Transformers
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "include_inputs_for_metrics": "include_for_metrics",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "xpu_backend": "ddp_backend",
    # TRL
    "max_new_tokens": "max_completion_length",
    "response_length": "max_completion_length",
    "group_size": "num_generations",
    "rloo_k": "num_generations",
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "cliprange": "epsilon",
    "target": "kl_target",
    "target_kl": "kl_target",
    "horizon": "kl_horizon",
    "use_score_scaling": "score_scaling",
    "non_eos_penalty": "missing_eos_penalty",
    "exp_name": "run_name",
    "reward_model": "reward_model_name_or_path",
    "init_kl_coef": "kl_coef",
    "reward_model_path": "reward_model_name_or_path",
    "sft_model_path": "model_name_or_path",
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "ref_model_init_kwargs": "model_init_kwargs",
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "streaming": "dataset_streaming",
    "log_with": "report_to",
    # alignment-handbook, open-r1
    "hub_model_revision": "hub_revision",
    "push_to_hub_revision": "hub_revision",
    "overwrite_hub_revision": "hub_overwrite",
    "model_code_revision": "model_revision",
    "base_model_revision": "model_revision",
    "preprocessing_num_workers": "dataset_num_proc",
    "truncation_side": "truncation_mode",
    "dataset_split": "dataset_train_split",
    "benchmarks": "evaluations",
    "wandb_project": "project",
    "tracker_project_name": "project",
    # LLaMA-Factory, axolotl and plain words
    "base_model": "model_name_or_path",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "lr": "learning_rate",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "micro_batch_size": "per_device_train_batch_size",
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "additional_target": "lora_modules_to_save",
    "adapter_name_or_path": "model_name_or_path",
    "sample_packing": "packing",
    "eval_sample_packing": "eval_packing",
    "lora_model_dir": "model_name_or_path",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "gradient_clipping": "max_grad_norm",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "mini_batch_size": "per_device_train_batch_size",
    "max_response_length": "max_completion_length",
    "total_epochs": "num_train_epochs",
    "experiment_name": "run_name",
    "project_name": "project",
    "wandb_name": "run_name",
    "train_file": "dataset_name",
    "train_dataset": "dataset_name",
    "val_size": "test_split_size",
    "val_set_size": "test_split_size",
    "rewards": "reward_funcs",
}

# Key -> why it can be dropped.
_NEEDLESS = {
    "max_prompt_length": "it was removed: prompts are not cut",
    "max_target_length": "it was removed: `max_length` bounds prompt and answer together",
    "logging_dir": "it was removed",
    "save_safetensors": "it was removed: models are always saved as safetensors",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "auto_insert_empty_system_msg": "a system message comes from the rows, from `system_prompt` or from the template",
    "callbacks": "runs are pushed by `push_to_hub` and measured by `evaluations`",
    "is_encoder_decoder": "it was removed: the model's config says it",
    "label_pad_token_id": "it was removed",
    "padding_value": "it was removed",
    "use_logits_to_keep": "it was removed",
    "use_num_logits_to_keep": "it was removed",
    "generate_during_eval": "it was removed; `eval_samples` answers held-out rows before and after",
    "dataset_batch_size": "it was removed",
    **dict.fromkeys(
        (
            *("fp16_backend", "fp16_opt_level", "half_precision_backend", "jit_mode_eval", "use_ipex", "past_index"),
            *("tpu_num_cores", "tpu_metrics_debug", "use_mps_device", "use_legacy_prediction_loop", "ray_scope"),
            *("mp_parameters", "num_of_sequences", "chars_per_token", "model_adapter_name", "ref_adapter_name"),
            *("force_use_ref_model", "reference_free", "precompute_ref_batch_size", "kl_estimator"),
        ),
        "it was removed",
    ),
    **dict.fromkeys(("stop_token", "stop_token_id"), "a completion ends with the end tokens of model and tokenizer"),
    "local_rollout_forward_batch_size": "rollouts are scored in micro-batches of `per_device_train_batch_size`",
    **dict.fromkeys(("tokenizer_type", "model_type", "special_tokens"), "the model's config and its tokenizer say it"),
    **dict.fromkeys(("overwrite_cache", "dataset_prepared_path"), "rows are read anew by each run"),
    "strict": "a key that there is not is refused always",
    "pad_to_sequence_len": "rows are padded to the longest of their batch",
    "lora_fan_in_fan_out": "PEFT sees it by the layer",
    "early_stopping_patience": "no run ends early; `load_best_model_at_end` keeps its best model",
    **dict.fromkeys(
        ("loss_watchdog_threshold", "loss_watchdog_patience"), "a run ends where its gradients are not finite"
    ),
    "plot_loss": "a run draws its curves (docs/report.md)",
    "vllm_dtype": "it was removed: vLLM takes the model's",
    "vllm_enable_prefix_caching": "it was removed: vLLM does it by itself",
    **dict.fromkeys(("code_eval_test_batch_size", "code_eval_scoring_mode"), "`code_tests` scores by the share passed"),
    **dict.fromkeys(
        ("code_language", "code_provider", "ioi_provider", "e2b_router_url", "morph_router_url"),
        "programs run in a sandbox on this machine (docs/rewards.md)",
    ),
    "parallel_code_exec_per_proc": "`code_workers` says how many programs run at once",
    **dict.fromkeys(
        ("pass_rate_min", "pass_rate_max", "output_dataset_name"),
        "a recipe filters no data; measure pass rates with `stage: evaluate` and keep the rows that you want",
    ),
    **dict.fromkeys(
        (
            *("cosine_min_value_wrong", "cosine_max_value_wrong", "cosine_min_value_correct"),
            *("cosine_max_value_correct", "cosine_max_len", "repetition_n_grams", "repetition_max_penalty"),
            *("max_completion_len", "soft_punish_cache"),
        ),
        "it is an argument of a reward; write that reward as a function of your own and name its dotted path in "
        "`reward_funcs`",
    ),
}

# Key -> what to write instead, in words.
_INSTEAD = {
    "overwrite_output_dir": "it was removed; write `overwrite: true`, or name another `output_dir`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "adafactor": "write `optim: adafactor`",
    "kl_coef": "write `beta`",
    "gradient_checkpointing_use_reentrant": "write `gradient_checkpointing_kwargs: {use_reentrant: ...}`",
    "fsdp_transformer_layer_cls_to_wrap": "write `fsdp_config: {transformer_layer_cls_to_wrap: ...}`",
    "finetuning_type": "write `use_peft: true` for LoRA, and drop the line otherwise",
    "num_mini_batches": "minibatches follow from `global_batch_size` and `steps_per_generation`; drop the line",
    "adap_kl_ctrl": "write `kl_controller`",
    "push_to_hub_organization": "write it into `hub_model_id: organization/name`",
    **{key: f"write `accelerator_config: {{{key}: ...}}`" for key in ("dispatch_batches", "split_batches")},
    "sharded_ddp": "start the run with `--accelerate fsdp2`",
    "fsdp_min_num_params": "write `fsdp_config: {min_num_params: ...}`",
    **dict.fromkeys(
        ("max_samples", "max_train_samples", "max_num_train_samples"), 'write `dataset_train_split: "train[:1000]"`'
    ),
    "max_eval_samples": 'write `dataset_test_split: "test[:100]"`, or `eval_samples` where completions are drawn',
    **dict.fromkeys(
        ("flash_attn", "flash_attention", "use_flash_attn"), "write `attn_implementation: flash_attention_2`"
    ),
    "quantization_bit": "write `load_in_4bit: true` or `load_in_8bit: true`",
    "adapter": "write `use_peft: true` for LoRA, and `load_in_4bit: true` beside it for QLoRA",
    "lora_target_linear": "write `lora_target_modules: all-linear`",
    "template": "a model's own template is taken; another one is a .jinja file, named as `chat_template_path`",
    "dataset_dir": "write the file's path as `dataset_name`",
    "evals_per_epoch": "write `eval_strategy: steps` and `eval_steps`, below 1 as a share of all steps",
    "saves_per_epoch": "write `save_strategy: steps` and `save_steps`, below 1 as a share of all steps",
    "train_on_inputs": "prompts are not trained on",
    "rl": "write it as `stage`",
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus"), "start the run with `--accelerate multi_gpu --num_processes N`"),
    "total_episodes": "write `max_steps` or `num_train_epochs`",
    "dataset_configs": "write `dataset_config`, one name",
    "dataset_splits": "write `dataset_train_split` and `dataset_test_split`",
    "vllm_device": "write `vllm: colocate`, or `vllm: server` for a server that you start",
    "wandb_entity": "write `env: {WANDB_ENTITY: ...}`",
    "wandb_run_group": "write `env: {WANDB_RUN_GROUP: ...}`",
    "deepspeed_config": "start the run with `--accelerate zero3`, or name a file of your own as `deepspeed`",
}


def renamed(key: str, value: Any, known: Collection[str]) -> str | None:
    """Returns what to write in place of a key that no field declares; None where nothing is known of it.

    Args:
        key: as it is written.
        value: what stands there, where it is known.
        known: the keys that the stage has.
    """
    if key in _BY_VALUE:
        return _BY_VALUE[key](value, known)
    if key in _SAME:
        new = _SAME[key]
        return f"it is now `{new}`" if new in known else f"it is now `{new}`, which this stage has not; drop the line"
    if key in _NEEDLESS:
        return f"{_NEEDLESS[key]}; drop the line"
    return _INSTEAD.get(key)


def stands_for(key: str) -> str | None:
    """Returns the key for which another of `renamed` stands; None where there is no such key."""
    return "dataset_name" if key in ("dataset_mixture", "dataset_mixer") else _SAME.get(key)


def _warmup_ratio(value: Any, known: Collection[str]) -> str:
    shown = f": {value}" if isinstance(value, float) and value < 1 else ""
    return f"write `warmup_steps{shown}`; a value below 1 is a share of all steps"


def _max_seq_length(value: Any, known: Collection[str]) -> str:
    names = [name for name in ("max_length", "max_completion_length") if name in known]
    return f"it is now `{'` (SFT) or `'.join(names) or 'max_length'}`{' (RL)' if len(names) > 1 else ''}"


def _chat_template(value: Any, known: Collection[str]) -> str:
    if "chat_template_path" in known:
        return "write the text into a .jinja file and name it as `chat_template_path`"
    return "this stage takes the model's own template; write it into its folder as chat_template.jinja"


def _chat_template_kwargs(value: Any, known: Collection[str]) -> str:
    if "conversational" not in known or "tokenizer_vocab_size" in known:
        return "this stage renders no chat template; drop the line"
    return "this stage takes them of each row; write a column `chat_template_kwargs` into the data"


def _column(column: str) -> Callable[[Any, Collection[str]], str]:
    """A key that names one column of the rows."""

    def mapped(value: Any, known: Collection[str]) -> str:
        if value == column:
            return "the column has that name here too; drop the line"
        return f"write `column_mapping: {{{column}: {value[:_QUOTED] if isinstance(value, str) else '...'}}}`"

    return mapped


def _rpo_alpha(value: Any, known: Collection[str]) -> str:
    shown = str(value)[:_QUOTED] if isinstance(value, int | float) else "..."
    return f"write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, {shown}]`"


def _mixer(value: Any, known: Collection[str]) -> str:
    """alignment-handbook's older form: data set -> share of its rows."""
    shares = value if isinstance(value, dict) else {}
    return _data([{"id": name, "weight": weight} for name, weight in shares.items()], {}, known)


def _mixture(value: Any, known: Collection[str]) -> str:
    """alignment-handbook's and open-r1's form: `datasets`, each with id, config, split, columns and weight."""
    mixture = value if isinstance(value, dict) else {}
    entries = mixture.get("datasets")
    return _data(entries if isinstance(entries, list) else [], mixture, known)


def _data(entries: list[Any], mixture: dict[str, Any], known: Collection[str]) -> str:
    """What reads these data sets here: of one its keys, of several the block `datasets`."""
    entries = [entry for entry in entries if isinstance(entry, dict) and entry.get("id")]
    held_out = mixture.get("test_split_size")
    beside = "" if held_out is None else f", and `test_split_size: {_text(held_out)}`"
    if len(entries) == 1:
        config = f"`dataset_config: {_text(entries[0]['config'])}`, " if entries[0].get("config") else ""
        written = f"`dataset_name: {_text(entries[0]['id'])}`, {config}`dataset_train_split: {_split(entries[0])}`"
        return f"write {written}{beside}{_said_of_shares(entries)}"
    if "datasets" not in known:
        return f"one data set is read: join them into a file and name it as `dataset_name`{beside}"
    lines = [_entry(entry) for entry in entries[:_SHOWN]]
    more = f", and the {len(entries) - _SHOWN} others alike" if len(entries) > _SHOWN else ""
    return (
        f"write `datasets: [{', '.join(lines) or '{path: ...}, {path: ...}'}]`{more}{beside}{_said_of_shares(entries)}"
    )


def _entry(entry: dict[str, Any]) -> str:
    parts = {"path": _text(entry["id"]), "name": _text(entry.get("config") or ""), "split": _split(entry)}
    written = [f"{key}: {value}" for key, value in parts.items() if value]
    columns = entry.get("columns")
    if isinstance(columns, list) and columns:
        written.append(f"columns: [{_text(', '.join(map(str, columns)))}]")
    return f"{{{', '.join(written)}}}"


def _split(entry: dict[str, Any]) -> str:
    """Its split; a weight is the share of the rows that is taken, of each split where several are joined."""
    split, share = _text(entry.get("split") or "train"), _share(entry)
    if share is None:
        return split
    parts = [part if "[" in part else f"{part}[:{_percents(share)}%]" for part in split.split("+")]
    return f'"{"+".join(parts)}"'


def _share(entry: dict[str, Any]) -> float | None:
    """The weight of an entry, where it takes less than all rows."""
    weight = entry.get("weight")
    return weight if isinstance(weight, int | float) and 0 < weight < 1 else None


def _percents(share: float) -> int:
    """A share as slices of a split are written, which `datasets.ReadInstruction` takes in whole percents."""
    return max(1, round(share * 100))


def _said_of_shares(entries: list[dict[str, Any]]) -> str:
    """What the splits that are written do not say of the weights."""
    weighted = [(entry, share) for entry in entries[:_SHOWN] if (share := _share(entry)) is not None]
    rounded = any(abs(share * 100 - _percents(share)) > 1e-9 for _, share in weighted)
    sliced = any("[" in str(entry.get("split")) for entry, _ in weighted)
    return ("; slices are in whole percents, so shares are rounded" if rounded else "") + (
        "; of what is a slice already, write the share yourself" if sliced else ""
    )


def _text(value: Any) -> str:
    return str(value)[:_QUOTED]


# Keys of which the answer depends on the value, or on what the stage knows.
_BY_VALUE: dict[str, Callable[[Any, Collection[str]], str]] = {
    "warmup_ratio": _warmup_ratio,
    "max_seq_length": _max_seq_length,
    "rpo_alpha": _rpo_alpha,
    "chat_template": _chat_template,
    "chat_template_path": _chat_template,
    "chat_template_kwargs": _chat_template_kwargs,
    "dataset_prompt_column": _column("prompt"),
    "text_column": _column("text"),
    "dataset_mixer": _mixer,
    "dataset_mixture": _mixture,
}
