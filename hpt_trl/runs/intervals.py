"""How exactly a measure is known: intervals of shares, and errors of changes."""

import math
from typing import Any

# Standard errors on either side of 95 % of a normal distribution.
Z = 1.96


def wilson(successes: float, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share (1927): it has a width at 0 and at 1 too, where sqrt(p (1 - p) / n) has none.

    Args:
        successes: of the trials; a half where one counts half.
        z: standard errors on either side, 1.96 for 95 %.

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError(f"{trials} trials; a share needs one")
    share, room = successes / trials, z**2 / trials
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / trials + room / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def change_error(before: dict[str, Any], after: dict[str, Any], measure: str) -> float | None:
    """Standard error of a measure's change between the two evaluations of results.json; None where it is not known.

    Of held-out measures it is that of the rows' own changes where both evaluations saw the same rows in one attempt.
    Shares of solved completions are taken as independent, with a success and a failure added to each (Agresti
    and Caffo, 2000): a share of 0 or 1 has an error as well.
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
    share = (evaluation["accuracy"] * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / (count + 2))


def _together(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.hypot(one, other)
