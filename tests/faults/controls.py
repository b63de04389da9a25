"""Controls: what a run would be without one of its safeguards, to see that the campaign finds what comes of it."""

from collections.abc import Callable

from transformers import Trainer

from hpt_trl import digests


def _without_states() -> None:
    """Resumed runs begin with a new optimizer and scheduler."""
    Trainer._load_optimizer_and_scheduler = lambda self, checkpoint: None


def _without_random_states() -> None:
    """Resumed runs draw other numbers."""
    Trainer._load_rng_state = lambda self, checkpoint: None


def _without_digests() -> None:
    """What is damaged is not looked for."""
    # Whoever has imported the function has it too.
    digests.damage_of.__code__ = (lambda folder, **asked: None).__code__


# Name -> what it takes away, in a process that runs nothing else.
CONTROLS: dict[str, Callable[[], None]] = {
    "states": _without_states,
    "random": _without_random_states,
    "digests": _without_digests,
}
