"""Trajectories that a run left: turns of the model and its environment, one JSON line each, read and checked.

They stand in `OUTPUT_DIR/trajectories/*.jsonl`; docs/vrag.md has the form of a line.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.data.messages import text_of
from hpt_trl.errors import UserError
from hpt_trl.files import lines_of

FOLDER = "trajectories"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image that the environment showed.

    Attributes:
        file: Relative to the trajectory's file; None where it was not kept.
        name: Of the page that it shows, or a part of.
        kind: `page` or `crop`.
        raw_size: Width and height in pixels before it was resized.
        shown_size: Width and height in pixels as the model saw it.
        box: Of a crop, in pixels of the raw page.
    """

    file: str | None
    name: str
    kind: str
    raw_size: tuple[float, float]
    shown_size: tuple[float, float]
    box: Box | None


@dataclass(frozen=True)
class Turn:
    """What the model wrote (`assistant`), or what it was shown (`environment`)."""

    role: str
    text: str
    images: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """An episode with its rewards.

    Attributes:
        place: File and line.
        folder: Where the names of its images start.
        step: Of the training; None outside of it.
        prompt: Role and text of each message.
        facts: What the environment says of it.
        columns: What the data says of its row.
    """

    place: str
    folder: Path
    id: str
    step: int | None
    mode: str
    prompt: tuple[tuple[str, str], ...]
    turns: tuple[Turn, ...]
    rewards: dict[str, float | None]
    facts: dict[str, Any]
    columns: dict[str, Any]

    @property
    def reference_boxes(self) -> list[tuple[str, Box]]:
        """The page and the box of each, in pixels of the raw page."""
        return [(str(entry["page"]), _box(entry["box"])) for entry in self.columns.get("reference_boxes") or []]

    @property
    def crops(self) -> list[Picture]:
        """The crops in the order in which they were made."""
        return [image for turn in self.turns for image in turn.images if image.kind == "crop"]


def read_trajectories(output_dir: str | Path) -> Iterator[Trajectory]:
    """Yields the trajectories of a run, file by file in the order of their names.

    Raises:
        UserError: a line is not a trajectory.
    """
    for path in sorted((Path(output_dir) / FOLDER).glob("*.jsonl")):
        for number, text in enumerate(lines_of(path, errors="replace"), start=1):
            place = f"{path}, line {number}"
            try:
                yield _trajectory(json.loads(text), path.parent, place)
            # What is missing, of another kind or of another length.
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{place}: not a trajectory ({problem}); remove the line to see the rest.") from None


def _trajectory(line: Any, folder: Path, place: str) -> Trajectory:
    trajectory = Trajectory(
        place=place,
        folder=folder,
        id=str(line["id"]),
        step=None if line["step"] is None else int(line["step"]),
        mode=str(line["mode"]),
        prompt=tuple((str(message["role"]), text_of([message])) for message in line["prompt"]),
        turns=tuple(_turn(turn) for turn in line["turns"]),
        rewards={str(name): None if value is None else float(value) for name, value in line["rewards"].items()},
        facts=dict(line["facts"]),
        columns=dict(line["columns"]),
    )
    trajectory.reference_boxes  # noqa: B018
    return trajectory


def _turn(turn: dict[str, Any]) -> Turn:
    if turn["role"] not in ("assistant", "environment"):
        raise ValueError(f"a turn of `{turn['role']}`; allowed: assistant, environment")
    return Turn(turn["role"], str(turn["text"]), tuple(_picture(image) for image in turn.get("images", ())))


def _picture(image: dict[str, Any]) -> Picture:
    if image["kind"] not in ("page", "crop"):
        raise ValueError(f"an image of the kind `{image['kind']}`; allowed: page, crop")
    return Picture(
        file=None if image["file"] is None else str(image["file"]),
        name=str(image["name"]),
        kind=image["kind"],
        raw_size=_size(image["raw_size"]),
        shown_size=_size(image["shown_size"]),
        box=None if image["box"] is None else _box(image["box"]),
    )


def _size(size: Any) -> tuple[float, float]:
    width, height = (float(side) for side in size)
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{size} is no size in pixels")
    return width, height


def _box(box: Any) -> Box:
    x1, y1, x2, y2 = (float(side) for side in box)
    if not all(math.isfinite(side) for side in (x1, y1, x2, y2)):
        raise ValueError(f"{box} is no box in pixels")
    return x1, y1, x2, y2
