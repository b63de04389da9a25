"""Trajectories that a run left: turns of the model and its environment, one JSON line each, read and checked.

They stand in `OUTPUT_DIR/trajectories/*.jsonl`; docs/vrag.md has the form of a line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.data.messages import text_of
from hpt_trl.environments.trajectories import FOLDER
from hpt_trl.errors import UserError
from hpt_trl.files import lines_of, parsed_json
from hpt_trl.rewards.boxes import Box, boxes_of

# Of an image, in pixels: no number that a page could not write.
_LONGEST_SIDE = 1e9


@dataclass(frozen=True)
class _Kind:
    """What a value may be, and how that is said."""

    types: tuple[type, ...]
    said: str


_TEXT = _Kind((str,), "a text")
_TEXT_OR_NONE = _Kind((str, type(None)), "a text, or null")
_LIST = _Kind((list,), "a list")
_LIST_OR_NONE = _Kind((list, type(None)), "a list, or null")
_OBJECT = _Kind((dict,), "an object")
_WHOLE = _Kind((int, type(None)), "a whole number, or null")
_NUMBER = _Kind((int, float, type(None)), "a number, or null")


@dataclass(frozen=True)
class Picture:
    """An image that the environment showed.

    Attributes:
        file: Relative to the trajectory's file; None where it was not kept.
        name: Of the page that it shows, or a part of.
        kind: `page`, `crop`, or another word of the environment's.
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
        reference_pages: Those of `columns`.
        reference_boxes: The page and the box of each, in pixels of the raw page.
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
    reference_pages: tuple[str, ...]
    reference_boxes: tuple[tuple[str, Box], ...]

    @property
    def crops(self) -> list[Picture]:
        """The crops in the order in which they were made."""
        return [image for turn in self.turns for image in turn.images if image.kind == "crop"]


def read_trajectories(output_dir: str | Path) -> Iterator[Trajectory]:
    """Yields the trajectories of a run, file by file in the order of their names.

    Raises:
        UserError: a line is not a trajectory, or a file cannot be read.
    """
    for path in sorted((Path(output_dir) / FOLDER).glob("*.jsonl")):
        try:
            lines = lines_of(path, errors="replace")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; move it to see the other trajectories."
            ) from error
        for number, text in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            try:
                yield _trajectory(_parsed(text), path.parent, place)
            except (UserError, ValueError) as error:
                said = str(error).removesuffix(".")
                raise UserError(f"{place}: not a trajectory ({said}); remove the line to see the rest.") from None


def _parsed(text: str) -> Any:
    try:
        return parsed_json(text)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None


def _trajectory(line: Any, folder: Path, place: str) -> Trajectory:
    if not isinstance(line, dict):
        raise ValueError(f"it is {_short(line)}; write an object")
    columns = _field(line, "columns", _OBJECT)
    boxes = boxes_of(columns.get("reference_boxes"))
    pages = columns.get("reference_pages")
    if pages is not None:
        pages = [_item(page, "reference_pages", _TEXT) for page in _field(columns, "reference_pages", _LIST)]
    rewards = _field(line, "rewards", _OBJECT)
    return Trajectory(
        place=place,
        folder=folder,
        id=_field(line, "id", _TEXT),
        step=_field(line, "step", _WHOLE),
        mode=_field(line, "mode", _TEXT),
        prompt=tuple(_message(_item(message, "prompt", _OBJECT)) for message in _field(line, "prompt", _LIST)),
        turns=tuple(_turn(_item(turn, "turns", _OBJECT)) for turn in _field(line, "turns", _LIST)),
        rewards={name: _field(rewards, name, _NUMBER) for name in rewards},
        facts=_field(line, "facts", _OBJECT),
        columns=columns,
        reference_pages=tuple(pages or ()),
        reference_boxes=tuple(boxes),
    )


def _message(message: dict[str, Any]) -> tuple[str, str]:
    return _field(message, "role", _TEXT), text_of([message])


def _turn(turn: dict[str, Any]) -> Turn:
    role = _field(turn, "role", _TEXT)
    if role not in ("assistant", "environment"):
        raise ValueError(f"a turn of `{role}`; allowed: assistant, environment")
    images = _field(turn, "images", _LIST) if "images" in turn else []
    return Turn(role, _field(turn, "text", _TEXT), tuple(_picture(_item(image, "images", _OBJECT)) for image in images))


def _picture(image: dict[str, Any]) -> Picture:
    return Picture(
        file=_field(image, "file", _TEXT_OR_NONE),
        name=_field(image, "name", _TEXT),
        kind=_field(image, "kind", _TEXT),
        raw_size=_size(image, "raw_size"),
        shown_size=_size(image, "shown_size"),
        box=_box(image),
    )


def _box(image: dict[str, Any]) -> Box | None:
    if _field(image, "box", _LIST_OR_NONE) is None:
        return None
    x1, y1, x2, y2 = _sides(image, "box", 4, "a box in pixels")
    return x1, y1, x2, y2


def _size(image: dict[str, Any], name: str) -> tuple[float, float]:
    width, height = _sides(image, name, 2, "a size in pixels")
    if width <= 0 or height <= 0:
        raise ValueError(f"`{name}` is {_short(image[name])}; write a size in pixels")
    return width, height


def _sides(image: dict[str, Any], name: str, count: int, what: str) -> tuple[float, ...]:
    sides = _field(image, name, _LIST)
    if len(sides) != count or not all(type(side) in (int, float) and abs(side) < _LONGEST_SIDE for side in sides):
        raise ValueError(f"`{name}` is {_short(sides)}; write {what}, {count} numbers")
    return tuple(float(side) for side in sides)


def _field(holder: dict[str, Any], name: str, kind: _Kind) -> Any:
    if name not in holder:
        raise ValueError(f"no `{name}`")
    if type(holder[name]) not in kind.types:
        raise ValueError(f"`{name}` is {_short(holder[name])}; write {kind.said}")
    return holder[name]


def _item(value: Any, name: str, kind: _Kind) -> Any:
    if type(value) not in kind.types:
        raise ValueError(f"`{name}` holds {_short(value)}; write {kind.said}")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text[:60] + "…" * (len(text) > 60)
