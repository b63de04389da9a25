"""What a reader of a run's figures must know before them: warnings, what was not finished, what is not certain."""

from dataclasses import dataclass

from hpt_trl.evaluation.lines import undecided_line
from hpt_trl.reports.figures import HELD_OUT, groups_of
from hpt_trl.reports.run import Run
from hpt_trl.run_files import METRICS_FILE
from hpt_trl.settings.masking import masked_text

# A share whose 95 % interval is wider than this tells two models apart only where they are far apart.
_WIDE = 0.2


@dataclass(frozen=True)
class Notice:
    """A sentence, and what it is about in one word."""

    about: str
    text: str


def notices_of(run: Run) -> list[Notice]:
    """All that is to be said of a run, the gravest first."""
    return [*_ending(run), *_warnings(run), *_overlap(run), *_uncertain(run)]


def _ending(run: Run) -> list[Notice]:
    found = []
    if run.results is None:
        steps = "no step is logged yet" if run.steps is None else f"{run.steps:,}{_of(run)} steps are logged"
        text = f"The run has not finished: {steps}, there is no results.json."
        if run.checkpoint is not None:
            text += f" It can go on from {run.checkpoint}, by `--resume_from_checkpoint true`."
        found.append(Notice("not finished", text))
    elif run.results.get("trained") is False:
        found.append(Notice("not trained", f"Nothing was trained: {run.results['why_untrained']}."))
    return [*found, *(Notice("cut", said) for said in missing_lines(run))]


def missing_lines(run: Run) -> list[str]:
    """What shows that a run's files lack lines: half a one at their end, or an end before the run's."""
    found = [f"{name} ends in half a line, as a run that was killed leaves it; it is left out." for name in run.cut]
    done = (run.results or {}).get("steps")
    last = run.lines[-1]["step"] if run.lines else None
    if isinstance(done, int) and last is not None and last < done:
        found.append(f"{METRICS_FILE} ends at step {last:,}, and the run took {done:,}: what is drawn is a part.")
    return found


def _of(run: Run) -> str:
    most = run.settings.get("max_steps")
    return f" of {most:,}" if isinstance(most, int) and most > 0 else ""


def _warnings(run: Run) -> list[Notice]:
    return [
        Notice(
            str(warning.get("kind", "warning")).replace("_", " "),
            ("" if warning.get("step") is None else f"Step {warning['step']}: ") + masked_text(str(warning["message"])),
        )
        for warning in run.warnings
    ]


def _overlap(run: Run) -> list[Notice]:
    overlap = (run.results or {}).get("overlap")
    if not overlap or not overlap["rows"]:
        return []
    rows, total = overlap["rows"], overlap["of"]
    text = f"{rows:,} of {total:,} held-out rows ({rows / total:.1%}) were trained on as well; their figures flatter."
    return [Notice("overlap", text)]


def _uncertain(run: Run) -> list[Notice]:
    found = []
    for group, rows in groups_of([run]).items():
        for row in rows:
            figure = row.pairs[0].after
            if row.is_share and figure is not None and None not in (figure.low, figure.high):
                width = figure.high - figure.low  # type: ignore[operator]
                more = "held-out rows" if group == HELD_OUT else "rows"
                if width > _WIDE:
                    text = (
                        f"{row.key} is known to {100 * width:.0f} points only (95 % interval); more {more} narrow it."
                    )
                    found.append(Notice("wide interval", text))
    line = undecided_line(run.after or run.measures or {})
    if line is not None:
        found.append(Notice("undecided", f"{line}."))
    return found
