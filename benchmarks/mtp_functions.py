"""What weighted multi-token prediction teaches a small model: six ways of learning the same right solutions.

    hpt-trl run pipeline/weighted-mtp-tiny
    python -m benchmarks.mtp_functions --output benchmarks/results/mtp_functions-cpu.json

All arms start at the chain's pretrained model, which is right by chance, and see the same right solutions of made
functions, in the same order and number (`mtp/functions-tiny`):

    next_token       the next token alone, all tokens alike (SFT)
    uniform          four tokens ahead, all tokens alike
    verifiable       each token by what the chain's critic says that it changed
    shuffled         the weights of `verifiable` in another order within their solution
    random_matched   drawn weights with the mean and the spread that those of `verifiable` had in the search
    rho1             tokens whose loss exceeds that of the chain's reference most; the next token of all

Each arm tries every learning rate on one seed, takes the one with the best pass@1 on validation problems, then trains
on seeds of its own and is judged by pass@1 and pass@10 on other problems, by running what it writes (10 samples
a problem, temperature 0.8). Runs are `hpt-trl run` and `hpt-trl eval`, several at once; one that is finished in
`--folder` is not run again, so that the benchmark goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from benchmarks.shared import ROOT, hardware, parser_of, spread, write_report
from hpt_trl.evaluation.measures import pass_at_k
from hpt_trl.files import lines_of
from hpt_trl.recipes.bundled import find_recipe

ARMS: dict[str, dict[str, Any]] = {
    "next_token": {"n_future_tokens": 1, "weighting": "uniform"},
    "uniform": {"weighting": "uniform"},
    "verifiable": {"weighting": "verifiable"},
    "shuffled": {"weighting": "shuffled"},
    "random_matched": {"weighting": "random_matched"},
    "rho1": {"weighting": "rho1"},
}
# What the others are compared with, seed by seed: whether looking ahead helps, and whether it matters which token is
# given which weight.
BASES = ("next_token", "uniform", "shuffled", "random_matched")
BY_VALUES = ("verifiable", "shuffled")
# Of the search, none of the final runs.
SEARCH_SEED = 1000


class Runs:
    """Trainings and what they are judged by, each run once."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.folder = arguments, Path(arguments.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = yaml.safe_load(find_recipe(arguments.evaluate_recipe).read_text())
        self.k, self.options = recipe["k"], recipe["dataset_options"]

    def run(self, arm: str, learning_rate: float, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """The figures of one training, on validation problems and on test problems."""
        name = f"{arm}-{learning_rate:g}-{seed}"
        trained, judged, made = self.folder / name, self.folder / f"{name}-judged", Path(self.arguments.chain)
        settings = ARMS[arm] | settings | {"learning_rate": learning_rate, "seed": seed}
        settings["value_model_name_or_path"] = str(made / "critic") if arm in BY_VALUES else "null"
        if arm == "rho1":
            settings["reference_model_name_or_path"] = str(made / "ref_tuning")
        if not (judged / "results.json").exists():
            if not (trained / "results.json").exists():
                settings |= {"model_name_or_path": str(made / "pretrain"), "output_dir": str(trained)}
                self._command("run", self.arguments.train_recipe, settings | {"overwrite": "true"})
            problems = self.arguments.validation + (0 if seed == SEARCH_SEED else self.arguments.test)
            options = self.options | {"test_size": problems}
            judging = {"model_name_or_path": str(trained), "output_dir": str(judged), "dataset_options": options}
            self._command("eval", self.arguments.evaluate_recipe, judging)
        figures = {"arm": arm, "learning_rate": learning_rate, "seed": seed} | self._figures(trained, judged)
        print(json.dumps(figures), flush=True)
        return figures

    def _command(self, command: str, recipe: str, settings: dict[str, Any]) -> None:
        words = [sys.executable, "-m", "hpt_trl", command, recipe]
        for key, value in settings.items():
            words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words[2:])}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")

    def _figures(self, trained: Path, judged: Path) -> dict[str, Any]:
        solved: dict[int, list[bool]] = defaultdict(list)
        for line in lines_of(judged / "scored.jsonl"):
            row = json.loads(line)
            solved[row["row"]].append(row["solved"])
        found: dict[str, Any] = {}
        for part, there in (
            ("validation", [row for row in sorted(solved) if row <= self.arguments.validation]),
            ("test", [row for row in sorted(solved) if row > self.arguments.validation]),
        ):
            for k in self.k if there else ():
                each = [pass_at_k(len(solved[row]), sum(solved[row]), k) for row in there]
                found[f"{part}_pass@{k}"] = statistics.fmean(each)
        results = json.loads((trained / "results.json").read_text())
        found["held_out_loss"], found["steps"] = results["after"]["held_out"]["loss"], results["steps"]
        logged = [json.loads(line) for line in lines_of(trained / "metrics.jsonl")]
        for key in ("mtp/weight_mean", "mtp/weight_std", "mtp/weight_position_correlation"):
            if values := [line[key] for line in logged if key in line]:
                found[key] = statistics.fmean(values)
        return found


def compare(runs: Runs, arguments: argparse.Namespace) -> dict[str, Any]:
    """Search and final runs of every arm; returns the runs and a summary of each arm."""
    with ThreadPoolExecutor(arguments.workers) as pool:

        def of(arms: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
            tasks = {
                arm: [pool.submit(runs.run, arm, rate, SEARCH_SEED, given) for rate in arguments.learning_rates]
                for arm, given in arms.items()
            }
            return {arm: [task.result() for task in own] for arm, own in tasks.items()}

        search = of({arm: {} for arm in ARMS if arm != "random_matched"})
        found = max(search["verifiable"], key=lambda one: one["validation_pass@1"])
        matched = {
            "random_weight_mean": round(found["mtp/weight_mean"], 4),
            "random_weight_std": round(found["mtp/weight_std"], 4),
        }
        search |= of({"random_matched": matched})
        best = {arm: max(own, key=lambda one: one["validation_pass@1"])["learning_rate"] for arm, own in search.items()}
        # Seed by seed, so that what is cut short leaves whole comparisons.
        tasks = [
            (arm, pool.submit(runs.run, arm, best[arm], seed, matched if arm == "random_matched" else {}))
            for seed in arguments.seeds
            for arm in ARMS
        ]
        final: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for arm, task in tasks:
            final[arm].append(task.result())
    arms = {}
    for arm in ARMS:
        arms[arm] = {
            "learning_rate": best[arm],
            "search": [[one["learning_rate"], one["validation_pass@1"]] for one in search[arm]],
            # Then a better one may lie outside: search again with more.
            "at_edge": best[arm] in (min(arguments.learning_rates), max(arguments.learning_rates)),
        }
        for k in runs.k:
            own = [one[f"test_pass@{k}"] for one in final[arm]]
            arms[arm][f"pass@{k}"] = {"of_seeds": own, **spread(own)}
            for base in BASES:
                other = [one[f"test_pass@{k}"] for one in final[base]]
                if arm != base:
                    more = [one - beside for one, beside in zip(own, other, strict=True)]
                    arms[arm][f"pass@{k}_above_{base}"] = {"of_seeds": more, **spread(more)}
    return {
        "arms": arms,
        "random_matched": matched,
        "runs": [*chain.from_iterable(search.values()), *chain.from_iterable(final.values())],
    }


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--chain", default="outputs/weighted-mtp-tiny", help="folder of the pipeline")
    parser.add_argument("--folder", default="outputs/mtp_functions", help="of the runs")
    parser.add_argument("--train_recipe", default="mtp/functions-tiny", help="of every arm, or a path")
    parser.add_argument("--evaluate_recipe", default="evaluate/functions-tiny", help="what judges them, or a path")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--validation", type=int, default=100, help="problems that learning rates are judged on")
    parser.add_argument("--test", type=int, default=200, help="problems after them, of the final runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at once")
    arguments = parser.parse_args(words)
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "chain", "folder")},
        "hardware": hardware(),
    } | compare(Runs(arguments), arguments)
    write_report(report, arguments.output)
    for arm, found in report["arms"].items():
        named = [name for name in found if name.startswith("pass@") and "_" not in name]
        said = [f"{name} {found[name]['mean']:.1%} ± {found[name]['deviation']:.1%}" for name in named]
        for base in BASES:
            if more := found.get(f"pass@1_above_{base}"):
                said.append(f"pass@1 {more['mean']:+.1%} ± {more['deviation']:.1%} beside {base}")
        edge = ", the edge of the search" if found["at_edge"] else ""
        print(f"{arm:<15} {'; '.join(said)} (learning rate {found['learning_rate']:g}{edge})")
    return report


if __name__ == "__main__":
    main()
