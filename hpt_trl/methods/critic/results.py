"""What a critic's run leaves beside its model: how it tells right from wrong, next to what does so without it.

The figures stand in results.json under `critic`; value_curves.jsonl holds the values of some held-out solutions, of
which value_curves.png is drawn. matplotlib is imported on use.
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of
from hpt_trl.pictures import STYLE, new_figure, write_picture
from hpt_trl.terminal import Column, flow, table

CURVES_FILE = "value_curves.jsonl"
PICTURE_FILE = "value_curves.png"
# Pairs whose values are kept.
SHOWN_PAIRS = 4
_KEYS = ("prompt", "right", "wrong")
_RIGHT, _WRONG = "#1b7837", "#b2182b"


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """The figures as a table."""
    rows = [("critic", *_shares(figures["critic"]), "")]
    for name, found in figures.get("baselines", {}).items():
        if "rule" not in found:
            rows.append((name, *_shares(found), ""))
            continue
        gap = found["critic_less_this"]
        error = "" if gap["standard_error"] is None else f" ± {gap['standard_error']:.1%}"
        rows.append((f"{name} ({found['rule']})", *_shares(found), f"{gap['difference']:+.1%}{error}"))
    if "same_length_bin" in figures:
        found = figures["same_length_bin"]
        rows.append((f"critic, {found['pairs']} pairs in one bin of lengths", *_shares(found), ""))
    head = f"Right above wrong on {figures['pairs']} held-out pairs"
    right, wrong = figures["mean_tokens"]
    return [
        table((head, Column("share", right=True), "95 % interval", Column("critic less this")), rows),
        flow([f"Right solutions have {right:.1f} tokens on average, wrong ones {wrong:.1f}."]),
    ]


def _shares(found: dict[str, Any]) -> tuple[str, str]:
    interval = found.get("interval")
    return f"{found['accuracy']:.1%}", "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


def read_curves(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of value_curves.jsonl; none without the file.

    Raises:
        UserError: a line is not a pair with values.
    """
    path = Path(folder) / CURVES_FILE
    if not path.exists():
        return []
    pairs = []
    for number, text in enumerate(lines_of(path), start=1):
        try:
            pair = json.loads(text)
        except ValueError:
            pair = None
        if not isinstance(pair, dict) or any(key not in pair for key in _KEYS):
            raise UserError(f"{path}, line {number}: not a JSON object with {', '.join(_KEYS)}; remove the line.")
        pairs.append(pair)
    return pairs


def draw_value_curves(folder: str | Path) -> Path | None:
    """Writes value_curves.png into a run's folder: V along a right and a wrong solution of each pair that was kept.

    Returns:
        Its path; None where the run left no values.

    Raises:
        UserError: value_curves.jsonl is broken.
    """
    pairs = read_curves(folder)
    if not pairs:
        return None
    path = Path(folder) / PICTURE_FILE
    write_picture(figure_of(pairs), path)
    return path


def figure_of(pairs: list[dict[str, Any]]) -> Any:
    """Draws V along the right and the wrong solution of each pair, of which there is one or more."""
    from matplotlib import rc_context

    rows, columns = (len(pairs) + 1) // 2, min(2, len(pairs))
    with rc_context(STYLE):
        figure, axes = new_figure(rows, columns, (5.6 * columns, 3.2 * rows + 0.3))
        for axis, pair in zip(axes.flat, pairs, strict=False):
            for side, color, dashes in (("right", _RIGHT, "-"), ("wrong", _WRONG, "--")):
                values = [value for value in pair[side]["values"] if value is not None]
                # From the prompt's last token, where nothing of the solution is read, on.
                axis.plot(
                    range(len(values)), values, color=color, linewidth=1.4, linestyle=dashes, label=f"{side} solution"
                )
                # Its mean, thin.
                axis.axhline(fmean(values[1:] or values), color=color, linewidth=0.7, linestyle=dashes)
            # A dollar sign is one here.
            axis.set_title(_shortened(pair["prompt"]), parse_math=False, fontsize=9.5)
            axis.set_xlabel("tokens of the solution")
            axis.grid(True, color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
        for axis in axes[:, 0]:
            axis.set_ylabel("value")
        for axis in axes.flat[len(pairs) :]:
            axis.set_visible(False)
        axes.flat[0].legend(loc="best")
    return figure


def report_critic(folder: str | Path, results: dict[str, Any] | None) -> list[str]:
    """The table of a critic's run and where its picture is; nothing of other runs.

    Args:
        results: results.json of the run, None where it did not finish.

    Raises:
        UserError: value_curves.jsonl is broken.
    """
    figures = (results or {}).get("critic")
    lines = [] if not figures else figure_lines(figures)
    measured = ((results or {}).get("after") or {}).get("held_out", {})
    if "critic/spikiness" in measured:
        said = (
            f"Values inside of a solution: variance {measured['critic/variance']:.3g}, spikiness "
            f"{measured['critic/spikiness']:.3g} (above 3 single tokens decide), correlation with the position "
            f"{measured['critic/position_correlation']:+.2f} (above 0.7 it may be the length alone)."
        )
        lines.append(flow([said]))
    picture = draw_value_curves(folder)
    return lines + ([] if picture is None else [flow([f"Value curves: {picture}"])])


def _shortened(prompt: str, width: int = 56) -> str:
    """The end of the question, which stands before Alpaca's `### Response:`."""
    text = " ".join(prompt.removesuffix("### Response:\n").split())
    return text if len(text) <= width else "… " + text[-width:].partition(" ")[2]
