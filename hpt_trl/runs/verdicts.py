"""Whether a measure got better: beyond the error of the difference, or not to be told.

All of it is read from what an evaluation leaves in results.json, before and after a training.
"""

import math
from statistics import stdev
from typing import Any

from hpt_trl.evaluation.intervals import Z

# Names of measures that are better when lower.
_LOWER = ("loss", "perplexity", "nll", "kl")
# Shares: the spread of their rows says nothing where all of them came out alike.
_SHARES = ("accuracy", "rewards/accuracies", "pass@", "avg@", "maj@", "win_rate")

SAME, UNCLEAR, UNKNOWN = "same", "no clear difference", "no error known"


def verdict(measure: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Compares a measure, named as in results.json (`held_out.loss`, `reward`), before and after a training.

    Returns:
        `better` or `worse` where the difference is larger than 1.96 of its standard errors (of shares: beyond the 95 %
        interval), else `no clear difference`; `same`; `no error known` where the results have none.
    """
    old, new = _value(measure, before), _value(measure, after)
    if old == new:
        return SAME
    bound = _bound(measure, before, after)
    if bound is None:
        return UNKNOWN
    if not abs(new - old) > bound:
        return UNCLEAR
    last = measure.rpartition(".")[2].rpartition("/")[2]
    is_lower_better = any(last == word or last.endswith(f"_{word}") for word in _LOWER)
    return "better" if (new < old) == is_lower_better else "worse"


def standard_error(values: list[float]) -> float | None:
    """Standard error of the mean of independent values, None of fewer than two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _value(measure: str, evaluation: dict[str, Any]) -> float:
    found: Any = evaluation
    for part in measure.split("."):
        found = found[part]
    return float(found)


def _bound(measure: str, before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """By how much the two may differ by chance; None where that is not known."""
    place, _, name = measure.rpartition(".")
    if name.startswith(_SHARES):
        return _bound_of_shares([(_value(measure, one), _trials(measure, one)) for one in (before, after)])
    if place == "held_out":
        paired = after.get("held_out_change_errors", {}).get(name)
        errors = [evaluation.get("held_out_errors", {}).get(name) for evaluation in (before, after)]
    else:
        paired, errors = None, [evaluation.get(f"{measure}_error") for evaluation in (before, after)]
    if paired is not None:
        return Z * paired
    return None if None in errors else Z * math.hypot(*errors)


def _bound_of_shares(shares: list[tuple[float, float | None]]) -> float | None:
    """By how much two shares (share, trials) may differ by chance.

    Agresti and Caffo (2000, The American Statistician 54, 280): one success and one failure are added to each, which
    holds for few trials as well, and where all came out alike. It shrinks the difference, by which the bound grows.
    """
    variance, shrunk = 0.0, []
    for share, trials in shares:
        if trials is None:
            return None
        shrunk.append((share * trials + 1) / (trials + 2))
        variance += shrunk[-1] * (1 - shrunk[-1]) / (trials + 2)
    (old, _), (new, _) = shares
    return Z * math.sqrt(variance) + abs(new - old) - abs(shrunk[1] - shrunk[0])


def _trials(measure: str, evaluation: dict[str, Any]) -> float | None:
    """Of how many independent trials a share is."""
    place, _, name = measure.rpartition(".")
    if place == "held_out":
        return evaluation.get("held_out_rows")
    found: Any = evaluation
    for part in filter(None, place.split(".")):
        found = found[part]
    share, interval = found[name], found.get(f"{name}_interval")
    if interval is None:
        return found["samples"] * found["num_generations"]
    # Completions of one prompt are no independent trials; the interval knows what they count as. By Wilson's formula
    # its half width at a share of a half, else its centre, gives z^2 / trials.
    centre, half = sum(interval) / 2, (interval[1] - interval[0]) / 2
    ratio = 4 * half**2 / (1 - 4 * half**2) if abs(share - 0.5) < 1e-6 else (share - centre) / (centre - 0.5)
    return Z**2 / ratio
