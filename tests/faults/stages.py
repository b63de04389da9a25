"""The runs that are killed: every stage on the tiny models, six steps long, a checkpoint after every second one."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.code_problems import solutions
from tests.helpers.evaluations import EVALUATING, save_reward_model
from tests.helpers.pages import write_corpus
from tests.helpers.pretraining import PRETRAINING
from tests.helpers.stage_runs import KEYS, LORA, sums
from tests.helpers.tiny import save_tiny_model
from tests.helpers.value_models import save_value_model

STEPS = 6
_SHARED = KEYS | {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "test_split_size": 6,
    "lr_scheduler_type": "cosine",
}
_ROLLOUTS = {"num_generations": 2, "max_completion_length": 8, "eval_samples": 2}
_ROLLOUTS |= {"reward_funcs": ["tests.helpers.stage_runs.remainder"]}
_PROGRAMS = {"dataset_name": "{inputs}/code.jsonl", "test_split_size": 3, "per_device_eval_batch_size": 4}
_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    # The best one is not the last, which would be saved without it as well.
    "greater_is_better": True,
}
# What a recipe says in two processes.
IN_TWO = {"use_cpu": None, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "global_batch_size": 4}
# Name -> its keys, the stage of its own name first; None removes a key. `{inputs}` is the folder of `write_inputs`,
# `{folder}` the run's.
RUNS: dict[str, dict[str, Any]] = {
    "pretrain": PRETRAINING,
    "sft": {},
    "sft-lora": LORA,
    "sft-best": _BEST,
    "reward": {},
    "critic": {"dataset_layout": "comparisons", "head_learning_rate": 2e-2},
    "dpo": {},
    "dpo-moving": {"sync_ref_model": True, "ref_model_sync_steps": 2},
    "grpo": _ROLLOUTS,
    "grpo-entropy": _ROLLOUTS | {"use_adaptive_entropy": True, "entropy_coef": 0.01},
    "hpt": _ROLLOUTS | {"success_threshold": 3.0},
    "ppo": _ROLLOUTS,
    "rho1": {
        "dataset_name": "{inputs}/texts.jsonl",
        "reference_model_name_or_path": "{inputs}/reference",
        "reference_cache_dir": "{folder}/scores",
        "select_ratio": 0.6,
    },
    "mtp": {
        "n_future_tokens": 3,
        "head_learning_rate": 3e-2,
        "weighting": "verifiable",
        "value_model_name_or_path": "{inputs}/value",
        "value_cache_dir": "{folder}/values",
    },
    "ref_tuning": _PROGRAMS,
    "ref_tuning-kept": _PROGRAMS | {"save_strategy": "no", "save_total_limit": None},
}
# Begun in some number of processes, and gone on with in another: the recipe is the same in all.
_MOVING = {"sft-moved": IN_TWO, "hpt-moved": RUNS["hpt"] | IN_TWO}
# Neither steps nor checkpoints.
_OTHERS: dict[str, dict[str, Any]] = {
    "evaluate": EVALUATING
    | {
        "model_name_or_path": "{inputs}/model",
        "dtype": "float32",
        "dataset_name": "{inputs}/sums.jsonl",
        "max_rows": 12,
        "reward_funcs": ["tests.helpers.evaluations.remainder"],
    },
    "index": {"pages": "{inputs}/pages", "questions": "{inputs}/questions.jsonl"},
}
NAMES = (*RUNS, *_OTHERS)


def has_checkpoints(name: str) -> bool:
    """Whether a run saves any; the others begin anew, or go on by what they have done."""
    return name not in _OTHERS and (RUNS | _MOVING)[name].get("save_strategy") != "no"


def write_inputs(folder: Path) -> None:
    """Writes models and rows that all runs read, and none changes."""
    folder.mkdir(parents=True)
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "reference", seed=1)
    save_value_model(str(folder / "reference"), folder / "value", scale=0.5)
    save_reward_model(str(folder / "model"), folder / "judge")
    rows = sums(30)
    texts = [{"text": f"{row['prompt']} {row['completion']}"} for row in rows]
    questions = [{"query": "weather of the coast", "reference_pages": ["sub/doc_4"]}]
    for name, lines in {"sums": rows, "texts": texts, "code": solutions(), "questions": questions}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_corpus(folder / "pages")


def write_recipe(name: str, inputs: Path, folder: Path, **changes: Any) -> Path:
    """Writes the recipe of a run into its folder; its output folder is `out` there.

    Args:
        changes: further keys; None removes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = name.partition("-")[0]
    if name in _OTHERS:
        values = _OTHERS[name]
    else:
        values = _SHARED | {"dataset_name": "{inputs}/sums.jsonl", "model_name_or_path": "{inputs}/model"}
        values |= (RUNS | _MOVING)[name]
    values = {"stage": stage, **values, "output_dir": "{folder}/out", **changes}
    text = yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    path = folder / "recipe.yaml"
    path.write_text(text.replace("{inputs}", str(inputs)).replace("{folder}", str(folder)))
    return path
