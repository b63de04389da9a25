"""What a run leaves, for reading: metrics.jsonl, results.json, the curves and the closing summary.

Everything is read back from the files, so `hpt-trl report` shows the same as the end of the run, also for a run that
was stopped half-way. Nothing here imports torch.
"""

from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.evaluation.figures import figures_of
from hpt_trl.evaluation.lines import measure_lines, undecided_line
from hpt_trl.methods.critic.results import report_critic
from hpt_trl.methods.reward.shift import report_shift
from hpt_trl.methods.rho1.page import draw_selections
from hpt_trl.reading import duration, read_metrics, read_results
from hpt_trl.run_files import CURVES_FILE, METRICS_FILE, RESULTS_FILE
from hpt_trl.runs.curves import draw, logged_series
from hpt_trl.runs.trajectory_pages import draw_trajectories
from hpt_trl.runs.warnings_file import read_warnings
from hpt_trl.terminal import Column, flow, printable, table, wrapped
from hpt_trl.terminal import side_by_side as beside
from hpt_trl.terminal import width as terminal_width
from hpt_trl.token_scores.weights_page import draw_weights

# Columns from which on two completions have room beside each other, and more than which are hard to read.
_LEAST_BESIDE, _MOST_BESIDE = 60, 140

# What the trainer measured on the held-out rows -> its name in the closing lines, in this order.
_HELD_OUT = {
    "loss": "loss",
    "accuracy": "pair accuracy",
    "rewards/accuracies": "pair accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
}


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
    """The text of a run, as wide as the terminal: accuracies, times, first and last metrics and where the files are.

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
    text += [f"Warning (step {line['step']}, {line['kind']}): {line['message']}" for line in read_warnings(folder)]
    text = [flow(text)]
    rows = []
    for key, points in logged_series(lines).items():
        (first_step, first), (last_step, last) = points[0], points[-1]
        rows.append((key, f"{first:.4g}", f"{first_step}", f"{last:.4g}", f"{last_step}"))
    if rows:
        numbers = [Column(title, right=True) for title in ("FIRST", "STEP", "LAST", "STEP")]
        text.append(table((Column("METRIC", whole=True), *numbers), rows))
    if results is not None:
        text.append(flow([f"Model: {folder}"]))
    if (folder / CURVES_FILE).exists():
        text.append(flow([f"Curves: {folder / CURVES_FILE}"]))
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
        print(flow([*lines, *_page_lines({"Trajectories": draw_trajectories(output_dir)})]))
        return
    # Of fewer steps than `logging_steps` a finished run has no curve.
    if results is None or logged_series(read_metrics(output_dir)):
        draw_curves(output_dir)
    for line in [summary(output_dir), *report_stage(output_dir)]:
        print(line)


def report_stage(output_dir: str | Path) -> list[str]:
    """Draws what only some stages leave and returns texts about it, as wide as the terminal: a reward model's shift, a
    critic's pairs, tokens, trajectories.

    Raises:
        UserError: the files are broken.
    """
    pages = {
        "Selected tokens": draw_selections(output_dir),
        "Weights of tokens": draw_weights(output_dir),
        "Trajectories": draw_trajectories(output_dir),
    }
    found = [*report_shift(output_dir), *report_critic(output_dir, read_results(output_dir))]
    return found + [flow([line]) for line in _page_lines(pages)]


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
    figure = figures_of(evaluation)["held_out", key]
    line = f"Held-out pair accuracy {name + ':':<7} {figure.value:6.1%}"
    if figure.low is None:
        return line
    known = f"95 % interval {figure.low:.1%} to {figure.high:.1%}; {evaluation['held_out_rows']} comparisons"
    return f"{line}  ({known}{', all tie' if _all_tie(evaluation) else ''})"


def _all_tie(evaluation: dict[str, Any]) -> bool:
    """Whether policy and reference model say the same of every held-out comparison, as before DPO's first step."""
    return evaluation.get("held_out", {}).get("rewards/ties") == 1


def accuracy_line(name: str, evaluation: dict[str, Any]) -> str:
    """Held-out accuracy with its 95 % interval."""
    figure = figures_of(evaluation)["accuracy",]
    rows = f"{evaluation['samples']} rows"
    if evaluation["num_generations"] > 1:
        rows += f", {evaluation['num_generations']} completions each"
    undecided = undecided_line(evaluation)
    return (
        f"Held-out accuracy {name + ':':<7} {figure.value:6.1%}  (95 % interval {figure.low:.1%} to {figure.high:.1%}; "
        f"{rows}, mean length {evaluation['mean_length']:.0f} tokens{'' if undecided is None else f'; {undecided}'})"
    )


def _reward_lines(results: list[dict[str, Any]]) -> list[str]:
    """The mean of each reward, and their weighted sum; none where the accuracy says it all. Then what was done."""
    if not results:
        return []
    named = {f"reward {name}": [result["rewards"].get(name) for result in results] for name in results[-1]["rewards"]}
    weighted = [result["reward"] for result in results]
    # Where one reward alone has a weight, it stands there under its name.
    if len(named) > 1 and weighted not in named.values():
        named["weighted reward"] = weighted
    if len(named) == 1:
        named = {name: values for name, values in named.items() if values != [result["accuracy"] for result in results]}
    # What rollouts did in an environment.
    for name in results[-1].get("environment", {}):
        named[name] = [result["environment"].get(name) for result in results]
    return [
        f"Held-out {name}: {' -> '.join('no value' if value is None else f'{value:.4g}' for value in values)}"
        for name, values in named.items()
    ]


def side_by_side(before: dict[str, Any], after: dict[str, Any], *, count: int = 3, width: int | None = None) -> str:
    """Completions of the same held-out prompts before and after the training: in two columns, or below each other.

    Args:
        count: Prompts shown.
        width: Of the text, in characters; the terminal's by default.
    """
    room = min(terminal_width(), _MOST_BESIDE) if width is None else width
    column = (room - 3) // 2
    blocks = []
    for old, new in list(zip(before["completions"], after["completions"], strict=True))[:count]:
        answer = "" if new["answer"] is None else f"   (answer: {new['answer']})"
        # The end of a prompt is the question; what comes first is often the same for every row.
        prompt = printable(" ".join(new["prompt"].split()))
        prompt = prompt if len(prompt) <= room - 30 else "… " + prompt[-max(room - 32, 40) :].partition(" ")[2]
        head = flow([f"{prompt}{answer}"], room)
        if room < _LEAST_BESIDE:
            lines = [*_column("before", old, room), *_column("after", new, room)]
        else:
            lines = beside(_column("before", old, column), _column("after", new, column), room)
        blocks.append("\n".join([head, *lines]))
    return "\n\n".join(blocks)


def _column(name: str, entry: dict[str, Any], width: int, most_lines: int = 8) -> list[str]:
    reward = "no reward" if entry["reward"] is None else f"reward {entry['reward']:g}"
    each = {key: value for key, value in entry.get("rewards", {}).items() if value is not None}
    if len(each) > 1:
        reward += ": " + ", ".join(f"{key} {value:g}" for key, value in each.items())
    lines = wrapped(printable(entry["completion"].strip()) or "(empty)", width)
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], "…"]
    return [*wrapped(f"[{name}, {reward}]", width), *lines]


def _headline(output_dir: str | Path, results: dict[str, Any] | None) -> str:
    if results is None:
        return str(output_dir)
    on = f" on {results['model']}" if "model" in results else ""
    return f"{results['recipe']}: {results['stage']}{on}"
