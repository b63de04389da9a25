"""HPT, GRPO and SFT side by side on GSM8K: one recipe, the same prompts, rollouts and demonstrations per step.

    python -m benchmarks.gsm8k_methods --dataset_name path/to/gsm8k_train.jsonl --steps 12 --seeds 0 \
        --output benchmarks/results/gsm8k_methods-cpu.json

Each method is a setting of the recipe `hybrid/smollm2-135m-gsm8k`: HPT as it is, GRPO with `unify_strategy: no`, SFT
with the gate at the group size (its rollouts are sampled and dropped, so the budget is the same). The learning rate is
the recipe's for all three. Accuracy is greedy, on held-out training rows that no run sees, and printed with its 95 %
interval (Wilson's): methods whose intervals overlap are not told apart by it.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.shared import parser_of, write_report
from hpt_trl.files import lines_of

METHODS = {
    "hpt": [],
    "grpo": ["--unify_strategy", "no"],
    "sft": ["--switch_gate", "8"],
}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--dataset_name", default="openai/gsm8k", help="Hub id or local copy")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", default="outputs/gsm8k_methods")
    arguments, overrides = parser.parse_known_args()
    figures = []
    for seed in arguments.seeds:
        for method in arguments.methods:
            folder = Path(arguments.folder) / f"{method}-{seed}"
            command = [sys.executable, "-m", "hpt_trl", "run", "hybrid/smollm2-135m-gsm8k"]
            command += ["--dataset_name", arguments.dataset_name, "--output_dir", str(folder), "--overwrite", "true"]
            command += ["--seed", str(seed), "--max_steps", str(arguments.steps), *METHODS[method], *overrides]
            if Path(arguments.dataset_name).exists():
                command += ["--dataset_config", "null"]
            subprocess.run(command, check=True)
            figures.append(figure(method, seed, folder))
            print(json.dumps(figures[-1]), flush=True)
    report = {"steps": arguments.steps, "overrides": overrides, "runs": figures}
    write_report(report, arguments.output)
    for run in figures:
        low, high = run["after_interval"]
        print(
            f"{run['method']:5s} seed {run['seed']}: accuracy {run['before']:.1%} -> {run['after']:.1%} "
            f"(95 % interval {low:.1%} to {high:.1%}, {run['samples']} rows), {run['train_minutes']:.1f} min"
        )


def figure(method: str, seed: int, folder: Path) -> dict:
    """The figures of one finished run."""
    results = json.loads((folder / "results.json").read_text())
    metrics = [json.loads(line) for line in lines_of(folder / "metrics.jsonl")]
    steps = [line for line in metrics if "hpt/solved_mean" in line]
    return {
        "method": method,
        "seed": seed,
        **{side: results[side]["accuracy"] for side in ("before", "after")},
        **{f"{side}_interval": results[side]["accuracy_interval"] for side in ("before", "after")},
        "samples": results["after"]["samples"],
        "steps": results["steps"],
        "solved_first": steps[0]["hpt/solved_mean"],
        "solved_last": steps[-1]["hpt/solved_mean"],
        "sft_fraction_last": steps[-1]["hpt/sft_fraction"],
        "train_minutes": results["wall_time_s"]["train"] / 60,
    }


if __name__ == "__main__":
    main()
