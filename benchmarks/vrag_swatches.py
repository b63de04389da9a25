"""What a tiny vision-language model learns to see in the environment of visual retrieval: HPT and GRPO from one start.

    hpt-trl run vrag/tiny-index
    python -m benchmarks.vrag_swatches --output benchmarks/results/vrag_swatches-cpu.json

The task: a question names a card, its page must be searched for by that name, and the page is a field of one of eight
colours, which the model has to name. It is fair to a model from random weights: what can be read off the words of a
question says nothing of the colour, so that who does not look is right by chance (12.5 %), and a held-out question's
page was never seen.

For each seed a model from random weights (`tiny-vlm`) is given the form by a short SFT (`vrag/tiny-sft`); from it start

    hpt     `vrag/tiny`: a question that no rollout solves is learnt from the expert's trajectory
    grpo    the same without demonstrations (`switch_gate: -1`), the same rollouts, steps and learning rate

Each is judged by held-out questions, greedily. Runs are `hpt-trl run`; one that is finished in `--folder` is not run
again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.shared import ROOT, hardware, parser_of, spread, write_report
from hpt_trl.files import lines_of

ARMS: dict[str, dict[str, Any]] = {"hpt": {}, "grpo": {"switch_gate": -1}}
# What is read of an evaluation.
MEASURES = ("accuracy", "reward")


def run(recipe: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs a recipe unless its folder is finished; returns its results."""
    results = folder / "results.json"
    if not results.exists():
        words = [sys.executable, "-m", "hpt_trl", "run", recipe, "--output_dir", str(folder), "--overwrite", "true"]
        for key, value in settings.items():
            words += [f"--{key}", str(value)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words[2:])}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(results.read_text())


def moved(before: Path, after: Path) -> dict[str, float]:
    """How far the weights of a run moved, as a share of their norm: those of the vision tower, and the others."""
    start, end = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    shares = {}
    for name, own in (("vision", True), ("text", False)):
        names = [key for key in start if ("vision" in key) is own]
        changed = torch.cat([(end[key] - start[key]).flatten().double() for key in names]).norm()
        shares[name] = float(changed / torch.cat([start[key].flatten().double() for key in names]).norm())
    return shares


def figures(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The start of a seed, and what each arm made of it."""
    folder = Path(arguments.folder)
    common = {"seed": seed, "eval_samples": arguments.eval_samples, "search_index": arguments.index}
    start = folder / f"start-{seed}"
    first = run(arguments.sft_recipe, start, common | {"max_steps": arguments.sft_steps})
    found = [{"seed": seed, "arm": "start", **{name: first["after"][name] for name in MEASURES}}]
    for arm, settings in ARMS.items():
        trained = folder / f"{arm}-{seed}"
        given = common | settings | {"model_name_or_path": str(start), "max_steps": arguments.steps}
        results = run(arguments.recipe, trained, given)
        logged = [json.loads(line) for line in lines_of(trained / "metrics.jsonl")]
        shares = [line["hpt/sft_fraction"] for line in logged if "hpt/sft_fraction" in line]
        tenth = max(len(shares) // 10, 1)
        found.append(
            {
                "seed": seed,
                "arm": arm,
                **{name: results["after"][name] for name in MEASURES},
                "recall": results["after"]["environment"]["vrag/recall"],
                "demonstrations_first_tenth": sum(shares[:tenth]) / tenth,
                "demonstrations_last_tenth": sum(shares[-tenth:]) / tenth,
                "moved": moved(start, trained),
                "minutes": results["wall_time_s"]["train"] / 60,
            }
        )
    for one in found:
        print(json.dumps(one), flush=True)
    return found


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--index", default="outputs/vrag-tiny-index", help="output folder of vrag/tiny-index")
    parser.add_argument("--folder", default="outputs/vrag_swatches", help="of the runs")
    parser.add_argument("--sft_recipe", default="vrag/tiny-sft", help="of the start, or a path")
    parser.add_argument("--recipe", default="vrag/tiny", help="of both arms, or a path")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sft_steps", type=int, default=220, help="of the start")
    parser.add_argument("--steps", type=int, default=200, help="of each arm")
    parser.add_argument("--eval_samples", type=int, default=100, help="held-out questions")
    arguments = parser.parse_args(words)
    runs = [one for seed in arguments.seeds for one in figures(seed, arguments)]
    summary = {
        arm: {name: spread([one[name] for one in runs if one["arm"] == arm]) for name in MEASURES}
        for arm in ("start", *ARMS)
    }
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "folder", "index")},
        "hardware": hardware(),
        "summary": summary,
        "runs": runs,
    }
    write_report(report, arguments.output)
    for arm, found in summary.items():
        said = [f"{name} {found[name]['mean']:.3f} ± {found[name]['deviation']:.3f}" for name in MEASURES]
        print(f"{arm:<6} {', '.join(said)}")
    return report


if __name__ == "__main__":
    main()
