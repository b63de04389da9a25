"""Means with their standard errors over seeds, and differences that are paired by seed."""

import statistics
from dataclasses import dataclass

# How many standard errors a difference must exceed to be told as one.
NEEDED = 2.0


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        error: its standard error, the deviation over the root of the count; None of fewer than two seeds.
    """

    mean: float
    error: float | None
    seeds: int

    @classmethod
    def of(cls, values: list[float]) -> "Mean":
        count = len(values)
        error = statistics.stdev(values) / count**0.5 if count > 1 else None
        return cls(statistics.fmean(values), error, count)

    def text(self, digits: int = 3, sign: str = "") -> str:
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{error}"


def difference(values: list[float], others: list[float]) -> Mean:
    """Of values less the others', seed by seed: what both have of a seed cancels."""
    return Mean.of([value - other for value, other in zip(values, others, strict=True)])


def verdict(found: Mean) -> str:
    """`better` or `worse` where the difference exceeds `NEEDED` standard errors, more being better."""
    if found.error is None:
        return "one seed"
    if abs(found.mean) <= NEEDED * found.error:
        return "no difference found"
    return "better" if found.mean > 0 else "worse"
