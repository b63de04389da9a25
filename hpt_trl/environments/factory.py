"""Environments for the rollouts of a run, and what bounds each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpt_trl.environments.protocol import Environment, Turn


@dataclass(frozen=True)
class TurnEnvironments:
    """Makes an environment for each rollout.

    Attributes:
        make: returns a new environment.
        max_turns: turns of the model in a rollout.
        max_turn_length: tokens of a turn; by default all that a rollout may draw.
        max_context_length: tokens that the model reads and draws at a time, those of images included; by default what
            it takes.
        max_images: pictures in the context at a time; older ones are folded away. By default all are kept.
        ahead: gets the turns of a batch before their environments act on them, e.g. to ask a service once for all.

    Raises:
        ValueError: a limit below 1.
    """

    make: Callable[[], Environment]
    max_turns: int = 4
    max_turn_length: int | None = None
    max_context_length: int | None = None
    max_images: int | None = None
    ahead: Callable[[Sequence[Turn]], None] | None = None

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_turn_length", "max_context_length", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; allowed: 1 or more.")
