"""The page itself: what is shown of each run, rendered by the templates beside this module and written in one go.

jinja2 is imported on use only.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpt_trl.environments.trajectories import FOLDER as TRAJECTORIES
from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.methods.critic.results import PICTURE_FILE as PICTURE_OF_VALUES
from hpt_trl.methods.reward.shift import PICTURE_FILE as PICTURE_OF_SHIFT
from hpt_trl.methods.rho1.page import PAGE_FILE as SELECTIONS
from hpt_trl.pipeline.record import Record
from hpt_trl.pipeline.summary import measures
from hpt_trl.reading import duration
from hpt_trl.reports.chain import chain_of, inputs_of
from hpt_trl.reports.charts import WIDTH, charts_of, number
from hpt_trl.reports.figures import groups_of
from hpt_trl.reports.markers import marker_path
from hpt_trl.reports.notices import notices_of
from hpt_trl.reports.run import Run
from hpt_trl.reports.samples import samples_of
from hpt_trl.reports.settings import differences, recipe_text
from hpt_trl.run_files import CURVES_FILE
from hpt_trl.runs.trajectory_pages import INDEX_FILE
from hpt_trl.settings.masking import masked_command, masked_text
from hpt_trl.templates import templates_of
from hpt_trl.token_scores.weights_page import PAGE_FILE as WEIGHTS
from hpt_trl.version import __version__

# In the head of every page; by it a page is known that may be written over.
MARK = '<meta name="generator" content="hpt-trl report'

# File in an output folder -> what it shows.
_ELSEWHERE = {
    SELECTIONS: "Selected tokens",
    WEIGHTS: "Weights of tokens",
    f"{TRAJECTORIES}/{INDEX_FILE}": "Trajectories",
    CURVES_FILE: "Curves as a picture",
    PICTURE_OF_SHIFT: "Reward shift as a picture",
    PICTURE_OF_VALUES: "Value curves as a picture",
    # As in `hpt_trl.evaluation.samples`, which imports torch.
    "scored.jsonl": "All completions with their scores",
}


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """Writes the page of one run, or of several side by side."""
    letters = [chr(ord("A") + place) for place in range(len(runs))] if len(runs) > 1 else [""]
    shown = [_shown(run, path.parent, letter) for run, letter in zip(runs, letters, strict=True)]
    _write(
        path,
        "runs.html.jinja",
        title=shown[0]["title"] if len(runs) == 1 else ", ".join(one["name"] for one in shown),
        runs=shown,
        differences=differences(runs) if len(runs) > 1 else {},
        content=_content(runs, letters),
    )


def write_pipeline(record: Record, runs: Mapping[str, Run], path: Path) -> None:
    """Writes the page of a pipeline: the chain, and each stage that has begun.

    Args:
        runs: Those stages, by name.
    """
    found = measures(record)
    stages = []
    for name in record.order:
        known, run = record.stages.get(name), runs.get(name)
        stages.append(
            {
                "name": name,
                "kind": known.stage if known is not None else "",
                "inputs": inputs_of(record, name),
                "state": "not run yet" if known is None else "finished" if known.finished else "not finished",
                "time": duration(known.seconds) if known is not None and known.seconds else "",
                "measures": list(found.get(name, {}).items())[:1],
                "run": None if run is None else _shown(run, path.parent, ""),
                "content": None if run is None else _content([run], [""]),
            }
        )
    _write(
        path,
        "pipeline.html.jinja",
        title=Path(record.pipeline).stem or record.folder.resolve().name,
        folder=str(record.folder),
        stages=stages,
        chain=chain_of(record),
        total=duration(sum(stage.seconds for name, stage in record.stages.items() if name in record.order)),
    )


def _content(runs: Sequence[Run], letters: Sequence[str]) -> dict[str, Any]:
    return {"groups": groups_of(runs), "charts": charts_of(runs, letters), "samples": samples_of(runs)}


def _shown(run: Run, page_folder: Path, letter: str) -> dict[str, Any]:
    results = run.results or {}
    on = f" on {masked_text(results['model'])}" if results.get("model") else ""
    recipe = results.get("recipe") or run.name
    return {
        "letter": letter,
        "name": masked_text(run.name),
        "folder": masked_text(str(run.folder)),
        "title": masked_text(recipe),
        "subtitle": f"{run.stage}{on}",
        "state": _state(run),
        "notices": notices_of(run),
        "facts": list(_facts(run)),
        "recipe": recipe_text(run),
        "own": list(_own(results.get(run.stage), "")),
        "links": _links(run, page_folder),
    }


def _state(run: Run) -> str:
    if run.results is None:
        return "not finished"
    return "finished" if run.results.get("trained", True) else "not trained"


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    results = run.results or {}
    if run.steps is not None:
        yield "steps", f"{run.steps:,}"
    wall = results.get("wall_time_s", {})
    if "total" in wall:
        parts = [f"{name} {duration(wall[key])}" for key, name in _PARTS.items() if wall.get(key)]
        yield "wall time", duration(wall["total"]) + (f" ({', '.join(parts)})" if parts else "")
    tokens = results.get("tokens", {})
    if tokens:
        yield "tokens", ", ".join(f"{count:,} in {name}" for name, count in tokens.items())
    if results.get("train_loss") is not None:
        yield "mean training loss", number(results["train_loss"])
    if results.get("data"):
        yield "data", masked_text(str(results["data"]))
    hardware = results.get("hardware")
    if isinstance(hardware, dict):
        yield "hardware", ", ".join(_hardware(hardware))
    versions = results.get("versions")
    if isinstance(versions, dict):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if results.get("command"):
        yield "command", masked_command(str(results["command"]))


_PARTS = {"train": "training", "evaluation": "evaluation"}


def _hardware(hardware: dict[str, Any]) -> Iterable[str]:
    for name, value in hardware.items():
        if name == "device":
            yield str(value)
        elif name == "peak_memory_gib":
            yield f"at most {value:g} GiB of memory"
        else:
            yield f"{name.replace('_', ' ')}: {value}"


def _own(value: Any, name: str) -> Iterable[tuple[str, str]]:
    """What a stage itself has found, a line for each value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _own(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(_said(inner) for inner in value)
    elif value is not None:
        yield name, _said(value)


def _said(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if is_number else masked_text(str(value))


def _links(run: Run, page_folder: Path) -> list[tuple[str, str]]:
    """(address beside the page, what is there) of what else lies in the folder for reading."""
    found = [(run.folder / name, said) for name, said in _ELSEWHERE.items()]
    for page in sorted(run.folder.glob("evaluations/*/*/scored.jsonl")):
        found.append((page, f"Completions of {page.parent.parent.name}, {page.parent.name}"))
    start = page_folder.resolve()
    return [
        (quote(Path(os.path.relpath(file.resolve(), start)).as_posix()), said) for file, said in found if file.is_file()
    ]


def _breakable(text: str) -> Any:
    """A long name that may go on in the next line behind each of its parts."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_./:,])(?=[^\s_./:,])", r"\1<wbr>", str(escape(text))))


def _write(path: Path, template: str, **values: Any) -> None:
    environment = templates_of(Path(__file__).parent)
    environment.filters |= {"number": number, "breakable": _breakable}
    environment.globals |= {"marker": marker_path, "width": WIDTH}
    text = environment.get_template(template).render(mark=MARK, version=__version__, **values)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Name another file with `--output`.") from None
