"""What a run leaves for reading: metrics.jsonl line by line, results.json, the curves and the closing summary.

Everything is read back from the files, so `hpt-trl report` shows the same as the end of the run, also for a run that
was stopped half-way.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerState

from hpt_trl.errors import UserError
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.evaluation.lines import measure_lines
from hpt_trl.evaluation.summary import undecided_line
from hpt_trl.files import lines_of, valid_json, write_atomically
from hpt_trl.methods.critic.results import report_critic
from hpt_trl.methods.reward.shift import report_shift
from hpt_trl.methods.rho1.page import draw_selections
from hpt_trl.runs.curves import draw, logged_series
from hpt_trl.runs.trajectory_pages import draw_trajectories
from hpt_trl.token_scores.weights_page import draw_weights

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CURVES_FILE = "curves.png"

# Metric -> its name on the progress lines; only those that a run logs are shown.
_PROGRESS = {
    "reward": "reward",
    "hpt/solved_mean": "solved",
    "hpt/sft_fraction": "demonstrations",
    "hpt/demo_nll": "demo nll",
    "rho1/selected_loss": "selected loss",
    "rho1/unselected_loss": "unselected loss",
    "rho1/mean_excess": "excess",
    "ppo/kl": "KL",
    "ppo/value_loss": "value loss",
    "vrag/searches": "searches",
    "vrag/answered": "answered",
    "vrag/invalid_actions": "invalid",
    "vrag/recall": "recall",
    "completions/mean_length": "length",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
    "mean_token_accuracy": "token accuracy",
    "loss": "loss",
    "eval_loss": "held-out loss",
    "eval_accuracy": "held-out accuracy",
    "eval_rewards/accuracies": "held-out accuracy",
}

# What the trainer measured on the held-out rows -> its name in the closing lines, in this order.
_HELD_OUT = {
    "loss": "loss",
    "accuracy": "pair accuracy",
    "rewards/accuracies": "pair accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
}


# The trainer's closing figures count the evaluation before training as training time; results.json has them apart.
_SPEEDS = tuple(
    f"{mode}_{name}"
    for mode in ("train", "eval")
    for name in ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "model_preparation_time")
)


class MetricsWriter(TrainerCallback):
    """Appends one JSON line per log to `output_dir`/metrics.jsonl: step, epoch and every metric, NaN and inf as null.

    A resumed run keeps the lines up to the step it resumes from; a new run starts an empty file.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if state.global_step > 0 and self.path.exists():
            # A run that was killed may have left half a line; whatever comes after the checkpoint is done again.
            kept = [line for line in read_metrics(self.path.parent, tolerant=True) if line["step"] <= state.global_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics_line(state, logs), allow_nan=False) + "\n")


def metrics_line(state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    metrics = {key: value for key, value in logs.items() if key != "epoch" and key not in _SPEEDS}
    return valid_json({"step": state.global_step, "epoch": state.epoch} | metrics)


def progress_text(logs: dict[str, Any]) -> str:
    """What a progress line says of a log: the few metrics that are followed while a run trains."""
    return "  ".join(
        f"{name} {logs[key]:.3g}" for key, name in _PROGRESS.items() if isinstance(logs.get(key), int | float)
    )


class ProgressLines(ProgressCallback):
    """The progress bar of transformers with one short line per log in place of the whole dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs or "train_runtime" in logs:
            return
        self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {progress_text(logs)}")


def write_results(output_dir: str | Path, results: dict[str, Any]) -> Path:
    """Writes results.json; its presence marks a finished run."""
    path = Path(output_dir) / RESULTS_FILE
    write_atomically(path, json.dumps(valid_json(results), indent=2, ensure_ascii=False) + "\n")
    return path


def read_results(output_dir: str | Path) -> dict[str, Any] | None:
    """Results of a finished run, None if it did not finish.

    Raises:
        UserError: the file is not valid JSON.
    """
    path = Path(output_dir) / RESULTS_FILE
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. Remove it and run the recipe again.") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} holds {type(results).__name__}, not results of a run.")
    return results


def read_metrics(output_dir: str | Path, *, tolerant: bool = False) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl.

    Args:
        tolerant: Leave out a broken last line, as a killed run leaves it.

    Raises:
        UserError: no such folder or file, no lines, or a line that is not a JSON object with a `step`.
    """
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        raise UserError(f"{path} does not exist: `{output_dir}` is not the output folder of a run that has started.")
    lines = []
    texts = lines_of(path)
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif not (tolerant and number == len(texts)):
            raise UserError(
                f"{path}, line {number}: not a JSON object with a `step`; remove the line to read the rest."
            )
    if not lines and not tolerant:
        raise UserError(f"{path} is empty: the run has not logged a step yet.")
    return lines


def draw_curves(output_dir: str | Path) -> Path:
    """Draws curves.png from metrics.jsonl (and the accuracies of results.json); returns its path.

    Raises:
        UserError: the metrics are missing, broken or hold no curve.
    """
    lines, results = read_metrics(output_dir), read_results(output_dir)
    path = Path(output_dir) / CURVES_FILE
    try:
        draw(lines, results, _headline(output_dir, results), path)
    except ValueError as error:
        raise UserError(f"{Path(output_dir) / METRICS_FILE} cannot be drawn: {error}.") from error
    return path


def summary(output_dir: str | Path) -> str:
    """The closing text of a run: accuracies, times, the last metrics and where the files are.

    Raises:
        UserError: the files are missing or broken.
    """
    lines, results = read_metrics(output_dir), read_results(output_dir)
    folder = Path(output_dir)
    text = [_headline(output_dir, results)]
    if results is None:
        text.append(f"Not finished: {lines[-1]['step']} steps are logged, there is no {RESULTS_FILE}.")
    else:
        wall, tokens = results["wall_time_s"], results["tokens"]
        text.append(
            f"{results['steps']} steps in {duration(wall['total'])} (training {duration(wall['train'])}, evaluation "
            f"{duration(wall['evaluation'])}); {tokens['training']:,} tokens in training."
        )
        if not results.get("trained", True):
            text.append(f"Nothing was trained: {results['why_untrained']}.")
        text += evaluation_lines(results["before"], results["after"])
    for key, points in logged_series(lines).items():
        (first_step, first), (last_step, last) = points[0], points[-1]
        text.append(f"  {key:<26} {first:>9.4g} (step {first_step})  -> {last:>9.4g} (step {last_step})")
    if results is not None:
        text.append(f"Model: {folder}")
    if (folder / CURVES_FILE).exists():
        text.append(f"Curves: {folder / CURVES_FILE}")
    return "\n".join(text)


def report(output_dir: str | Path) -> None:
    """Redraws the curves and prints the summary, with what else a stage left: `hpt-trl report OUTPUT_DIR`.

    Raises:
        UserError: the files are missing or broken.
    """
    results = read_results(output_dir)
    if results is not None and "measures" in results:
        # A search index has neither model nor data.
        data = f", {results['data']}" if "data" in results else ""
        lines = [f"{_headline(output_dir, results)}{data}", *measure_lines(results["measures"])]
        for line in [*lines, *_page_lines({"Trajectories": draw_trajectories(output_dir)})]:
            print(line)
        return
    draw_curves(output_dir)
    for line in [summary(output_dir), *report_stage(output_dir)]:
        print(line)


def report_stage(output_dir: str | Path) -> list[str]:
    """Draws what only some stages leave and returns lines about it: a reward model's shift, a critic's pairs, tokens,
    trajectories.

    Raises:
        UserError: the files are broken.
    """
    pages = {
        "Selected tokens": draw_selections(output_dir),
        "Weights of tokens": draw_weights(output_dir),
        "Trajectories": draw_trajectories(output_dir),
    }
    return [*report_shift(output_dir), *report_critic(output_dir, read_results(output_dir)), *_page_lines(pages)]


def _page_lines(pages: dict[str, Path | None]) -> list[str]:
    return [f"{name}: {page}" for name, page in pages.items() if page is not None]


def evaluation_lines(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """The evaluations before and after a training for reading: solved share, rewards, and what else was measured."""
    both = {"before": before or {}, "after": after or {}}
    lines = [accuracy_line(name, result) for name, result in both.items() if "accuracy" in result]
    lines += _reward_lines([result for result in both.values() if "rewards" in result])
    for key, label in _HELD_OUT.items():
        found = {name: result for name, result in both.items() if result.get("held_out", {}).get(key) is not None}
        if label == "pair accuracy":
            lines += [_pair_accuracy_line(name, key, result) for name, result in found.items()]
        elif found:
            shown = [f"{result['held_out'][key]:.4g}" for result in found.values()]
            tied = [name for name, result in found.items() if _all_tie(result) and label != "loss"]
            said = f" ({' and '.join(tied)}: tie, policy and reference are the same)" if tied else ""
            lines.append(f"Held-out {label}: {' -> '.join(shown)}{said}")
    for name in both["after"].get("evaluations", {}):
        lines += _named_evaluation(name, both)
    return lines


def _named_evaluation(name: str, both: dict[str, dict[str, Any]]) -> list[str]:
    """What an evaluation that the recipe names has measured, before and after."""
    lines = []
    for side, result in both.items():
        measured = result.get("evaluations", {}).get(name)
        lines += [] if measured is None else [f"{name} {side}: {line}" for line in measure_lines(measured)]
    return lines


def _pair_accuracy_line(name: str, key: str, evaluation: dict[str, Any]) -> str:
    """Share of the held-out comparisons that are right, with its 95 % interval; without it of an older run."""
    line = f"Held-out pair accuracy {name + ':':<7} {evaluation['held_out'][key]:6.1%}"
    interval = evaluation.get("held_out_intervals", {}).get(key)
    if interval is None:
        return line
    known = f"95 % interval {interval[0]:.1%} to {interval[1]:.1%}; {evaluation['held_out_rows']} comparisons"
    return f"{line}  ({known}{', all tie' if _all_tie(evaluation) else ''})"


def _all_tie(evaluation: dict[str, Any]) -> bool:
    """Whether policy and reference model say the same of every held-out comparison, as before DPO's first step."""
    return evaluation.get("held_out", {}).get("rewards/ties") == 1


def accuracy_line(name: str, evaluation: dict[str, Any]) -> str:
    """Held-out accuracy with its 95 % interval."""
    share, count = evaluation["accuracy"], evaluation["samples"] * evaluation["num_generations"]
    low, high = evaluation.get("accuracy_interval") or wilson(share, count)
    rows = f"{evaluation['samples']} rows"
    if evaluation["num_generations"] > 1:
        rows += f", {evaluation['num_generations']} completions each"
    undecided = undecided_line(evaluation)
    return (
        f"Held-out accuracy {name + ':':<7} {share:6.1%}  (95 % interval {low:.1%} to {high:.1%}; {rows}, mean length "
        f"{evaluation['mean_length']:.0f} tokens{'' if undecided is None else f'; {undecided}'})"
    )


def _reward_lines(results: list[dict[str, Any]]) -> list[str]:
    """The mean of each reward, and their weighted sum; none where the accuracy says it all. Then what was done."""
    if not results:
        return []
    named = {f"reward {name}": [result["rewards"].get(name) for result in results] for name in results[-1]["rewards"]}
    if len(named) > 1:
        named["weighted reward"] = [result["reward"] for result in results]
    if len(named) == 1:
        named = {name: values for name, values in named.items() if values != [result["accuracy"] for result in results]}
    # What rollouts did in an environment.
    for name in results[-1].get("environment", {}):
        named[name] = [result["environment"].get(name) for result in results]
    return [
        f"Held-out {name}: {' -> '.join('no value' if value is None else f'{value:.4g}' for value in values)}"
        for name, values in named.items()
    ]


def side_by_side(before: dict[str, Any], after: dict[str, Any], *, count: int = 3, width: int = 110) -> str:
    """Completions of the same held-out prompts before and after the training, in two columns.

    Args:
        count: Prompts shown.
        width: Of the text, in characters.
    """
    column = (width - 3) // 2
    blocks = []
    for old, new in list(zip(before["completions"], after["completions"], strict=True))[:count]:
        answer = "" if new["answer"] is None else f"   (answer: {new['answer']})"
        # The end of a prompt is the question; what comes first is often the same for every row.
        prompt = " ".join(new["prompt"].split())
        prompt = prompt if len(prompt) <= width - 30 else "… " + prompt[-(width - 32) :]
        left, right = _column("before", old, column), _column("after", new, column)
        height = max(len(left), len(right))
        left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
        blocks.append(
            f"{prompt}{answer}\n" + "\n".join(f"{a:<{column}} | {b}".rstrip() for a, b in zip(left, right, strict=True))
        )
    return "\n\n".join(blocks)


def duration(seconds: float) -> str:
    """Seconds for reading: `42 s`, `5 min 03 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def _column(name: str, entry: dict[str, Any], width: int, most_lines: int = 8) -> list[str]:
    reward = "no reward" if entry["reward"] is None else f"reward {entry['reward']:g}"
    each = {key: value for key, value in entry.get("rewards", {}).items() if value is not None}
    if len(each) > 1:
        reward += ": " + ", ".join(f"{key} {value:g}" for key, value in each.items())
    lines = [
        part
        for line in entry["completion"].strip().splitlines() or ["(empty)"]
        for part in textwrap.wrap(line, width) or [""]
    ]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], "…"]
    return [*textwrap.wrap(f"[{name}, {reward}]", width), *lines]


def _headline(output_dir: str | Path, results: dict[str, Any] | None) -> str:
    if results is None:
        return str(output_dir)
    on = f" on {results['model']}" if "model" in results else ""
    return f"{results['recipe']}: {results['stage']}{on}"
