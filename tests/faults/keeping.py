"""What was done before and is not done again, when a file of it is damaged: a pipeline's stages, drawn completions."""

import re
from dataclasses import dataclass
from typing import Any

from tests.faults.commanding import finished, words_of
from tests.faults.damaging import NAN, TENSORS, damage, judged, ways_for
from tests.faults.outcomes import differing, outcome
from tests.faults.runs import command
from tests.faults.verdicts import (
    ACCEPTED,
    DIVERGED,
    HARMLESS,
    IDENTICAL,
    MISSED,
    RECORDS,
    RESTARTED,
    Verdict,
    after_kill,
)
from tests.faults.workshop import Workshop

_PIPELINE = "pipeline"
# Of a finished pipeline: file -> what befalls it. Whatever runs again takes its time.
_OF_STAGES = {
    "dpo/model.safetensors": ("flip", "zero block", "half", "delete", NAN),
    "sft/model.safetensors": ("flip", "delete"),
    "dpo/results.json": ("flip", "half", "delete"),
    "dpo/config.json": ("flip", "half"),
    "dpo/digests.json": ("flip", "delete"),
    "pipeline.json": ("flip", "half", "delete"),
}


@dataclass(frozen=True)
class Kept:
    """A finished pipeline that is given again; a file of a stage is damaged, or what the pipeline knows of them.

    Attributes:
        file: below its output folder.
        way: see `damage`.
    """

    file: str
    way: str
    kind: str = "damage"

    @property
    def id(self) -> str:
        return f"damage/keep/{self.file}/{self.way}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Damages, gives the pipeline again and judges."""
        folder, whole = finished(_PIPELINE, shop)
        noted = {"file": self.file, "way": self.way}
        path = folder / "out" / self.file
        if not damage(path, self.way, shop.draw(self.id)):
            return Verdict(MISSED), noted
        ended = command(words_of(_PIPELINE, folder), folder)
        verdict = judged(ended, path, folder, lambda: differing(outcome(folder / "out"), whole))
        if ended.code == 0 and not verdict.differs:
            kept = is_kept(self.file.partition("/")[0], ended.said)
            verdict.word = (ACCEPTED if path.suffix in TENSORS else HARMLESS) if kept else RESTARTED
        return verdict, noted


def is_kept(stage: str, said: str) -> bool:
    """Whether a pipeline says that it did not run a stage again; of what is none, that it ran none."""
    lines = re.findall(r"^\[\d+/\d+\] (.*)", said, flags=re.MULTILINE)
    of_stage = [line for line in lines if re.match(rf"{re.escape(stage)}\b", line)]
    return all("finished before" in line for line in of_stage or lines)


@dataclass(frozen=True)
class Drawn:
    """An evaluation that goes on, or is scored anew, by the completions that lie there; a file of them is damaged.

    Attributes:
        file: below the output folder.
        way: see `damage`.
        stopped: it was killed before its end.
    """

    file: str
    way: str
    stopped: bool
    kind: str = "damage"

    @property
    def id(self) -> str:
        return f"damage/{'drawn' if self.stopped else 'scored'}/{self.file}/{self.way}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Damages, gives the evaluation again, does what an error advises, and judges."""
        whole = shop.reference("evaluate")
        folder = shop.stopped("evaluate") if self.stopped else shop.finished("evaluate")
        noted = {"file": self.file, "way": self.way}
        if not damage(folder / "out" / self.file, self.way, shop.draw(self.id)):
            return Verdict(MISSED), noted
        verdict = after_kill(shop.going_on("evaluate", folder), folder, whole.outcome, first=())
        if verdict.word in (DIVERGED, RECORDS):
            verdict.word = ACCEPTED
        elif verdict.word == IDENTICAL and not self.stopped:
            verdict.word = HARMLESS
        return verdict, noted


def keeps() -> list[Kept | Drawn]:
    """All of them, each once."""
    found: list[Kept | Drawn] = [Kept(file, way) for file, ways in _OF_STAGES.items() for way in ways]
    for stopped, files in ((True, ("samples.0.part", "samples.json")), (False, ("samples.jsonl", "scored.jsonl"))):
        found += [Drawn(file, way, stopped) for file in files for way in ways_for(file, has_other=False)]
    return found
