"""How exactly a measure is known: Wilson's interval of a share, and the errors of changes."""

import math
from collections.abc import Sequence
from statistics import fmean, pvariance
from typing import Any

# Two-sided, 95 % of a normal distribution.
Z = 1.959964


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` independent trials (Wilson 1927; Brown, Cai, DasGupta 2001).

    Returns:
        The lower and the upper bound, both from 0 to 1.
    """
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def clustered(shares: Sequence[float], size: int) -> tuple[float, float]:
    """Wilson's interval of the mean of `shares`, each found by `size` trials that have a cause in common.

    Completions of one prompt succeed and fail together: their number counts as that of independent trials which would
    vary as much as the mean of the prompts' shares does (Kish's effective sample size).
    """
    share, count = fmean(shares), len(shares)
    if size == 1:
        return wilson(share, count)
    varies, alone = pvariance(shares) / count, share * (1 - share)
    # All at 0 or at 1: nothing tells the trials of one prompt apart.
    effective = count if alone == 0 else count * size if varies == 0 else min(count * size, alone / varies)
    return wilson(share, effective)


def change_error(before: dict[str, Any], after: dict[str, Any], measure: str) -> float | None:
    """Standard error of a measure's change between the two evaluations of results.json; None where it is not known.

    Of held-out measures it is that of the rows' own changes where both evaluations saw the same rows in one attempt.
    The shares of solved completions are taken as independent; their errors are those of Wilson's intervals, so that a
    share of 0 or 1 has one as well.
    """
    if measure.startswith("held_out."):
        name = measure.removeprefix("held_out.")
        if (paired := after.get("held_out_change_error", {}).get(name)) is not None:
            return paired
        return _together(before.get("held_out_error", {}).get(name), after.get("held_out_error", {}).get(name))
    if measure == "accuracy":
        return _together(*(_share_error(side) for side in (before, after)))
    return _together(before.get(f"{measure}_error"), after.get(f"{measure}_error"))


def _share_error(evaluation: dict[str, Any]) -> float:
    count = evaluation["samples"] * evaluation["num_generations"]
    low, high = evaluation.get("accuracy_interval") or wilson(evaluation["accuracy"], count)
    return (high - low) / (2 * Z)


def _together(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.hypot(one, other)
