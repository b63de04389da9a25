"""Commands as a user starts them, with the processes that they start: killed alone, or with all of those."""

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.faults.outcomes import outcome
from tests.faults.runs import Ended, command, started_in
from tests.faults.stages import IN_TWO, STEPS, write_recipe
from tests.faults.verdicts import HUNG, MISSED, RESUME, Verdict, after_kill, last_words
from tests.faults.workshop import BrokenError, Workshop

# Name -> what it starts.
COMMANDS = ("pipeline", "launcher-cpu", "launcher-fsdp2")
_IN_TWO = ("--num_processes", "2")
# Seconds that processes have to end when the command that started them is gone.
_PATIENCE = 20.0
# Share of a command's time in which it is killed.
_OF_THE_TIME = 0.9


@dataclass(frozen=True)
class Commanded:
    """A command that is killed.

    Attributes:
        name: one of `COMMANDS`.
        alone: the first process alone rather than all.
        number: by which the instant is drawn.
    """

    name: str
    alone: bool
    number: int
    kind: str = "kill"

    @property
    def id(self) -> str:
        return f"kill/{self.name}/{'alone' if self.alone else 'all'}/{self.number}"

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Kills, waits until all that was started is gone, goes on and judges."""
        reference, seconds = _whole(self.name, shop)
        after = shop.draw(self.id).uniform(0.0, _OF_THE_TIME * seconds)
        folder = _place(self.name, shop)
        noted = {"at": [f"after {after:.2f} s of {seconds:.2f} s"], "phase": "command"}
        ended = command(words_of(self.name, folder), folder, after=after, whole_group=not self.alone)
        if ended.code >= 0:
            return Verdict(MISSED), noted
        deadline = time.monotonic() + _PATIENCE
        while started_in(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left := started_in(folder):
            return Verdict(HUNG, f"{len(left)} processes outlive the command that started them"), noted

        def run(words: Sequence[str]) -> tuple[Ended, int | None]:
            ended = command([*words_of(self.name, folder), *words], folder)
            steps = [int(step) for step in re.findall(rf"step (\d+)/{STEPS}\b", ended.said)]
            return ended, min(steps) - 1 if steps else STEPS

        return after_kill(run, folder, reference, first=() if self.name == "pipeline" else RESUME), noted


def _place(name: str, shop: Workshop) -> Path:
    folder = shop.folder / "places" / f"command-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    if name != "pipeline":
        write_recipe("sft", shop.inputs, folder, **IN_TWO)
        return folder
    recipes = {stage: str(write_recipe(stage, shop.inputs, folder / f"of-{stage}")) for stage in ("sft", "dpo")}
    stages = {"sft": {"recipe": recipes["sft"]}, "dpo": {"recipe": recipes["dpo"], "model": "from:sft"}}
    plan = {"stage": "pipeline", "output_dir": str(folder / "out"), "stages": stages}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plan))
    return folder


def words_of(name: str, folder: Path) -> list[str]:
    """Its words, but for `hpt-trl`."""
    launched = ["--accelerate", name.removeprefix("launcher-"), *_IN_TWO] if name != "pipeline" else []
    return ["run", str(folder / "recipe.yaml"), *launched]


def _whole(name: str, shop: Workshop) -> tuple[dict[str, str], float]:
    """The outcome of the command without any fault, and the seconds that it takes."""
    kept = shop.folder / "commands" / name
    if not (kept / "whole.json").exists():
        folder = _place(name, shop)
        ended = command(words_of(name, folder), folder)
        if ended.code:
            raise BrokenError(f"{name} fails without any fault:\n{last_words(ended.said)}")
        shutil.rmtree(kept, ignore_errors=True)
        # A pipeline knows its stages by when they began.
        shutil.copytree(folder, kept, symlinks=True)
        (kept / "whole.json").write_text(json.dumps([outcome(folder / "out"), ended.seconds]))
    found, seconds = json.loads((kept / "whole.json").read_text())
    return found, seconds


def finished(name: str, shop: Workshop) -> tuple[Path, dict[str, str]]:
    """The folder of a command as its end left it, at its place, and its outcome."""
    whole, _ = _whole(name, shop)
    folder = _place(name, shop)
    shutil.rmtree(folder)
    shutil.copytree(shop.folder / "commands" / name, folder, symlinks=True)
    return folder, whole


def commands() -> list[Commanded]:
    """All of them, each once."""
    counts = {"pipeline": 5, "launcher-cpu": 3, "launcher-fsdp2": 2}
    return [
        Commanded(name, alone, number)
        for name, count in counts.items()
        for alone in (False, True)
        for number in range(count)
    ]
