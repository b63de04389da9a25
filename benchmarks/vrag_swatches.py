"""What a tiny vision-language model learns to see in the environment of visual retrieval: HPT and GRPO from one start.

    hpt-trl run vrag/tiny-index
    python -m benchmarks.vrag_swatches --output benchmarks/results/vrag_swatches-cpu.json

The task: a question names a card, its page must be searched for by that name, and the page is a field of one of eight
colours, which the model has to name. It is fair to a model from random weights: what can be read off the words of a
question says nothing of the colour, so that who does not look is right by chance (12.5 %), and a held-out question's
page was never seen.

For each seed a model from random weights (`tiny-vlm`) learns to act by SFT on trajectories (`vrag/tiny-sft`). It then
gets a new vision tower of random weights: it finds the pages and cannot see them. From this start go

    hpt     `vrag/tiny`: a question that at most one rollout solves is learnt from the expert's trajectory
    grpo    the same without demonstrations (`switch_gate: -1`), as many rollouts and steps

so that what an arm gains in accuracy at the same recall of pages it gains by seeing. Each arm tries every learning rate
on a seed of its own, takes the one with the best held-out reward, then trains on the others. Each is judged by held-out
questions, greedily. Runs are `hpt-trl run`; one that is finished in `--folder` is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.shared import ROOT, hardware, parser_of, spread, write_report
from hpt_trl.files import lines_of

ARMS: dict[str, dict[str, Any]] = {"hpt": {}, "grpo": {"switch_gate": -1}}
MEASURES = ("accuracy", "reward", "recall")
# Of the search, none of the final runs.
SEARCH_SEED = 1000


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


def start_of(seed: int, arguments: argparse.Namespace) -> Path:
    """The folder of a seed's start: what SFT made, with a new vision tower."""
    trained, folder = (Path(arguments.folder) / f"{name}-{seed}" for name in ("sft", "start"))
    settings = {"seed": seed, "eval_samples": arguments.eval_samples, "search_index": arguments.index}
    run(arguments.sft_recipe, trained, settings | {"max_steps": arguments.sft_steps})
    if not (folder / "config.json").exists():
        model = AutoModelForImageTextToText.from_pretrained(trained)
        torch.manual_seed(seed)
        blind = AutoModelForImageTextToText.from_config(model.config)
        model.model.vision_model.load_state_dict(blind.model.vision_model.state_dict())
        AutoProcessor.from_pretrained(trained).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def measured(results: dict[str, Any]) -> dict[str, float]:
    """What is read of an evaluation."""
    return {
        "accuracy": results["accuracy"],
        "reward": results["reward"],
        "recall": results["environment"]["vrag/recall"],
    }


def figures(arm: str, learning_rate: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What an arm made of a seed's start."""
    start = start_of(seed, arguments)
    trained = Path(arguments.folder) / f"{arm}-{learning_rate:g}-{seed}"
    settings = {"seed": seed, "eval_samples": arguments.eval_samples, "search_index": arguments.index}
    settings |= ARMS[arm] | {"model_name_or_path": str(start), "max_steps": arguments.steps}
    results = run(arguments.recipe, trained, settings | {"learning_rate": learning_rate})
    logged = [json.loads(line) for line in lines_of(trained / "metrics.jsonl")]
    shares = [line["hpt/sft_fraction"] for line in logged if "hpt/sft_fraction" in line]
    tenth = max(len(shares) // 10, 1)
    found = {
        "seed": seed,
        "arm": arm,
        "learning_rate": learning_rate,
        "start": measured(results["before"]),
        **measured(results["after"]),
        "demonstrations_first_tenth": sum(shares[:tenth]) / tenth,
        "demonstrations_last_tenth": sum(shares[-tenth:]) / tenth,
        "moved": moved(start, trained),
        "minutes": results["wall_time_s"]["train"] / 60,
    }
    print(json.dumps(found), flush=True)
    return found


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--index", default="outputs/vrag-tiny-index", help="output folder of vrag/tiny-index")
    parser.add_argument("--folder", default="outputs/vrag_swatches", help="of the runs")
    parser.add_argument("--sft_recipe", default="vrag/tiny-sft", help="before the start, or a path")
    parser.add_argument("--recipe", default="vrag/tiny", help="of both arms, or a path")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the runs; not 0")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[6e-5, 2e-4, 6e-4])
    parser.add_argument("--sft_steps", type=int, default=400, help="before the start")
    parser.add_argument("--steps", type=int, default=150, help="of each arm")
    parser.add_argument("--eval_samples", type=int, default=100, help="held-out questions")
    arguments = parser.parse_args(words)
    if 0 in arguments.seeds:
        parser.error("--seeds: 0 draws the vision tower that `tiny-vlm` begins with, and so takes no sight away")
    search = {
        arm: [figures(arm, rate, SEARCH_SEED, arguments) for rate in arguments.learning_rates]
        for arm in (ARMS if len(arguments.learning_rates) > 1 else ())
    }
    best = {
        arm: max(search[arm], key=lambda one: one["reward"])["learning_rate"] if search else arguments.learning_rates[0]
        for arm in ARMS
    }
    # Seed by seed, so that what is cut short leaves whole comparisons.
    runs = []
    for seed in arguments.seeds:
        runs += [figures(arm, best[arm], seed, arguments) for arm in ARMS]
    # The arms of a seed begin alike.
    sides = {"start": [one["start"] for one in runs if one["arm"] == "hpt"]}
    sides |= {arm: [one for one in runs if one["arm"] == arm] for arm in ARMS}
    summary = {side: {name: spread([one[name] for one in ones]) for name in MEASURES} for side, ones in sides.items()}
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "folder", "index")},
        "hardware": hardware(),
        "search": search,
        "learning_rates": best,
        "summary": summary,
        "runs": runs,
    }
    write_report(report, arguments.output)
    for arm, found in summary.items():
        said = [f"{name} {one['mean']:.3f} ± {one['deviation']:.3f}" for name, one in found.items()]
        print(f"{arm:<6} {', '.join(said)}")
    return report


if __name__ == "__main__":
    main()
