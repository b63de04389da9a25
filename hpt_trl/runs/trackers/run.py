"""What every tracker needs to know of a run, and where in it a stopped run goes on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpt_trl.files import parsed_json, write_atomically
from hpt_trl.run_files import TRACKERS_FILE
from hpt_trl.runs.trackers.tables import Table


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        name: of the run.
        project: that it belongs to.
        folder: the run's output folder.
        settings: flat, without secrets.
        step: optimizer steps that an earlier attempt did; None for a new run.
        space: `trackio_space_id`.
    """

    name: str
    project: str
    folder: Path
    settings: dict[str, Any] = field(repr=False)
    step: int | None = None
    space: str | None = None

    def earlier(self, tracker: str) -> dict[str, str]:
        """What a tracker called the run that this one goes on; empty for a new run."""
        return {} if self.step is None else self._kept().get(tracker, {})

    def keep(self, tracker: str, **names: str) -> None:
        """Notes what a tracker calls the run."""
        said = json.dumps(self._kept() | {tracker: names}, indent=2) + "\n"
        write_atomically(self.folder / TRACKERS_FILE, said)

    def _kept(self) -> dict[str, dict[str, str]]:
        """What is noted of each tracker; of a damaged note nothing, and that is said."""
        path = self.folder / TRACKERS_FILE
        if not path.exists():
            return {}
        try:
            kept = parsed_json(path.read_bytes())
            return {str(name): {key: str(value) for key, value in names.items()} for name, names in kept.items()}
        except (OSError, ValueError, AttributeError):
            print(f"{path} is damaged: trackers begin a run of their own for what is to come.", flush=True)
            return {}


class Tracker(Protocol):
    """A tracker with an open run, in the first process alone."""

    def open(self) -> None:
        """Begins the run there, or goes on with the one of an earlier attempt; once."""

    def table(self, name: str, table: Table, step: int) -> None:
        """Leaves a table of samples."""

    def summarise(self, figures: dict[str, float], step: int) -> None:
        """Leaves the figures of the whole run."""

    def warn(self, kind: str, message: str, step: int) -> None:
        """Leaves a warning."""

    def close(self, *, failed: bool) -> None:
        """Ends the run there, so that the next one of this process begins anew."""
