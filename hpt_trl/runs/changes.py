"""What differs between the recipe of a checkpoint and the one that goes on from it, and what of it may differ."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.files import valid_json
from hpt_trl.hub.destination import HUB_KEYS
from hpt_trl.settings.keys import Key
from hpt_trl.settings.masking import masked

# Keys that say how a run is started, not what it does.
STARTING_KEYS = ("overwrite", "resume_from_checkpoint", "output_dir")
# How long a run goes on. A schedule that falls to its end follows, which is said.
LENGTH_KEYS = ("max_steps", "num_train_epochs")
# Which checkpoints there are to choose the best one from, where the run ends with it.
BEST_KEYS = frozenset({"save_strategy", "save_steps", "save_total_limit"})
# Keys that decide nothing about the weights that a step comes to. Any other key may, also one that is yet to come.
SAFE_KEYS = frozenset(
    {
        *STARTING_KEYS,
        *LENGTH_KEYS,
        *HUB_KEYS,
        *BEST_KEYS,
        *("save_only_model", "save_on_each_node", "logging_nan_inf_filter"),
        *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
        *("log_on_each_node", "log_completions", "log_unique_prompts", "log_multimodal", "num_completions_to_print"),
        *("log_completions_hub_repo", "report_to", "run_name", "project", "disable_tqdm", "stop_on_warnings"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataset_num_proc", "ddp_timeout", "skip_memory_metrics"),
        *("torch_empty_cache_steps", "code_workers", "judge_retries", "judge_concurrency", "judge_api_key_env"),
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        *("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"),
        *("reference_cache_dir", "value_cache_dir", "judge_cache"),
    }
)


# Beginnings of variables of a recipe's `env` that decide nothing about the weights either.
_SAFE_VARIABLES = (
    *("HF_", "HUGGINGFACE_", "HPT_TRL_", "WANDB_", "TRACKIO_", "TENSORBOARD_", "TQDM_", "TOKENIZERS_PARALLELISM"),
    *("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NCCL_", "GLOO_"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_", "MKL_NUM_THREADS", "HTTP_PROXY", "HTTPS_PROXY"),
)


@dataclass(frozen=True)
class Change:
    """A key of two values; None stands for a key that one of the recipes does not give.

    Attributes:
        safe: Whether it decides nothing about the weights that a step comes to.
    """

    key: str
    was: Any
    now: Any
    safe: bool = False

    def __str__(self) -> str:
        return f"{self.key} {_short(self.was)} there, {_short(self.now)} here"


def defaults_of(keys: Mapping[str, Key]) -> dict[str, Any]:
    """What each key stands for that a recipe does not give; a checkpoint notes it, as another version may say else."""
    return {name: _plain(key.default) for name, key in keys.items() if name not in SAFE_KEYS}


def changes_between(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    defaults: Mapping[str, Any],
    old_defaults: Mapping[str, Any],
    same_contents: Callable[[str, str], bool],
) -> list[Change]:
    """The keys whose values differ, in the order of the new recipe, then those whose defaults do.

    Args:
        old, new: key -> value.
        defaults, old_defaults: key -> what it stands for where a recipe does not give it, now and then; then as now
            where it was not noted.
        same_contents: Whether two texts, at any depth of a value, name files of the same contents.
    """
    # What is written down has no secrets; another one makes no other run.
    old, new = _plain(masked(old)), _plain(masked(new))
    before = {**defaults, **old_defaults}
    given = [*new, *(key for key in old if key not in new)]
    found = []
    for key in dict.fromkeys([*given, *(key for key in old_defaults if key in defaults)]):
        was, now = old.get(key, before.get(key)), new.get(key, defaults.get(key))
        if key not in STARTING_KEYS and not _same(was, now, same_contents):
            found.append(Change(key, was, now, safe=key in SAFE_KEYS))
    if any(change.key == "stage" for change in found):
        # Which keys there are follows from it.
        return [change for change in found if change.key == "stage"]
    return found


def changed_variables(
    old: Mapping[str, Any], new: Mapping[str, Any], same_contents: Callable[[str, str], bool]
) -> list[Change]:
    """The variables of two recipes' `env` whose values differ; a secret is the same as any other."""
    old, new = _plain(masked(old)), _plain(masked(new))
    return [
        Change(f"env.{name}", old.get(name), new.get(name), safe=name.upper().startswith(_SAFE_VARIABLES))
        for name in sorted({*old, *new})
        if not _same(old.get(name), new.get(name), same_contents)
    ]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(valid_json(value)))


def _same(was: Any, now: Any, same_contents: Callable[[str, str], bool]) -> bool:
    if was == now:
        return True
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(_same(*pair, same_contents) for pair in zip(was, now, strict=True))
    if isinstance(was, dict) and isinstance(now, dict):
        return was.keys() == now.keys() and all(_same(was[key], now[key], same_contents) for key in was)
    if not isinstance(was, str) or not isinstance(now, str):
        return False
    # Two ways to write the name of one file, or a project that was moved.
    return _place(was) == _place(now) is not None or same_contents(was, now)


def _place(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        # Any text may stand here, also one that no file system takes for a name.
        return None


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
