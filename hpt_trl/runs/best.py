"""The best checkpoint of a run that goes on: where it lies now, and the model of it where nothing is left to train."""

from pathlib import Path
from typing import Any

from hpt_trl.files import parsed_json
from hpt_trl.runs.checkpoints import TRAINER_STATE


def best_named(checkpoint: Path) -> Path | None:
    """The best checkpoint so far where it lay as a checkpoint was written; None where none was known."""
    named = parsed_json((checkpoint / TRAINER_STATE).read_bytes()).get("best_model_checkpoint")
    return None if named is None else Path(named)


def best_of(checkpoint: Path, folder: Path) -> Path | None:
    """The best checkpoint so far where it lies now: a folder that was copied has one of its own.

    Args:
        checkpoint: Where the run goes on.
        folder: Its output folder.

    Returns:
        None where none was known, or it is not there.
    """
    named = best_named(checkpoint)
    if named is None:
        return None
    places = (folder / named.name, checkpoint.parent / named.name, named)
    return next((place for place in places if place.is_dir()), None)


def load_best(trainer: Any) -> None:
    """Loads the best model where the recipe asks for it, as the end of a training does; every process calls it."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
