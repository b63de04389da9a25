"""What each head counts, and which heads are trained when. Pure functions."""

import json
import math

CURRICULA = ("none", "forward", "reverse")


def head_weights(setting: list[float] | str, count: int) -> list[float]:
    """Weights of the heads, the next token's first.

    Args:
        setting: `uniform`, `decay:B` with B above 0 and at most 1 (arXiv 2509.18362 takes 0.6), or the weights.
        count: number of heads.

    Raises:
        ValueError: a setting that is none of these, or another number of weights.
    """
    allowed = f"allowed: uniform, decay:B with B above 0 and at most 1 (e.g. decay:0.6), or {count} numbers"
    given = setting
    if isinstance(given, str):
        if given == "uniform":
            return [1 / count] * count
        name, colon, text = given.partition(":")
        if name == "decay" and colon:
            try:
                base = float(text)
            except ValueError:
                base = math.nan
            if not 0 < base <= 1:
                raise ValueError(f"`head_weights` is {setting}; {allowed}.")
            powers = [base**k for k in range(count)]
            return [power / sum(powers) for power in powers]
        try:
            # One word of the command line.
            given = json.loads(given)
        except ValueError:
            raise ValueError(f"`head_weights` is {setting}; {allowed}.") from None
    if not isinstance(given, list) or not all(isinstance(one, int | float) for one in given):
        raise ValueError(f"`head_weights` is {setting}; {allowed}.")
    weights = [float(one) for one in given]
    if len(weights) != count:
        raise ValueError(
            f"`head_weights` is {setting}: {len(weights)} numbers for `n_future_tokens` {count}; {allowed}."
        )
    if not all(math.isfinite(one) and one >= 0 for one in weights) or sum(weights) == 0:
        raise ValueError(f"`head_weights` is {setting}; allowed: numbers of 0 or more, not all of them 0.")
    return weights


def active_heads(curriculum: str, count: int, progress: float) -> int:
    """How many heads are trained at a point of the run, from the first on (arXiv 2505.22757).

    Args:
        curriculum: one of `CURRICULA`.
        count: number of heads.
        progress: share of the run that is done, from 0 to below 1.
    """
    if curriculum == "none":
        return count
    done = math.floor(progress * count)
    return min(count, done + 1) if curriculum == "forward" else max(1, count - done)


def active_weights(weights: list[float], active: int) -> list[float]:
    """Weights of the first heads, raised to the sum of all: a curriculum is no schedule of the learning rate."""
    kept = weights[:active]
    total = sum(kept)
    return kept if active == len(weights) or total == 0 else [one * sum(weights) / total for one in kept]
