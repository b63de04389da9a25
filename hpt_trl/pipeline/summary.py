"""What a pipeline leaves for reading: one table, one picture, and the measures in pipeline.json.

All of it is made from the files of the stages, so that `hpt-trl report` shows the same as the end of the run, also of
a pipeline that was stopped half-way.
"""

import math
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.pictures import STYLE, new_figure, write_picture
from hpt_trl.pipeline.record import Record, read_record
from hpt_trl.reading import duration, read_metrics, read_results
from hpt_trl.runs.curves import Points, logged_series
from hpt_trl.runs.measures import telling_measures, values_of
from hpt_trl.terminal import Column, flow
from hpt_trl.terminal import table as laid_out

PICTURE_FILE = "pipeline.png"

# Measures that mean the same in every stage and may stand side by side; each stage's loss is one of its own.
_SHARED = ("reward", "accuracy")

_BEFORE, _AFTER, _LINE = "#b8b8b8", "#2166ac", "#2166ac"
_COLUMNS = (
    Column("STAGE", whole=True),
    Column("KIND", below=True),
    Column("FROM", below=True),
    Column("STEPS", right=True),
    Column("TIME", whole=True),
    Column("MEASURE"),
    Column("BEFORE", right=True),
    Column("AFTER", right=True),
    Column("VERDICT"),
)


def report(folder: str | Path) -> None:
    """Redraws the picture and prints the table: `hpt-trl report OUTPUT_DIR` of a pipeline.

    Raises:
        UserError: the record or a stage's files are broken.
    """
    record = read_record(Path(folder))
    draw(record)
    print(table(record))


def measures(record: Record) -> dict[str, dict[str, Any]]:
    """Stage -> measure -> before, after and whether it got better, beyond its error; of the stages that finished."""
    return {name: _measures(record, name) for name in record.order if _finished(record, name)}


def closing_line(record: Record, name: str) -> str:
    """What is said when a stage has ended: its time and its first measure."""
    known = record.stages[name]
    said = f"{name}: finished in {duration(known.seconds)}"
    for measure, values in list(_measures(record, name).items())[:1]:
        judged = f" ({values['verdict']})" if values["verdict"] else ""
        before = "" if values["before"] is None else f"{_number(values['before'])} -> "
        said += f"; {measure} {before}{_number(values['after'])}{judged}"
    return said


def table(record: Record) -> str:
    """All stages: what they are, where they come from, how long they took, and what they are better at."""
    rows: list[tuple[str, ...]] = []
    notes = []
    for name in record.order:
        known = record.stages.get(name)
        if known is None:
            rows.append((name, "", "", "", "", "not run yet", "", "", ""))
            continue
        first: tuple[str, ...] = (name, known.stage, ", ".join(known.uses) or "-")
        if not _finished(record, name):
            rows.append((*first, "", duration(known.seconds), "not finished", "", "", ""))
            continue
        first = (*first, str((read_results(record.folder / name) or {}).get("steps", "-")), duration(known.seconds))
        found = _measures(record, name)
        if known.measure is not None and known.measure not in found:
            had = ", ".join(_values_of(record, name)) or "none"
            notes.append(f"`{name}` has no measure `{known.measure}` before and after; it has: {had}.")
        lines = [
            (measure, _number(values["before"]), _number(values["after"]), values["verdict"])
            for measure, values in found.items()
        ] or [("-", "", "", "")]
        rows += [(*(first if number == 0 else ("",) * len(first)), *line) for number, line in enumerate(lines)]
    picture = record.folder / PICTURE_FILE
    said = [*notes, *([f"Picture: {picture}"] if picture.exists() else [])]
    return "\n".join([laid_out(_COLUMNS, rows), *([flow(said)] if said else [])])


def draw(record: Record) -> Path | None:
    """Writes pipeline.png: the main curve of every stage and, side by side, a measure that several share.

    Returns:
        The picture's path, None where no stage has logged anything.
    """
    from matplotlib import rc_context
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curves = {name: curve for name in record.order if (curve := _main_curve(record, name)) is not None}
    if not curves:
        return None
    shared, bars = _shared(record)
    count = len(curves) + bool(bars)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure, axes = new_figure(rows, columns, (4.0 * columns, 2.7 * rows + 0.4), layout=layout)
        for axis, (name, (metric, points)) in zip(axes.flat, curves.items(), strict=False):
            kind = record.stages[name].stage
            _draw_curve(axis, name if name == kind else f"{name} ({kind})", metric, points)
        if bars:
            _draw_bars(axes.flat[len(curves)], shared, bars)
        for axis in axes.flat[count:]:
            axis.set_visible(False)
        figure.suptitle(record.pipeline, fontsize=12.5, x=0.015, ha="left")
        path = record.folder / PICTURE_FILE
        write_picture(figure, path)
    return path


def _finished(record: Record, name: str) -> bool:
    known = record.stages.get(name)
    return known is not None and known.finished and read_results(record.folder / name) is not None


def _values_of(record: Record, name: str) -> dict[str, tuple[float, float]]:
    return values_of(read_results(record.folder / name) or {})


def _measures(record: Record, name: str) -> dict[str, dict[str, Any]]:
    """The measures that the table shows of a stage, the most telling first."""
    known, results = record.stages[name], read_results(record.folder / name) or {}
    return telling_measures(results, known.stage, [known.measure] if known.measure else [])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _main_curve(record: Record, name: str) -> tuple[str, Points] | None:
    """Name and points of the metric that a stage's own picture shows first."""
    if name not in record.stages:
        return None
    try:
        lines = read_metrics(record.folder / name, tolerant=True)
    except UserError:
        # A stage that has not logged yet has no curve; the table says that it is not finished.
        return None
    return next(iter(logged_series(lines).items()), None)


def _shared(record: Record) -> tuple[str, dict[str, tuple[float, float]]]:
    """A measure that several stages have, and of each of these its values before and after; nothing without one."""
    values = {
        name: _values_of(record, name)
        for name in record.order
        if _finished(record, name) and record.stages[name].stage not in ("evaluate", "index")
    }
    for measure in _SHARED:
        bars = {name: found[measure] for name, found in values.items() if measure in found}
        if len(bars) > 1:
            return measure, bars
    return "", {}


def _draw_curve(axis: Any, title: str, metric: str, points: Points) -> None:
    from matplotlib.ticker import MaxNLocator

    from hpt_trl.runs.curves import Series, draw_series

    steps, values = zip(*points, strict=True)
    draw_series(axis, Series(metric, metric, _LINE), steps, values)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.set_ylabel(metric)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _draw_bars(axis: Any, measure: str, bars: dict[str, tuple[float, float]]) -> None:
    width = 0.38
    for offset, side, color, label in ((-width / 2, 0, _BEFORE, "before"), (width / 2, 1, _AFTER, "after")):
        drawn = axis.bar(
            [place + offset for place in range(len(bars))], [pair[side] for pair in bars.values()], width, color=color
        )
        drawn.set_label(label)
        axis.bar_label(drawn, fmt=_number, fontsize=7.5)
    axis.set_xticks(range(len(bars)), list(bars), rotation=20 if len(bars) > 3 else 0)
    axis.set_title("Before and after each stage")
    axis.set_ylabel(measure)
    axis.margins(y=0.2)
    axis.legend()
