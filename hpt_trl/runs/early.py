"""What shows of a run without torch, told before the seconds in which it is imported."""

from hpt_trl.errors import Collector
from hpt_trl.recipes.early import Checked, look_at
from hpt_trl.runs.changes import STARTING_KEYS
from hpt_trl.runs.starting import Start, check_start


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
        note_output(checked, mistakes)
    mistakes.settle()


def note_output(checked: Checked, mistakes: Collector) -> None:
    """Notes why a run may not write to its output folder."""
    values, declared = checked.values, checked.declared
    if values.are_sound(*STARTING_KEYS) and values.taken.get("output_dir"):
        with mistakes.noted():
            check_start(Start(values.taken, declared.stage, declared.trains, declared.works, checked.sources.error))
