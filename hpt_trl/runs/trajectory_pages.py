"""The pages that show trajectories: one HTML file each that needs nothing else, and one that lists them.

Images are part of a page, crops are drawn on the page that they were cut from, beside the row's reference boxes.
jinja2 is imported on use only.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.environments.trajectories import FOLDER
from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.rewards.turn_forms import ACTIONS
from hpt_trl.runs.trajectories import Box, Picture, Trajectory, Turn, read_trajectories
from hpt_trl.templates import templates_of

INDEX_FILE = "index.html"
PAGES = "pages"

_MODES = {
    "eval_before": "evaluation before",
    "eval_after": "evaluation after",
    "train": "training",
}
_ACTION = re.compile(rf"(<(think|{'|'.join(ACTIONS)})>)(.*?)(</\2>)", re.DOTALL)
# What a browser shows in an <img>, by its first bytes.
_TYPES = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "gif": re.compile(rb"GIF8"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}

# Levels of lists and objects in each other that are written out.
_DEEPEST = 8


@dataclass(frozen=True)
class Part:
    """A stretch of an assistant's text: an action or thought with its tags, or (no `kind`) what stands between them."""

    kind: str
    text: str
    opening: str = ""
    closing: str = ""


@dataclass(frozen=True)
class Mark:
    """A rectangle on a page, in pixels of the raw page."""

    kind: str
    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Figure:
    """An image on the page.

    Attributes:
        source: Data URI; None where it cannot be shown.
        problem: Why it cannot.
        marks: What is drawn on it.
    """

    image: Picture
    title: str
    source: str | None
    problem: str
    marks: tuple[Mark, ...]


def draw_trajectories(output_dir: str | Path) -> Path | None:
    """Writes a page for each trajectory of a run, and the list of them.

    Returns:
        The list's path; None where the run left no trajectories.

    Raises:
        UserError: a line is not a trajectory, or something else lies where the pages go.
    """
    trajectories = list(read_trajectories(output_dir))
    if not trajectories:
        return None
    try:
        return _drawn(Path(output_dir), trajectories)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"{error.filename2 or error.filename} cannot be written: {error.strerror}; the pages of trajectories go "
            "there."
        ) from error


def _drawn(output_dir: Path, trajectories: list[Trajectory]) -> Path:
    folder = output_dir / FOLDER
    pages = folder / PAGES
    pages.mkdir(exist_ok=True)
    names = [_file_name(number, trajectory) for number, trajectory in enumerate(trajectories, start=1)]
    for number, trajectory in enumerate(trajectories):
        text = trajectory_page(
            trajectory,
            previous=names[number - 1] if number else None,
            following=names[number + 1] if number + 1 < len(names) else None,
            index=f"../{INDEX_FILE}",
        )
        write_atomically(pages / names[number], text)
    for stale in pages.glob("[0-9]*.html"):
        if stale.name not in names:
            stale.unlink()
    rewards = list(dict.fromkeys(name for trajectory in trajectories for name in trajectory.rewards))
    text = (
        _environment()
        .get_template("trajectories.html.jinja")
        .render(
            run=output_dir.resolve().name,
            entries=list(zip(trajectories, names, strict=True)),
            folder=PAGES,
            modes=_MODES,
            rewards=rewards,
        )
    )
    write_atomically(folder / INDEX_FILE, text)
    return folder / INDEX_FILE


def trajectory_page(
    trajectory: Trajectory, *, index: str | None = None, previous: str | None = None, following: str | None = None
) -> str:
    """Returns the page of a trajectory.

    Args:
        index, previous, following: Where the list and its neighbours lie; None for a page by itself.
    """
    return (
        _environment()
        .get_template("trajectory.html.jinja")
        .render(
            trajectory=trajectory,
            mode=mode_of(trajectory),
            turns=_turns(trajectory),
            facts=_facts(trajectory),
            previous=previous,
            following=following,
            index=index,
        )
    )


def mode_of(trajectory: Trajectory) -> str:
    """Returns when a trajectory was played, in words."""
    return _MODES.get(trajectory.mode, trajectory.mode)


def _environment() -> Any:
    environment = templates_of(Path(__file__).parent)
    environment.filters["figure"] = lambda value: "—" if value is None else f"{value:.3g}"
    environment.filters["number"] = lambda value: f"{value:.7g}"
    return environment


def _file_name(number: int, trajectory: Trajectory) -> str:
    return f"{number:04}-{re.sub(r'[^A-Za-z0-9]+', '-', trajectory.id)[:60].strip('-') or 'trajectory'}.html"


def _turns(trajectory: Trajectory) -> list[dict[str, Any]]:
    crops = {id(crop): f"crop {number}" for number, crop in enumerate(trajectory.crops, start=1)}
    return [
        {
            "role": turn.role,
            "parts": parts_of(turn),
            "figures": [
                _figure(trajectory, image, f"{crops.get(id(image), 'page')} of {image.name}", crops)
                if image.kind == "crop"
                else _figure(trajectory, image, f"{image.kind} {image.name}", crops)
                for image in turn.images
            ],
        }
        for turn in trajectory.turns
    ]


def parts_of(turn: Turn) -> list[Part]:
    """Returns a turn's text in parts; only an assistant's text holds actions."""
    parts, end = [], 0
    for found in _ACTION.finditer(turn.text) if turn.role == "assistant" else ():
        if between := turn.text[end : found.start()]:
            parts.append(Part("", between))
        parts.append(Part(found[2], found[3], found[1], found[4]))
        end = found.end()
    if rest := turn.text[end:]:
        parts.append(Part("", rest))
    return parts


def _figure(trajectory: Trajectory, image: Picture, title: str, crops: dict[int, str]) -> Figure:
    source, problem = _source(trajectory.folder, image)
    marks: list[Mark] = []
    if image.kind == "page":
        boxes = [box for page, box in trajectory.reference_boxes if page == image.name]
        marks += [_mark("reference", "reference", box) for box in boxes]
        marks += [
            _mark("crop", crops[id(crop)], crop.box)
            for crop in trajectory.crops
            if crop.name == image.name and crop.box is not None
        ]
    return Figure(image, title, source, problem, tuple(marks))


def _mark(kind: str, label: str, box: Box) -> Mark:
    x1, y1, x2, y2 = box
    return Mark(kind, label, min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))


def _source(folder: Path, image: Picture) -> tuple[str | None, str]:
    """An image as a data URI, or why there is none."""
    if image.file is None:
        return None, "the image was not kept"
    path = folder / image.file
    if not path.resolve().is_relative_to(folder.resolve()):
        return None, f"{image.file} lies outside of the folder of the trajectories"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, f"the file {image.file} is missing"
    except OSError as error:
        return None, f"the file {image.file} cannot be read: {error.strerror}"
    kind = next((kind for kind, start in _TYPES.items() if start.match(content)), None)
    if kind is None:
        return None, f"the file {image.file} is no PNG, JPEG, GIF or WebP image"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", ""


def _facts(trajectory: Trajectory) -> list[tuple[str, list[str]]]:
    """Names and lines of what the environment and the data say."""
    facts: list[tuple[str, list[str]]] = []
    for name, value in [*trajectory.facts.items(), *trajectory.columns.items()]:
        many = value if isinstance(value, list) else [value]
        lines = [_said(one) for one in many] or ["none"]
        if name == "retrieved_pages":
            lines = [f"{line} (reference)" if line in trajectory.reference_pages else line for line in lines]
        facts.append((name.replace("_", " "), lines))
    return facts


def _said(value: Any, deeper: int = _DEEPEST) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict | list) and not deeper:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(one, deeper - 1)}" for key, one in value.items())
    if isinstance(value, list):
        return f"[{', '.join(_said(one, deeper - 1) for one in value)}]"
    if isinstance(value, float):
        return f"{value:.7g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
