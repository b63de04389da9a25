"""A pipeline as a chain: its stages one below the other, with an arrow from each to those that take what it left."""

from dataclasses import dataclass
from typing import Any

from hpt_trl.pipeline.record import Record
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.pipeline_keys import ALIASES

# Heights of a stage's row, distance of two lanes and the radius of a corner, in the picture's units.
ROW, LANE, CORNER = 108, 18, 9
_NODE = 8

_SHORT = {long: short.replace("_", " ") for short, long in ALIASES.items()}


@dataclass(frozen=True)
class Arrow:
    """From a stage to one that takes what it left.

    Attributes:
        look: Number of its dashes: that of its lane, 0 of one that goes to the next stage.
        path: Its line, without the head.
        head: Outline of its head.
    """

    look: int
    path: str
    head: str


@dataclass(frozen=True)
class Chain:
    """The picture beside the list of stages.

    Attributes:
        width, height: In its own units.
        nodes: Where each stage's dot lies, (x, y).
        words: What the picture shows, for those who do not see it.
    """

    width: int
    height: int
    nodes: tuple[tuple[float, float], ...]
    arrows: tuple[Arrow, ...]
    words: str


def chain_of(record: Record) -> Chain:
    """Lays out a pipeline's stages and the arrows between them."""
    places = {name: place for place, name in enumerate(record.order)}
    targets = {name: [places[other] for other in record.order if name in _uses(record, other)] for name in record.order}
    far = {name: [place for place in found if place > places[name] + 1] for name, found in targets.items()}
    lanes = _lanes({places[name]: max(found) for name, found in far.items() if found})
    x = float(LANE * (max(lanes.values(), default=-1) + 1) + 14)
    nodes = tuple((x, (place + 0.5) * ROW) for place in range(len(record.order)))
    arrows = []
    for name, found in targets.items():
        start = places[name]
        arrows += [_down(x, start)] if start + 1 in found else []
        arrows += [_around(x, start, place, lanes[start]) for place in far[name]]
    said = [f"{name} goes on from {' and '.join(used)}" for name in record.order if (used := _uses(record, name))]
    return Chain(
        width=round(x + 14),
        height=ROW * len(record.order),
        nodes=nodes,
        arrows=tuple(arrows),
        words="; ".join(said) or "No stage takes what another left",
    )


def inputs_of(record: Record, name: str) -> str:
    """What a stage takes from others, for reading: `model from sft, reward model from reward`."""
    known = record.stages.get(name)
    if known is None:
        return ""
    said = []
    for key, value in known.contents.items():
        used = references_of(value)
        if used:
            key = key.strip("`")
            said.append(f"{_SHORT.get(key, key.replace('_', ' '))} from {', '.join(used)}")
    return ", ".join(said)


def _uses(record: Record, name: str) -> list[str]:
    known: Any = record.stages.get(name)
    return [] if known is None else [used for used in known.uses if used in record.order]


def _lanes(spans: dict[int, int]) -> dict[int, int]:
    """Start -> lane, so that no two arrows lie on each other; the shortest beside the stages."""
    taken: list[list[tuple[int, int]]] = []
    lanes = {}
    for start, end in sorted(spans.items(), key=lambda span: (span[1] - span[0], span[0])):
        lane = next(
            (
                place
                for place, others in enumerate(taken)
                if all(end < other_start or other_end < start for other_start, other_end in others)
            ),
            len(taken),
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, end))
        lanes[start] = lane
    return lanes


def _down(x: float, start: int) -> Arrow:
    top, bottom = (start + 0.5) * ROW + _NODE, (start + 1.5) * ROW - _NODE
    return Arrow(0, f"M{x:g},{top:g}V{bottom - 6:g}", f"M{x:g},{bottom:g}l-4.5,-8h9z")


def _around(x: float, start: int, end: int, lane: int) -> Arrow:
    top, bottom, side = (start + 0.5) * ROW, (end + 0.5) * ROW, x - LANE * (lane + 1)
    # A little off the middle, where another arrow may come in.
    path = (
        f"M{x - _NODE:g},{top:g}H{side + CORNER:g}Q{side:g},{top:g} {side:g},{top + CORNER:g}"
        f"V{bottom - CORNER:g}Q{side:g},{bottom:g} {side + CORNER:g},{bottom:g}H{x - _NODE - 6:g}"
    )
    return Arrow(lane + 1, path, f"M{x - _NODE:g},{bottom:g}l-8,-4.5v9z")
