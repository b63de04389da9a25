"""The curves of metrics.jsonl as vector pictures: the panels of curves.png, of one run or of several on each other.

A curve is told from its neighbours by its dashes, its markers and the letter at its end, not by its colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpt_trl.reports.markers import marker_path
from hpt_trl.reports.run import Run
from hpt_trl.reports.scales import Segments, segments, spread_apart, thinned, ticks
from hpt_trl.runs.curves import PANELS, Panel, Series, centred_means, logged_series

# Of a picture, in its own units, which are pixels where a page is as wide as a phone.
WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 340, 12, 178

# Markers on a curve at most, and points at most that say their value where they are pointed at.
_MARKERS, _SAYING = 12, 40
# Height of a letter at the end of a curve.
_LETTER = 12.0


@dataclass(frozen=True)
class Spot:
    """A place in a picture with what is said there."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        look: Number of its colour, its dashes and its markers.
        letter: At its end; empty where it is alone.
        name: In the legend.
        path: Its line, of noisy values their means; `pale` the values themselves.
        markers: Outlines of its markers.
        spots: Its values, to point at; none of very many.
        end: Where the letter stands.
        first, last, lowest, highest: (step, value).
        gaps: How often it is interrupted.
    """

    look: int
    letter: str
    name: str
    path: str
    pale: str
    markers: str
    spots: tuple[Spot, ...]
    end: Spot
    first: tuple[int, float]
    last: tuple[int, float]
    lowest: tuple[int, float]
    highest: tuple[int, float]
    gaps: int


@dataclass(frozen=True)
class Chart:
    """A picture of curves that share an axis.

    Attributes:
        key: Names of the metrics in metrics.jsonl.
        marks: Held-out accuracies before and after.
    """

    title: str
    unit: str
    key: str
    is_share: bool
    curves: tuple[Curve, ...]
    x_ticks: tuple[Spot, ...]
    y_ticks: tuple[Spot, ...]
    marks: tuple[Spot, ...]

    @property
    def description(self) -> str:
        """The chart in words, for those who do not see it."""
        said = [
            f"{curve.name} from {number(curve.first[1], self.is_share)} at step {curve.first[0]} to "
            f"{number(curve.last[1], self.is_share)} at step {curve.last[0]}"
            for curve in self.curves
        ]
        said += [f"held-out accuracy {mark.text}" for mark in self.marks]
        return f"{self.title}, by step: {'; '.join(said)}."


def charts_of(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    """The charts of one run, a panel of curves.png each, or of several, a metric each with a curve for every run.

    Args:
        letters: What the runs are called on the page.
    """
    logged = [logged_series(run.lines) for run in runs]
    charts = []
    for panel in PANELS:
        present = [series for series in panel.series if any(series.key in keys for keys in logged)]
        if len(runs) == 1:
            own, apart = [one for one in present if not one.right], [one for one in present if one.right]
            charts += [_panel(panel, panel.title, own, runs[0])] if own else []
            charts += [_panel(panel, f"{panel.title}: {one.label}", [one], runs[0]) for one in apart]
        else:
            charts += [
                _overlaid(panel, one, f"{panel.title}: {one.label}" if len(present) > 1 else panel.title, runs, letters)
                for one in present
            ]
    return charts


def number(value: float, is_share: bool = False) -> str:
    """A number for reading: `66.1 %`, `0.6612`, `12,345`."""
    if is_share:
        return f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _panel(panel: Panel, title: str, series: list[Series], run: Run) -> Chart:
    letters = [chr(ord("a") + place) for place in range(len(series))] if len(series) > 1 else [""]
    drawn = [
        (look, letter, one.label, segments(run.lines, one.key))
        for look, (letter, one) in enumerate(zip(letters, series, strict=True))
    ]
    is_right = series[0].right
    marks = _accuracies(run) if panel.marks_accuracy else []
    unit = "" if is_right else panel.unit
    keys = ", ".join(one.key for one in series)
    return _chart(title, unit, keys, panel.share or is_right, drawn, marks, from_zero=panel.unit.endswith("(tokens)"))


def _overlaid(panel: Panel, series: Series, title: str, runs: Sequence[Run], letters: Sequence[str]) -> Chart:
    drawn = [
        (place, letter, letter, found)
        for place, (letter, run) in enumerate(zip(letters, runs, strict=True))
        if (found := segments(run.lines, series.key))
    ]
    unit = "" if series.right else panel.unit
    return _chart(title, unit, series.key, panel.share or series.right, drawn, [], from_zero=unit.endswith("(tokens)"))


def _accuracies(run: Run) -> list[tuple[int, float]]:
    last = run.steps or 0
    found = ((0, run.before), (last, run.after))
    return [(step, side["accuracy"]) for step, side in found if side is not None and "accuracy" in side]


def _chart(
    title: str,
    unit: str,
    key: str,
    is_share: bool,
    drawn: list[tuple[int, str, str, Segments]],
    marks: list[tuple[int, float]],
    *,
    from_zero: bool,
) -> Chart:
    points = [point for _, _, _, parts in drawn for part in parts for point in part] + marks
    steps, values = [step for step, _ in points], [value for _, value in points]
    first, last = min(steps), max(steps)
    low, high = (0.0, 1.0) if is_share else (min(0.0, *values) if from_zero else min(values), max(values))
    if low == high:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    rounds = ticks(low, high, 4)
    # A share of a few outliers, as a rate of 1.2, stays inside of the picture.
    low, high = min(rounds[0], min(values)), max(rounds[-1], max(values))

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * ((step - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    placed = [
        (look, letter, name, parts, [[(x(step), y(value)) for step, value in part] for part in parts])
        for look, letter, name, parts in drawn
    ]
    ends = spread_apart([where[-1][-1][1] for *_, where in placed], _LETTER, TOP, BOTTOM)
    return Chart(
        title=title,
        unit=unit,
        key=key,
        is_share=is_share,
        curves=tuple(
            _curve(look, letter, name, parts, where, end, is_share)
            for (look, letter, name, parts, where), end in zip(placed, ends, strict=True)
        ),
        x_ticks=tuple(
            Spot(x(step), BOTTOM, f"{step:,.0f}") for step in ticks(first, last, 5, whole=True) if first <= step <= last
        ),
        y_ticks=tuple(Spot(LEFT, y(value), _tick(value, is_share)) for value in rounds),
        marks=tuple(Spot(x(step), y(value), number(value, True)) for step, value in marks),
    )


def _curve(
    look: int,
    letter: str,
    name: str,
    parts: Segments,
    where: list[list[tuple[float, float]]],
    end: float,
    is_share: bool,
) -> Curve:
    means = [centred_means([height for _, height in part]) for part in where]
    smooth = [
        part if mean is None else [(x, round(height, 1)) for (x, _), height in zip(part, mean, strict=True)]
        for part, mean in zip(where, means, strict=True)
    ]
    noisy = [part for part, mean in zip(where, means, strict=True) if mean is not None]
    values = [point for part in parts for point in part]
    places = [place for part in smooth for place in part]
    every = -(-len(places) // _MARKERS)
    marked = [*places[::every], places[-1]]
    # A value between two gaps has no line, only its marker.
    marked += [part[0] for part in smooth if len(part) == 1]
    spots = []
    if len(values) <= _SAYING:
        spots = [
            Spot(*place, f"{name}, step {step:,}: {number(value, is_share)}")
            for place, (step, value) in zip(places, values, strict=True)
        ]
    return Curve(
        look=look,
        letter=letter,
        name=name,
        path=" ".join(_line(thinned(part)) for part in smooth if len(part) > 1),
        pale=" ".join(_line(thinned(part)) for part in noisy),
        markers="".join(marker_path(look, *place) for place in dict.fromkeys(marked)),
        spots=tuple(spots),
        end=Spot(places[-1][0], end, letter),
        first=values[0],
        last=values[-1],
        lowest=min(values, key=lambda point: point[1]),
        highest=max(values, key=lambda point: point[1]),
        gaps=len(parts) - 1,
    )


def _line(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _tick(value: float, is_share: bool) -> str:
    if is_share:
        return f"{100 * value:.0f} %"
    # Rounding leaves of a zero tick what is none.
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
