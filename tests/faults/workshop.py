"""What the scenarios share: servers, inputs, whole runs to compare with, and folders as a stopped run left them."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.events import phases
from tests.faults.outcomes import outcome
from tests.faults.runs import Ended, Server
from tests.faults.stages import IN_TWO, STEPS, has_checkpoints, write_inputs, write_recipe
from tests.faults.verdicts import Run, went_on_from

EVERY = 2


class BrokenError(Exception):
    """A run of the campaign fails where nothing was done to it."""


@dataclass(frozen=True)
class Reference:
    """A run from start to end.

    Attributes:
        folder: where it lies; `out` is its output folder.
        outcome: see `tests.faults.outcomes`.
        events: what its first process did to files.
        seconds: wall time.
    """

    folder: Path
    outcome: dict[str, str]
    events: list[tuple[str, str]]
    seconds: float

    @property
    def phases(self) -> list[str]:
        """Of each event what the run did."""
        return phases(self.events)


class Workshop:
    """Makes what scenarios need when one needs it, and keeps it in a folder for the next ones.

    All runs of a name lie at one place, whatever becomes of them: paths within recipes and records stay the same.

    Args:
        control: what all runs but the whole ones are without, see `tests.faults.controls`.
        seed: of what scenarios draw.
    """

    def __init__(self, folder: Path, control: str | None = None, seed: int = 0):
        self.folder, self.control, self.seed = folder, control, seed
        self.inputs = folder / "inputs"
        self._servers: dict[str | None, Server] = {}
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_inputs(self.inputs)
            (folder / "ready").touch()
        shutil.rmtree(folder / "servers", ignore_errors=True)

    def close(self) -> None:
        """Ends the servers; later runs have new ones."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        shutil.rmtree(self.folder / "servers", ignore_errors=True)

    def draw(self, scenario: str) -> random.Random:
        """What a scenario draws from, by its id: the same in each campaign of the same seed."""
        return random.Random(f"{self.seed}/{scenario}")

    def server(self, profile: str | None = None) -> Server:
        """The server of a profile; all stay, since each takes about 20 s to start and 2 GB to wait."""
        if profile not in self._servers:
            self._servers[profile] = Server(self.folder / "servers" / str(profile), profile)
        return self._servers[profile]

    def place(self, name: str, profile: str | None = None) -> Path:
        """The folder of a run, with its recipe alone."""
        folder = self.folder / "places" / _label(name, profile)
        shutil.rmtree(folder, ignore_errors=True)
        write_recipe(name, self.inputs, folder, **(IN_TWO if profile else {}))
        return folder

    def reference(self, name: str, profile: str | None = None) -> Reference:
        """The whole run of a name."""
        kept = self.folder / "references" / _label(name, profile)
        if not (kept / "reference.json").exists():
            folder = self.place(name, profile)
            events = self.folder / "events.json"
            ended = self.server(profile).run(["run", str(folder / "recipe.yaml")], folder, events=events)
            if ended.code:
                raise BrokenError(f"{name} ({profile}) fails without any fault:\n{ended.said[-4000:]}")
            found = {"events": json.loads(Path(f"{events}-0").read_text()), "seconds": ended.seconds}
            found["outcome"] = outcome(folder / "out")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, symlinks=True)
            (kept / "reference.json").write_text(json.dumps(found))
        found = json.loads((kept / "reference.json").read_text())
        events = [(event, path) for event, path in found["events"]]
        return Reference(kept, found["outcome"], events, found["seconds"])

    def finished(self, name: str, profile: str | None = None) -> Path:
        """The folder of a run as its end left it, at its place."""
        return self._put(name, profile, self.reference(name, profile).folder)

    def stopped(self, name: str, profile: str | None = None) -> Path:
        """The folder of a run that was killed before its third checkpoint, at its place: two checkpoints are whole.

        Of an evaluation, which has none: before all that it has drawn is put into one file.
        """
        kept = self.folder / "stopped" / _label(name, profile)
        if not kept.exists():
            events = self.reference(name, profile).events
            mark = f"checkpoint-{3 * EVERY}" if has_checkpoints(name) else "/.samples.jsonl"
            at = next(place for place, (_, path) in enumerate(events) if mark in path)
            folder = self.place(name, profile)
            stop = {"event": at, "do": "die"}
            ended = self.server(profile).run(["run", str(folder / "recipe.yaml")], folder, stop=stop)
            if ended.code == 0:
                raise BrokenError(f"{name} ({profile}) was to be killed at event {at}, and was not")
            shutil.copytree(folder, kept, symlinks=True)
        return self._put(name, profile, kept)

    def going_on(self, name: str, folder: Path, profile: str | None = None) -> Run:
        """A function that runs the recipe of a folder with further words; see `verdicts.after_kill`."""

        def run(words: Sequence[str]) -> tuple[Ended, int | None]:
            events = self.folder / "events.json"
            written = Path(f"{events}-0")
            written.unlink(missing_ok=True)
            command = ["run", str(folder / "recipe.yaml"), *words]
            ended = self.server(profile).run(command, folder, events=events, control=self.control)
            if not written.exists():
                return ended, None
            seen = [(event, path) for event, path in json.loads(written.read_text())]
            return ended, went_on_from(seen, STEPS, EVERY) if has_checkpoints(name) else 0

        return run

    def _put(self, name: str, profile: str | None, kept: Path) -> Path:
        folder = self.folder / "places" / _label(name, profile)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder, symlinks=True)
        return folder


def _label(name: str, profile: str | None) -> str:
    return name if profile is None else f"{name}-{profile}"
