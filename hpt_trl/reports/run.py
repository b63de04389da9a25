"""A run's output folder as a page shows it: everything is read here, and checked before anything is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.errors import UserError
from hpt_trl.reading import read_object, read_results, read_steps
from hpt_trl.reports.checks import check_evaluation, check_results
from hpt_trl.run_files import BEFORE_FILE, METRICS_FILE, RECIPE_FILE, RESULTS_FILE, WARNINGS_FILE
from hpt_trl.runs.checkpoints import complete_checkpoints
from hpt_trl.settings.masking import masked

# Larger numbers overflow where differences of them are taken.
_LARGEST = 1e100


@dataclass(frozen=True)
class Run:
    """An output folder, read.

    Attributes:
        folder: Its path, as it was given.
        settings: The resolved recipe without its secrets; empty where the folder holds none.
        lines: Of metrics.jsonl, numbers that are not finite as None.
        cut: Names of the files that end in half a line.
        results: results.json; None of a run that has not finished.
        before: The evaluation before the training, also of a run that has not finished.
        after: The one after it.
        warnings: `step`, `kind` and `message` of what the run found wrong with itself.
        checkpoint: Name of the last one that a run can go on from.
    """

    folder: Path
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    cut: tuple[str, ...]
    results: dict[str, Any] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    warnings: list[dict[str, Any]]
    checkpoint: str | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def stage(self) -> str:
        """What kind of run it is."""
        return str((self.results or {}).get("stage") or self.settings.get("stage") or "run")

    @property
    def steps(self) -> int | None:
        """Optimizer steps that were taken, of an unfinished run those that are logged; None where none were."""
        if self.results is not None:
            return self.results.get("steps")
        return self.lines[-1]["step"] if self.lines else None

    @property
    def measures(self) -> dict[str, Any] | None:
        """What a run that only measures has found."""
        return (self.results or {}).get("measures")


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run writes first."""
    return any((folder / name).is_file() for name in (RECIPE_FILE, METRICS_FILE, RESULTS_FILE))


def read_run(folder: Path) -> Run:
    """Reads an output folder.

    Raises:
        UserError: one of its files is broken, with its name and line.
    """
    results = read_results(folder)
    if results is not None:
        check_results(folder / RESULTS_FILE, results)
    lines, cut_metrics = _steps(folder / METRICS_FILE)
    noted, cut_warnings = _steps(folder / WARNINGS_FILE)
    before = _before(folder / BEFORE_FILE) if results is None else results.get("before")
    checkpoints = complete_checkpoints(folder) if results is None else []
    return Run(
        folder=folder,
        settings=masked(_recipe(folder / RECIPE_FILE)),
        lines=[{key: _finite(value) for key, value in line.items()} for line in lines],
        cut=tuple(name for name, cut in ((METRICS_FILE, cut_metrics), (WARNINGS_FILE, cut_warnings)) if cut),
        results=results,
        before=before,
        after=None if results is None else results.get("after"),
        warnings=_warnings(folder, results, noted),
        checkpoint=checkpoints[-1].name if checkpoints else None,
    )


def _steps(path: Path) -> tuple[list[dict[str, Any]], bool]:
    return read_steps(path) if path.exists() else ([], False)


def _warnings(folder: Path, results: dict[str, Any] | None, noted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = noted if results is None or "warnings" not in results else results["warnings"]
    if not isinstance(found, list) or not all(isinstance(one, dict) and "message" in one for one in found):
        name = WARNINGS_FILE if found is noted else RESULTS_FILE
        raise UserError(f"{folder / name}: a warning is an object with a `message`; remove what is none.")
    return found


def _before(path: Path) -> dict[str, Any] | None:
    """What before.json says; None without it, or where nothing was evaluated."""
    found = read_object(path, "an evaluation", or_null=True)
    check_evaluation(path, "before", found or {})
    return found


def _recipe(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a recipe's YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, not the keys of a recipe.")
    return {str(key): value for key, value in found.items()}


def _finite(value: Any) -> Any:
    """None in place of a number that no picture could show."""
    return None if isinstance(value, int | float) and not abs(value) <= _LARGEST else value
