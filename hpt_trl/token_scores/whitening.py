"""Mean and spread of advantages over the steps of a run, by which they are whitened."""

from dataclasses import asdict, dataclass


@dataclass
class MovingStatistics:
    """Exponential moving averages of mean and standard deviation (weighted_mtp's, with its warm-up).

    What is whitened at a step takes the statistics of the steps before it, so the first one is left as it is (mean 0,
    spread 1). In the first `warmup` updates the s-th takes the share (s - 1) / warmup of what was known and the rest of
    the step's own; after them the step's own has the share `momentum`.

    Attributes:
        mean, std: over all that was seen; the spread is the population's.
        steps: updates so far.
    """

    momentum: float = 0.1
    warmup: int = 10
    mean: float = 0.0
    std: float = 1.0
    steps: int = 0

    def update(self, total: float, squares: float, count: float) -> None:
        """Add the values of a step.

        Args:
            total, squares, count: sum of the values of all processes, of their squares, and their number; nothing is
                learnt of none.
        """
        if count <= 0:
            return
        mean = total / count
        std = max(squares / count - mean**2, 0.0) ** 0.5
        kept = self.steps / self.warmup if self.steps < self.warmup else 1 - self.momentum
        self.mean = kept * self.mean + (1 - kept) * mean
        self.std = kept * self.std + (1 - kept) * std
        self.steps += 1

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a state; its momentum and warm-up are those of the run that goes on.

        Raises:
            KeyError: the state is of something else.
        """
        self.mean, self.std, self.steps = float(state["mean"]), float(state["std"]), int(state["steps"])
