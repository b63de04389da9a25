"""What shows of a run without torch, told before the seconds in which it is imported."""

from hpt_trl.recipes.early import check_early
from hpt_trl.runs.starting import Start, check_start


def check_run(name: str, overrides: list[str], world_size: int | None = None, *, planned: bool = False) -> None:
    """Checks a recipe and its output folder; see `hpt_trl.recipes.early.check_early`.

    Raises:
        UserError: the first mistake.
    """
    checked = check_early(name, overrides, world_size, planned=planned)
    if checked is not None:
        declared = checked.declared
        start = Start(checked.values, declared.stage, declared.trains, declared.works, checked.sources.error)
        check_start(start)
