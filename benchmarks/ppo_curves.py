"""Learning curves of `benchmarks.ppo_against_trl`: runs that are kept as they end, and what they say of the arms."""

import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from benchmarks.paired import Mean, difference, verdict
from benchmarks.ppo_processes import started
from benchmarks.ppo_tasks import Arms, Refused, setup_of

# Of an update; a run holds a list of each.
FIGURES = ("score", "kl", "explained_variance", "tokens", "seconds", "cpu_seconds")
Run = dict[str, list[float]]


def read(path: str | Path | None) -> dict[str, Any]:
    """What a file of figures holds; nothing where there is none."""
    return json.loads(Path(path).read_text()) if path is not None and Path(path).is_file() else {}


class Record:
    """The runs of a task in a JSON file, in which each is written as soon as it has ended.

    Args:
        path: None: nothing is kept.
        settings: of all its runs.

    Raises:
        Refused: the file has runs of the task with other settings, or an arm of the same name with others.
    """

    def __init__(self, path: Path | None, task: str, settings: dict[str, Any], arms: Arms):
        self._path, self._task, self._lock = path, task, Lock()
        self._report = read(path)
        found = self._report.setdefault("curves", {}).setdefault(task, {"settings": settings, "arms": {}})
        kept = found["settings"]
        if others := [name for name in settings | kept if settings.get(name) != kept.get(name)]:
            differ = ", ".join(f"{name} {kept.get(name)} (now {settings.get(name)})" for name in others)
            raise Refused(f"{path} has runs of {task} with other settings: {differ}. Name another file.")
        for name, overrides in arms.items():
            arm = found["arms"].setdefault(name, {"overrides": overrides, "runs": {}})
            if arm["runs"] and arm["overrides"] != overrides:
                raise Refused(
                    f"{path} has an arm `{name}` with {arm['overrides']}, now {overrides}. Give it another name."
                )
            arm["overrides"] = overrides
        self._found = found

    def has(self, arm: str, seed: int) -> bool:
        return str(seed) in self._found["arms"][arm]["runs"]

    def run(self, arm: str, seed: int) -> Run:
        return self._found["arms"][arm]["runs"][str(seed)]

    def add(self, arm: str, seed: int, run: Run) -> None:
        with self._lock:
            self._found["arms"][arm]["runs"][str(seed)] = run
            self._write()

    def summarize(self, summary: dict[str, Any]) -> None:
        self._found["summary"] = summary
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            text = json.dumps(self._report, indent=2)
            # A curve on one line.
            text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
            aside = self._path.with_suffix(".part")
            aside.write_text(text + "\n")
            aside.replace(self._path)


def measure(
    record: Record,
    prepared: dict[str, Any],
    arms: Arms,
    seeds: list[int],
    folder: Path,
    *,
    processes: int,
    minutes: float | None,
) -> None:
    """Makes the runs that the record lacks, `processes` at once with one thread each, seed by seed.

    Args:
        minutes: after these no further seed is begun; one that was is finished.
    """
    begin = time.monotonic()
    begun: set[int] = set()

    def run(seed: int, arm: str) -> None:
        if seed not in begun:
            if minutes is not None and begun and time.monotonic() - begin > 60 * minutes:
                return
            begun.add(seed)
        found: Run = {name: [] for name in FIGURES}
        with started(setup_of(prepared, arm, arms[arm], seed), folder, threads=1) as worker:
            for _ in range(prepared["updates"]):
                figures = worker.update()
                for name, values in found.items():
                    values.append(round(figures[name], 4))
        record.add(arm, seed, found)
        last = quarter(found["score"])
        print(f"seed {seed}, {arm}: score {last:.3f}, {sum(found['seconds']) / 60:.1f} min", flush=True)

    missing = [(seed, arm) for seed in seeds for arm in arms if not record.has(arm, seed)]
    pool = ThreadPoolExecutor(processes)
    try:
        for future in [pool.submit(run, *one) for one in missing]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def quarter(values: list[float]) -> float:
    """Mean of the last quarter."""
    return statistics.mean(values[-max(1, len(values) // 4) :])


@dataclass(frozen=True)
class Summary:
    """What whole seeds say: of each arm a mean, and its difference from one of them.

    Attributes:
        means: of each arm, by the name of the figure.
        differences: of each other arm, by the name of the figure.
    """

    seeds: list[int]
    against: str
    means: dict[str, dict[str, Mean]]
    differences: dict[str, dict[str, Mean]]

    def as_json(self) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            "against": self.against,
            "means": {arm: {name: vars(mean) for name, mean in found.items()} for arm, found in self.means.items()},
            "differences": {
                arm: {name: vars(mean) | {"verdict": verdict(mean)} for name, mean in found.items()}
                for arm, found in self.differences.items()
            },
        }


def at_equal_time(runs: dict[str, Run], kl_coef: float, clock: str) -> dict[str, float]:
    """Objective of each arm of a seed, averaged over the last quarter of the time that the fastest one took.

    The policy that draws an update's completions is there when the update begins: that is the time of its figures.
    Between them the objective is interpolated.

    Args:
        clock: the figure that is the time of an update.
    """
    times = {arm: np.cumsum([0.0, *run[clock][:-1]]) for arm, run in runs.items()}
    end = min(points[-1] for points in times.values())
    asked = np.linspace(0.75 * end, end, 101)
    return {arm: float(np.mean(np.interp(asked, times[arm], objective(run, kl_coef)))) for arm, run in runs.items()}


def objective(run: Run, kl_coef: float) -> list[float]:
    """Score less `kl_coef` times the KL, which the updates raise."""
    return [score - kl_coef * kl for score, kl in zip(run["score"], run["kl"], strict=True)]


def summarize(record: Record, arms: Arms, seeds: list[int], against: str, kl_coef: float, clock: str) -> Summary | None:
    """Means over the seeds that every arm has ended; None where there is none."""
    whole = [seed for seed in seeds if all(record.has(arm, seed) for arm in arms)]
    if not whole:
        return None
    values: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    for seed in whole:
        runs = {arm: record.run(arm, seed) for arm in arms}
        timed = at_equal_time(runs, kl_coef, clock)
        for arm, run in runs.items():
            found = {name: quarter(run[name]) for name in ("score", "kl", "explained_variance")}
            found |= {"objective": quarter(objective(run, kl_coef)), "at_equal_time": timed[arm]}
            found |= {"tokens": sum(run["tokens"]), "time": sum(run[clock])}
            for name, value in found.items():
                values[arm].setdefault(name, []).append(value)
    return Summary(
        whole,
        against,
        means={arm: {name: Mean.of(of) for name, of in found.items()} for arm, found in values.items()},
        differences={
            arm: {name: difference(of, values[against][name]) for name, of in found.items()}
            for arm, found in values.items()
            if arm != against
        },
    )


def table(summary: Summary, updates: int, kl_coef: float, clock: str) -> str:
    """Two tables in Markdown: the arms, and what they differ by."""
    unit = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}[clock]
    seeds = ", ".join(map(str, summary.seeds))
    lines = [
        f"Mean ± standard error over the seeds {seeds}. Score, KL, objective (score - {kl_coef:g}·KL) and explained "
        f"variance are of the last quarter of {updates} updates; at equal time: of the last quarter of the {unit} that "
        "the fastest arm took.",
        "",
        f"| Arm | score | KL | objective | explained variance | tokens | {unit} | objective at equal time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, means in summary.means.items():
        cells = [
            means["score"].text(),
            means["kl"].text(2),
            means["objective"].text(),
            means["explained_variance"].text(2),
            f"{means['tokens'].mean:,.0f}",
            f"{means['time'].mean:,.0f}",
            means["at_equal_time"].text(),
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    if summary.differences:
        lines += [
            "",
            f"| Objective less that of {summary.against}, by seed | equal samples | | equal time | |",
            "|---|---|---|---|---|",
        ]
    for arm, found in summary.differences.items():
        cells = [
            text
            for name in ("objective", "at_equal_time")
            for text in (found[name].text(sign="+"), verdict(found[name]))
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(record: Record, summary: Summary, kl_coef: float, clock: str, path: Path) -> None:
    """Each seed pale, the mean over seeds on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from hpt_trl.runs.curves import STYLE

    def curves(name: str, arm: str) -> list[list[float]]:
        runs = [record.run(arm, seed) for seed in summary.seeds]
        return [objective(run, kl_coef) if name in ("objective", "timed") else run[name] for run in runs]

    titles = {
        "score": "Score",
        "kl": "KL to the reference (nats)",
        "explained_variance": "Explained variance of the critic",
        "timed": f"Objective by time ({'CPU ' if clock == 'cpu_seconds' else ''}seconds)",
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11.2, 7.2), layout="constrained")
        for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
            axis.set(title=title, xlabel="PPO update" if name != "timed" else "")
            axis.grid(True, color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
            for place, arm in enumerate(summary.means):
                seeds = np.array(curves(name, arm))
                across = np.arange(1, seeds.shape[1] + 1, dtype=float)
                if name == "timed":
                    spent = np.mean([record.run(arm, seed)[clock] for seed in summary.seeds], axis=0)
                    across = np.cumsum([0.0, *spent[:-1]])
                color = plt.get_cmap("tab10")(place % 10)
                for values in seeds:
                    axis.plot(across, values, color=color, alpha=0.2, linewidth=0.7)
                axis.plot(across, seeds.mean(0), color=color, linewidth=1.8, label=arm)
        axes[0, 0].legend(loc="best")
        figure.savefig(path, dpi=150)
        plt.close(figure)
