"""The command `hpt-trl report`: its words, what it refuses before anything is read or drawn, and what it prints."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.help_text import HelpText, path_word
from hpt_trl.reports.notices import missing_lines
from hpt_trl.run_files import PIPELINE_FILE, REPORT_FILE
from hpt_trl.terminal import flow

_EXAMPLES = """\
examples:
  hpt-trl report outputs/quickstart
  hpt-trl report outputs/short outputs/longer --output compared.html
  hpt-trl report outputs/quickstart --json"""


def add_commands(commands: Any) -> None:
    """Adds it to the parser's commands."""
    report = commands.add_parser(
        "report",
        help="summarise runs: text, curves, and a page to read in a browser",
        description="Print the summary of a finished or running run, or of a pipeline, redraw its picture, and write a "
        "page for the browser that needs nothing else. Of several runs one page sets them side by side.",
        epilog=_EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    report.add_argument(
        "folders", type=path_word, metavar="OUTPUT_DIR", nargs="+", help="output folder of a run or pipeline"
    )
    report.add_argument(
        "--json", action="store_true", help="print results and metrics as JSON (of several runs a list), draw nothing"
    )
    report.add_argument(
        "--output",
        type=path_word,
        metavar="FILE",
        help=f"the page (OUTPUT_DIR/{REPORT_FILE}; of several runs ./{REPORT_FILE})",
    )


def report(options: argparse.Namespace) -> None:
    """Writes the page of runs or of a pipeline, and prints their summaries.

    Raises:
        UserError: a folder holds no run, or one whose files are broken; the page cannot be written where it is to.
    """
    from hpt_trl.pipeline.record import read_record

    folders = [Path(name) for name in options.folders]
    _check_folders(folders)
    usual = folders[0] / REPORT_FILE if len(folders) == 1 else Path(REPORT_FILE)
    page = Path(options.output) if options.output else usual
    _check_page(page)
    pipelines = [folder for folder in folders if (folder / PIPELINE_FILE).exists()]
    if pipelines and len(folders) > 1:
        raise UserError(
            f"{pipelines[0]} is a pipeline, which has a page of its own. To set its stages beside other runs name "
            f"their folders, e.g. {_stage_of(pipelines[0])}."
        )
    for folder in folders:
        _check_writable(folder)
    if pipelines:
        _pipeline(read_record(folders[0]), page)
    else:
        _runs(folders, page)
    print(flow([f"Report: {page}"]))


def _pipeline(record: Any, page: Path) -> None:
    from hpt_trl.pipeline import summary
    from hpt_trl.reports.page import write_pipeline
    from hpt_trl.reports.run import is_run, read_run

    folders = {name: record.folder / name for name in record.order}
    runs = {name: read_run(folder) for name, folder in folders.items() if is_run(folder)}
    summary.report(record.folder)
    write_pipeline(record, runs, page)


def _runs(folders: Sequence[Path], page: Path) -> None:
    from hpt_trl.reports.page import write_runs
    from hpt_trl.reports.run import is_run, read_run

    for folder in folders:
        if not is_run(folder):
            raise UserError(_no_run(folder))
    # All of it is read before the libraries that draw are imported, which takes seconds.
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.results is None and not run.lines:
            raise UserError(f"{run.folder}: the run has not logged a step yet; there is nothing to report.")
    from hpt_trl.runs import reporting

    for run in runs:
        reporting.report(run.folder)
        for said in missing_lines(run):
            print(f"{run.folder}: {said}")
    # Behind the summaries, which draw the pages that it refers to.
    write_runs(runs, page)


def _check_folders(folders: Sequence[Path]) -> None:
    from hpt_trl.reports.markers import LOOKS

    seen: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder} does not exist; name the output folder of a run or pipeline.")
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; name the output folder of a run or pipeline.")
        if folder.resolve() in seen:
            raise UserError(f"{folder} is named twice (as {seen[folder.resolve()]}); name each folder once.")
        seen[folder.resolve()] = folder
    if len(folders) > LOOKS:
        raise UserError(f"{len(folders)} folders are named; a page sets at most {LOOKS} runs side by side.")


def _check_page(page: Path) -> None:
    """Refuses to write over anything but a page of this command."""
    from hpt_trl.reports.page import MARK

    if page.is_dir():
        raise UserError(f"--output: {page} is a folder; name a file, e.g. {page / REPORT_FILE}.")
    if not page.parent.is_dir():
        raise UserError(f"--output: there is no folder {page.parent}; make it, or name another file.")
    if page.exists():
        with page.open("rb") as file:
            if MARK.encode() not in file.read(2000):
                raise UserError(
                    f"{page} is no page of `hpt-trl report`, and is left; name another file with `--output`."
                )
    if not os.access(page.parent, os.W_OK):
        raise UserError(f"{page.parent} cannot be written to; name a file elsewhere with `--output`.")


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} cannot be written to, where the curves are redrawn; copy it to a folder of your own."
        )


def _no_run(folder: Path) -> str:
    from hpt_trl.reports.run import is_run

    inside = [
        one for one in sorted(folder.iterdir()) if one.is_dir() and (is_run(one) or (one / PIPELINE_FILE).exists())
    ]
    hint = (
        f"It holds {', '.join(map(str, inside[:4]))}{' …' if len(inside) > 4 else ''}; name these"
        if inside
        else "Name the folder that a recipe has as `output_dir`"
    )
    return f"{folder} holds no run of hpt-trl (no recipe.yaml, metrics.jsonl or results.json). {hint}."


def _stage_of(pipeline: Path) -> Path:
    from hpt_trl.reports.run import is_run

    return next((one for one in sorted(pipeline.iterdir()) if is_run(one)), pipeline / "sft")
