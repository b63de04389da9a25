"""The bundled chain on made functions, cut to seconds: every stage's recipe as it is, but for steps and rows."""

from pathlib import Path
from typing import Any

import yaml

from hpt_trl.recipes.bundled import find_recipe

FEW = {"dataset_options": {"size": 200, "test_size": 40, "hardest": 2}, "n_samples": 48, "n_test_samples": 8}
EVALUATION = {"dataset_options": {"size": 1, "test_size": 3, "hardest": 2}, "n": 2, "k": [1, 2]}
# Of each stage, what makes it short.
SHORT: dict[str, dict[str, Any]] = {
    "pretrain": {"max_steps": 3, "dataset_options": {"size": 200, "test_size": 20, "hardest": 2}},
    "ref_tuning": FEW,
    "critic": FEW,
    "uniform": FEW,
    "verifiable": FEW | {"save_strategy": "steps", "save_steps": 1},
    "evaluate_uniform": EVALUATION,
    "evaluate": EVALUATION,
}


def short_chain(path: Path, stages: list[str], output_dir: Path) -> str:
    """Writes a recipe of some of the chain's stages; returns its path."""
    chain = yaml.safe_load(find_recipe("pipeline/weighted-mtp-tiny").read_text())
    assert chain["stages"].keys() == SHORT.keys()
    chain["stages"] = {name: chain["stages"][name] | SHORT[name] | {"use_cpu": True} for name in stages}
    path.write_text(yaml.safe_dump(chain | {"output_dir": str(output_dir)}, sort_keys=False))
    return str(path)
