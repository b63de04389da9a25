"""What the two learning benchmarks of Rho-1 share: arms, the same search of the learning rate for each, several seeds.

The arms see the same tokens in the same order and differ in what they train on:

    full            all tokens (plain next-token training)
    random          a seeded draw of `--select_ratio` of them
    reference_low   those that the reference finds easiest
    excess          those whose loss exceeds the reference's most (Rho-1)

Each arm tries every learning rate on one seed and is judged on validation rows; with its best one it then trains on
seeds of their own and is judged on test rows. Both losses are taken over all tokens of clean held-out rows.
"""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks.shared import spread, write_report
from hpt_trl import Rho1Config, Rho1Trainer
from hpt_trl.methods.rho1.config import REFERENCED

ARMS = ("full", "random", "reference_low", "excess")
# Of the search, none of the final runs.
SEARCH_SEED = 1000

# Of an arm, a learning rate, a seed and whether it is a final run: its figures, among them `loss`.
Run = Callable[[str, float, int, bool], dict[str, Any]]


class Experiment:
    """A reference, and trainings with it; a benchmark says what the rows are, and what trains on them."""

    def __init__(self, arguments: Namespace):
        self.arguments = arguments
        self.folder = Path(arguments.folder)

    def trainer(
        self, rows: Dataset, held_out: Dataset, learning_rate: float, seed: int, **settings: Any
    ) -> Rho1Trainer:
        """Returns a trainer at the model that every training starts at."""
        raise NotImplementedError

    def config(self, learning_rate: float, seed: int, **settings: Any) -> Rho1Config:
        """Returns the settings that all trainings share, and those of one."""
        return Rho1Config(
            str(self.folder / "run"),
            select_ratio=self.arguments.select_ratio,
            reference_cache_dir=str(self.folder / "scores"),
            packing=True,
            packing_strategy="bfd",
            gradient_checkpointing=False,
            bf16=False,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )

    def train_reference_on(self, rows: Dataset, held_out: Dataset) -> dict[str, Any]:
        """Trains the reference on all tokens and saves it; returns its figures."""
        settings = {"selection": "full", "num_train_epochs": self.arguments.reference_epochs}
        trainer = self.trainer(rows, held_out, self.arguments.reference_learning_rate, 0, **settings)
        trainer.train()
        trainer.save_model(str(self.folder / "reference"))
        # Taken before `evaluate()`: of the training alone.
        tokens = last_logged(trainer.state.log_history)["num_tokens"]
        return {"loss": trainer.evaluate()["eval_loss"], "steps": trainer.state.global_step, "tokens": round(tokens)}

    def train_on(
        self, rows: Dataset, held_out: Dataset, selection: str, learning_rate: float, seed: int, **settings: Any
    ) -> dict[str, Any]:
        """Trains on the selected tokens; returns the figures of a `Run`."""
        if selection in REFERENCED:
            settings["reference_model_name_or_path"] = str(self.folder / "reference")
        started = time.perf_counter()
        trainer = self.trainer(rows, held_out, learning_rate, seed, selection=selection, **settings)
        trainer.train()
        return {
            "loss": trainer.evaluate()["eval_loss"],
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "seconds": time.perf_counter() - started,
            **last_logged(trainer.state.log_history),
        }


def add_arguments(parser: ArgumentParser, *, learning_rates: list[float], arms: tuple[str, ...] = ARMS) -> None:
    """The flags of a comparison."""
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=ARMS)
    parser.add_argument("--select_ratio", type=float, default=0.6)
    parser.add_argument("--learning_rates", nargs="+", type=float, default=learning_rates, help="tried by each arm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def compare(run: Run, arguments: Namespace) -> dict[str, Any]:
    """Search and final runs of every arm; returns the runs and a summary per arm."""
    runs, arms = [], {}

    def recorded(arm: str, learning_rate: float, seed: int, final: bool) -> float:
        found = run(arm, learning_rate, seed, final)
        runs.append({"arm": arm, "learning_rate": learning_rate, "seed": seed, "final": final} | found)
        print(json.dumps(runs[-1]), flush=True)
        return found["loss"]

    best = {}
    for arm in arguments.arms:
        tried = {rate: recorded(arm, rate, SEARCH_SEED, False) for rate in arguments.learning_rates}
        best[arm] = min(tried, key=lambda rate: tried[rate])
        arms[arm] = {
            "learning_rate": best[arm],
            "search": [[rate, loss] for rate, loss in tried.items()],
            # Then a better one may lie outside: search again with more.
            "at_edge": len(tried) > 1 and best[arm] in (min(tried), max(tried)),
        }
    losses: dict[str, list[float]] = {arm: [] for arm in arguments.arms}
    # Seed by seed, so that a run that is cut short leaves whole comparisons.
    for seed in arguments.seeds:
        for arm in arguments.arms:
            losses[arm].append(recorded(arm, best[arm], seed, True))
    for arm, values in losses.items():
        arms[arm] |= {"losses": values, **spread(values)}
        if arm != "full" and "full" in losses:
            less = [own - full for own, full in zip(values, losses["full"], strict=True)]
            arms[arm]["less_than_full"] = {"losses": less, **spread(less)}
    return {"arms": arms, "runs": runs}


def last_logged(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each of Rho1Trainer's metrics, and the tokens of the whole training."""
    found: dict[str, float] = {}
    for line in history:
        found |= {key: value for key, value in line.items() if key.startswith("rho1/") or key == "num_tokens"}
    return found


def finish(report: dict[str, Any], arguments: Namespace) -> None:
    """Writes the report and prints the table."""
    gpu = torch.cuda.is_available()
    report["hardware"] = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    write_report(report, arguments.output)
    print()
    for arm, found in report["arms"].items():
        less = found.get("less_than_full")
        beside = "" if less is None else f"   {less['mean']:+.4f} ± {less['deviation']:.4f} beside full, per seed"
        print(
            f"{arm:<14} held-out loss {found['mean']:.4f} ± {found['deviation']:.4f} "
            f"({len(found['losses'])} seeds, learning rate {found['learning_rate']:g}"
            f"{', the edge of the search' if found['at_edge'] else ''}){beside}"
        )
