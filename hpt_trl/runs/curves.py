"""The picture of a run: which metrics share a panel, and how they are drawn.

matplotlib is imported on use only. A stage's metrics appear in the picture by a line in `PANELS`; a panel of which a
run logged nothing is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hpt_trl.pictures import STYLE, new_figure, write_picture

_BLUE, _ORANGE, _GREEN, _RED, _VIOLET, _GREY = "#2166ac", "#e08214", "#1b7837", "#b2182b", "#762a83", "#7f7f7f"
Points = list[tuple[int, float]]
# Dashes and markers by name: what tells the curves of a panel apart without their colours.
LINES: dict[str, tuple[Any, str]] = {
    "solid": ("-", "o"),
    "dashed": ("--", "s"),
    "dotted": (":", "^"),
    "dash-dotted": ("-.", "v"),
    "long": ((0, (9, 2)), "P"),
    "twice dotted": ((0, (5, 1.3, 1, 1.3, 1, 1.3)), "X"),
}


@dataclass(frozen=True)
class Series:
    """One curve of a panel.

    Attributes:
        key: The metric's name in metrics.jsonl.
        line: One of `LINES`; each curve of a panel has its own.
        same_as: Left out where it equals one of these metrics at every step.
        optional: Left out where it is zero at every step.
        right: Drawn on a second axis, from 0 to 100 %.
    """

    key: str
    label: str
    color: str
    line: str = "solid"
    same_as: tuple[str, ...] = ()
    optional: bool = False
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis; `share` runs from 0 to 100 %, `marks_accuracy` adds the evaluations."""

    title: str
    unit: str
    series: tuple[Series, ...]
    share: bool = False
    marks_accuracy: bool = False


PANELS = (
    Panel(
        "Rewards of the rollouts",
        "",
        (
            Series("hpt/solved_mean", "solved rollouts", _BLUE),
            Series("reward", "mean reward", _ORANGE, line="dashed", same_as=("hpt/solved_mean",)),
        ),
        marks_accuracy=True,
    ),
    Panel(
        "Comparisons told apart",
        "",
        (
            Series("accuracy", "training", _BLUE),
            Series("rewards/accuracies", "training", _BLUE),
            Series("eval_accuracy", "held out", _GREEN, line="dashed"),
            Series("eval_rewards/accuracies", "held out", _GREEN, line="dashed"),
        ),
        share=True,
    ),
    Panel(
        "Margins of the chosen ones",
        "difference of scores",
        (
            Series("margin", "training", _BLUE),
            Series("rewards/margins", "training", _BLUE),
            Series("eval_margin", "held out", _GREEN, line="dashed"),
            Series("eval_rewards/margins", "held out", _GREEN, line="dashed"),
        ),
    ),
    Panel(
        "Distance from the reference",
        "KL (nats per completion)",
        (
            Series("ppo/kl", "KL", _BLUE),
            Series("ppo/kl_coef", "its coefficient", _GREY, line="dashed"),
        ),
    ),
    Panel(
        "Value model",
        "",
        (
            Series("ppo/value_loss", "value loss", _ORANGE),
            Series("ppo/explained_variance", "explained variance", _GREEN, line="dash-dotted"),
            Series("ppo/clipfrac", "clipped tokens", _GREY, line="dashed"),
        ),
    ),
    Panel(
        "Values inside of an answer",
        "",
        (
            Series("critic/spikiness", "spikiness, training", _ORANGE),
            Series("eval_critic/spikiness", "spikiness, held out", _GREEN, line="dash-dotted"),
            Series("critic/position_correlation", "correlation with the position, training", _GREY, line="dashed"),
        ),
    ),
    Panel(
        "What is trained on",
        "",
        (
            Series("hpt/sft_fraction", "prompts with their demonstration", _RED),
            Series("hpt/off_fraction", "prompts with it off-policy", _VIOLET, line="dash-dotted", optional=True),
            Series("hpt/rows_kept", "rows computed", _GREY, line="dashed"),
            Series("rho1/select_ratio", "tokens selected", _BLUE, line="dotted"),
        ),
        share=True,
    ),
    Panel(
        "What rollouts do",
        "in a rollout",
        (
            Series("vrag/turns", "turns", _GREY, line="dashed"),
            Series("vrag/searches", "searches", _BLUE),
            Series("vrag/crops", "crops", _ORANGE, line="dash-dotted", optional=True),
        ),
    ),
    Panel(
        "What comes of it",
        "",
        (
            Series("vrag/answered", "rollouts that answered", _GREEN),
            Series("vrag/recall", "reference pages seen", _BLUE, line="dash-dotted"),
            Series("vrag/invalid_actions", "turns without a valid action", _RED, line="dotted"),
            Series("environment/cut", "rollouts cut", _GREY, line="dashed", optional=True),
        ),
        share=True,
    ),
    Panel(
        "Losses of the tokens",
        "loss (nats)",
        (
            Series("rho1/selected_loss", "selected", _BLUE),
            Series("rho1/unselected_loss", "not selected", _ORANGE, line="dashed"),
        ),
    ),
    Panel(
        "Excess over the reference",
        "nats",
        (
            Series("rho1/mean_excess", "mean of all tokens", _BLUE),
            Series("rho1/threshold", "lowest score selected", _GREY, line="dashed"),
        ),
    ),
    Panel(
        "Losses",
        "loss",
        (
            Series("loss", "total", _GREY, line="dashed", same_as=("hpt/rl_loss", "hpt/sft_loss")),
            Series("eval_loss", "held out", _GREEN),
            Series("hpt/rl_loss", "RL", _BLUE, line="dash-dotted", optional=True),
            Series("hpt/off_loss", "off-policy", _VIOLET, line="long", optional=True),
            Series("hpt/sft_loss", "SFT", _RED, line="dotted", optional=True),
            Series(
                "hpt/demo_nll", "NLL of the demonstrations", _ORANGE, line="twice dotted", same_as=("hpt/sft_loss",)
            ),
        ),
    ),
    Panel(
        "Completions",
        "mean length (tokens)",
        (
            Series("completions/mean_length", "mean length", _GREEN),
            Series("completions/clipped_ratio", "cut at the limit", _GREY, line="dashed", right=True),
        ),
    ),
)


def logged_series(lines: list[dict[str, Any]]) -> dict[str, Points]:
    """(step, value) of every metric of `PANELS` that the run logged and that says something of its own."""
    every = [series for panel in PANELS for series in panel.series]
    points = {series.key: points_of(lines, series.key) for series in every}
    return {
        series.key: points[series.key]
        for series in every
        if points[series.key]
        and not (series.optional and not any(value for _, value in points[series.key]))
        and not any(_equal(points[series.key], points[other]) for other in series.same_as)
    }


def draw(lines: list[dict[str, Any]], results: dict[str, Any] | None, title: str, path: Path) -> None:
    """Writes the picture to `path` (PNG); see `figure_of`."""
    write_picture(figure_of(lines, results, title), path)


def figure_of(lines: list[dict[str, Any]], results: dict[str, Any] | None, title: str) -> Any:
    """Draws the picture.

    Args:
        lines: Lines of metrics.jsonl.
        results: results.json, for the accuracies before and after; None for a run that did not finish.

    Raises:
        ValueError: none of the metrics of `PANELS` was logged.
    """
    from matplotlib import rc_context
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curves = logged_series(lines)
    panels = [panel for panel in PANELS if any(series.key in curves for series in panel.series)]
    if not panels:
        raise ValueError("no metric that can be drawn")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure, axes = new_figure(rows, columns, (5.6 * columns, 3.4 * rows + 0.4), layout=layout)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _draw_panel(axis, panel, curves, results)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(title, fontsize=12.5, x=0.015, ha="left")
    return figure


def figure_of_metrics(metrics: Mapping[str, Points]) -> Any:
    """Draws some metrics on one axis: what the legend says of each -> its (step, value)."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure, axes = new_figure(1, 1, (7.2, 3.2))
        axis, colors, lines = axes[0, 0], (_BLUE, _RED, _GREEN, _ORANGE, _VIOLET, _GREY), tuple(LINES)
        for place, (label, points) in enumerate(metrics.items()):
            steps, values = zip(*points, strict=True)
            # With more than six the dashes come with other colours.
            line = lines[(place + place // 6) % 6]
            draw_series(axis, Series(label, label, colors[place % 6], line), steps, values)
        axis.set_xlabel("step")
        axis.grid(True, color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(loc="best")
    return figure


def points_of(lines: list[dict[str, Any]], key: str) -> Points:
    """(step, value) of a metric by its name in metrics.jsonl, also of one that no panel shows."""
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def _equal(one: Points, other: Points) -> bool:
    """Whether `other` has the value of `one` at each of its steps."""
    values = dict(other)
    return all(step in values and math.isclose(value, values[step], rel_tol=1e-4, abs_tol=1e-6) for step, value in one)


def _draw_panel(axis: Any, panel: Panel, curves: dict[str, Points], results: dict[str, Any] | None) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_title(panel.title)
    axis.set_xlabel("step")
    axis.set_ylabel(panel.unit)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = []
    shares = [axis] if panel.share else []
    for series in (series for series in panel.series if series.key in curves):
        target = axis
        if series.right:
            target = axis.twinx()
            target.spines["right"].set_visible(True)
            target.set_ylabel(series.label)
            shares.append(target)
        steps, values = zip(*curves[series.key], strict=True)
        handles += draw_series(target, series, steps, values)
    if panel.marks_accuracy:
        handles += _mark_accuracy(axis, results)
        if "reward" not in curves:
            # A share of nothing but zeros and single solved rollouts is not blown up to the whole height.
            axis.set_ylim(top=max(0.1, axis.get_ylim()[1]))
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for share in shares:
        # Above 100 % there is room for the legend.
        share.set_ylim(-0.04, 1.08 + 0.11 * len(handles))
        share.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        share.yaxis.set_major_formatter(PercentFormatter(1.0))
    if panel.unit.endswith("(tokens)"):
        axis.set_ylim(bottom=0, top=1.3 * axis.get_ylim()[1])
    axis.legend(handles=handles, loc="upper right" if shares else "best")


def draw_series(axis: Any, series: Series, steps: Sequence[int], values: Sequence[float]) -> list[Any]:
    """Draws one curve, noisy ones with their centred mean; returns the handles of the legend."""
    dashes, marker = LINES[series.line]
    line = {"color": series.color, "linestyle": dashes, "label": series.label}
    means = centred_means(values)
    if means is None:
        return axis.plot(steps, values, linewidth=1.8, marker=marker, markersize=3.5, **line)
    # Many noisy points: the values pale, and on top their means.
    axis.plot(steps, values, color=series.color, alpha=0.22, linewidth=0.8)
    return axis.plot(steps, means, linewidth=1.8, **line)


def centred_means(values: Sequence[float]) -> list[float] | None:
    """The centred mean of each value over about 4 % of the run; None of so few that they stand for themselves."""
    half = len(values) // 50
    if half == 0:
        return None
    sums = list(accumulate(values, initial=0.0))
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]


def _mark_accuracy(axis: Any, results: dict[str, Any] | None) -> list[Any]:
    """Held-out accuracy before (step 0) and after (last step) as labelled diamonds."""
    if results is None:
        return []
    marks = [
        (step, results[name]["accuracy"], side)
        for name, step, side in (("before", 0, "left"), ("after", results["steps"], "right"))
        if "accuracy" in (results[name] or {})
    ]
    if not marks:
        return []
    for step, accuracy, side in marks:
        axis.annotate(
            f"{accuracy:.1%}",
            (step, accuracy),
            xytext=(8 if side == "left" else -2, 4 if side == "left" else -18),
            textcoords="offset points",
            ha=side,
            color=_GREEN,
            weight="bold",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            zorder=6,
        )
    style = {"color": _GREEN, "markersize": 8, "markeredgecolor": "white", "zorder": 7}
    return axis.plot(
        [step for step, _, _ in marks], [share for _, share, _ in marks], "D", label="held-out accuracy", **style
    )
