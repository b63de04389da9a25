"""What shows of a run without torch, told before the seconds in which it is imported."""

from contextlib import suppress

from hpt_trl.errors import Collector
from hpt_trl.recipes.early import Checked, look_at
from hpt_trl.runs.changes import STARTING_KEYS
from hpt_trl.runs.starting import Occupied, Start, check_start

# Where a frozen model is asked, and whether its answers are kept.
_CACHED = {"reference_mode", "value_mode"}


def check_run(
    name: str, overrides: list[str], world_size: int | None = None, *, planned: bool = False, live: bool = False
) -> None:
    """Checks a recipe and its output folder; see `hpt_trl.recipes.early.look_at`.

    Raises:
        UserError: every mistake found.
    """
    mistakes = Collector()
    checked = look_at(name, overrides, mistakes, world_size, planned=planned, live=live)
    if checked is not None:
        note_output(checked, mistakes, planned=planned)
    mistakes.settle()


def check_scoring(name: str, overrides: list[str], world_size: int | None = None, *, live: bool = False) -> None:
    """Checks a recipe whose rows are to be scored before its training, which leaves nothing in its output folder.

    Raises:
        UserError: every mistake found, or a stage that asks no frozen model.
    """
    mistakes = Collector()
    checked = look_at(name, overrides, mistakes, world_size, live=live)
    if checked is not None and checked.declared.stage and not _CACHED & checked.declared.keys.keys():
        said = f"{checked.declared.stage} asks no frozen model; allowed here: rho1, mtp."
        mistakes.note(checked.sources.error("stage", said))
    mistakes.settle()


def note_output(checked: Checked, mistakes: Collector, *, planned: bool = False) -> None:
    """Notes why a run may not write to its output folder; one that lies there is no mistake where none is to start."""
    values, declared = checked.values, checked.declared
    if declared.stage and values.are_sound(*STARTING_KEYS) and values.taken.get("output_dir"):
        with mistakes.noted(), suppress(*((Occupied,) if planned else ())):
            check_start(Start(values.taken, declared.stage, declared.trains, declared.works, checked.sources.error))
