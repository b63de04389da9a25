"""The pictures of a run without their colours: each curve of a panel has dashes and markers of its own."""

import math

import pytest
from matplotlib.lines import Line2D

from hpt_trl.runs.curves import LINES, PANELS, figure_of, figure_of_metrics


def look(line: Line2D) -> tuple:
    """Dashes and marker as matplotlib draws them."""
    return line.get_linestyle(), tuple(line._dash_pattern[1] or ()), line.get_marker()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_no_two_series_of_a_panel_share_a_line(panel):
    """But for the names of one thing in several stages, as training's accuracy."""
    labels = {series.label: series.line for series in panel.series}
    assert len(set(labels.values())) == len(labels)
    assert all(labels[series.label] == series.line for series in panel.series)


def every_metric(steps: int) -> list[dict]:
    """Lines of a run that logged each metric of each panel, one name of each."""
    names = {(panel.title, series.label): series.key for panel in PANELS for series in panel.series}
    return [
        {"step": step} | {key: 0.5 + 0.4 * math.sin(step / 4 + place) for place, key in enumerate(names.values())}
        for step in range(1, steps + 1)
    ]


# Few points have markers, many are drawn as their means.
@pytest.mark.parametrize("steps", [12, 120])
def test_the_curves_of_a_picture_differ_in_grey(steps):
    results = {"before": {"accuracy": 0.2}, "after": {"accuracy": 0.7}, "steps": steps}
    figure = figure_of(every_metric(steps), results, "every metric")
    legends = {axis.get_title(loc="left"): axis.get_legend() for axis in figure.axes if axis.get_legend() is not None}
    assert list(legends) == [panel.title for panel in PANELS]
    for panel in PANELS:
        looks = [look(line) for line in legends[panel.title].get_lines()]
        assert len(looks) == len({series.label for series in panel.series}) + panel.marks_accuracy
        assert len(set(looks)) == len(looks), panel.title
        # What has no markers is told apart by its dashes alone.
        assert len({found[:2] for found in looks}) == len(looks), panel.title


def test_metrics_on_one_axis_differ_in_grey():
    count = len(LINES)
    figure = figure_of_metrics({f"metric {place}": [(1, place), (2, place + 1)] for place in range(2 * count)})
    lines = figure.axes[0].get_legend().get_lines()
    looks = [look(line) for line in lines]
    assert len(set(looks[:count])) == count
    assert len({(*found, line.get_color()) for found, line in zip(looks, lines, strict=True)}) == 2 * count
