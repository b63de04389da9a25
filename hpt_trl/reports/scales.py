"""From numbers to places in a picture: round ticks, gaps, and no more points than can be seen."""

import math
from collections.abc import Sequence
from typing import Any

# Runs of points without a gap between them: (step, value).
Segments = list[list[tuple[int, float]]]


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from about `low` to about `high`, the outer ones at or beyond them.

    Args:
        most: About how many.
        whole: Whole numbers alone.
    """
    spread = high - low
    if spread <= 0:
        return [low]
    rough = spread / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def segments(lines: Sequence[dict[str, Any]], key: str) -> Segments:
    """A metric's points, apart where a line has it without a number, as of a loss that was not finite."""
    found: Segments = [[]]
    for line in lines:
        value = line.get(key, ...)
        if isinstance(value, int | float):
            found[-1].append((line["step"], value))
        elif value is None and found[-1]:
            found.append([])
    return [points for points in found if points]


def thinned(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """The points, of many neighbours the lowest and the highest, so that no peak is lost.

    Args:
        most: About how many are left at most.
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        ends = {bucket.index(point) for point in (min(bucket, key=_height), max(bucket, key=_height))}
        kept += [bucket[place] for place in sorted(ends)]
    return kept


def spread_apart(heights: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """The heights, moved apart so that labels beside them do not lie on each other.

    Args:
        least: Distance of two labels.
        low, high: Where they may lie.
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed = list(heights)
    for above, place in zip([None, *order], order, strict=False):
        least_height = low if above is None else placed[above] + least
        placed[place] = max(placed[place], least_height)
    for below, place in zip([None, *reversed(order)], reversed(order), strict=False):
        most_height = high if below is None else placed[below] - least
        placed[place] = min(placed[place], most_height)
    return placed


def _height(point: tuple[float, float]) -> float:
    return point[1]
