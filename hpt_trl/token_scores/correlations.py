"""Pearson's correlation of two things that come batch by batch, and from several processes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Correlation:
    """Sums of two variables, x and y, from which their moments follow."""

    def __init__(self, sums: Tensor | None = None):
        # Number, x, y, x^2, y^2, x y.
        self._sums = torch.zeros(6, dtype=torch.float64) if sums is None else sums

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add values, one of each for an observation."""
        x, y = x.double().flatten(), y.double().flatten()
        parts = [torch.ones_like(x), x, y, x * x, y * y, x * y]
        self._sums = self._sums.to(x.device) + torch.stack([part.sum() for part in parts])

    def over_all(self, all_sum: Callable[[Tensor], Tensor]) -> "Correlation":
        """Return the same over all processes."""
        return Correlation(all_sum(self._sums))

    @property
    def count(self) -> int:
        """Observations."""
        return int(self._sums[0])

    @property
    def mean_x(self) -> float:
        """Mean of x; 0 without observations."""
        count, x, *_ = self._sums.tolist()
        return x / count if count else 0.0

    @property
    def std_x(self) -> float:
        """Spread of x, the population's; 0 without observations."""
        count, x, _, xx, *_ = self._sums.tolist()
        return math.sqrt(max(xx / count - (x / count) ** 2, 0.0)) if count else 0.0

    @property
    def pearson(self) -> float:
        """Pearson's correlation; 0 where one of the two does not vary."""
        count, x, y, xx, yy, xy = self._sums.tolist()
        if not count:
            return 0.0
        spread = (xx / count - (x / count) ** 2) * (yy / count - (y / count) ** 2)
        # What rounding leaves of a constant is no spread.
        if spread <= 1e-24 or not math.isfinite(spread):
            return 0.0
        return max(-1.0, min(1.0, (xy / count - x * y / count**2) / math.sqrt(spread)))
