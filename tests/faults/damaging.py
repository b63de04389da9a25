"""What may befall a file, and files of checkpoints and caches that are damaged before a run goes on from them."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import safe_globals

from tests.faults.outcomes import differing, outcome
from tests.faults.runs import Ended
from tests.faults.verdicts import (
    ACCEPTED,
    DIVERGED,
    HARMLESS,
    IDENTICAL,
    MISSED,
    REFUSED,
    RESUME,
    TOLD,
    UNTOLD,
    Verdict,
    after_kill,
    error_of,
    fault_of,
    last_words,
)
from tests.faults.workshop import EVERY, Workshop

_BLOCK = 4096
# What may befall any file, and what only some.
_ANY = ("flip", "zero block", "zero all", "half", "empty", "append", "delete")
NAN, OTHER = "nan", "of another step"
WAYS = (*_ANY, NAN, OTHER)
TENSORS = (".safetensors", ".pt")
DAMAGED_STEP, _OTHER_STEP = 2 * EVERY, EVERY


def damage(path: Path, way: str, draw: random.Random, other: Path | None = None) -> bool:
    """Damages a file; returns whether that was possible, and changed it.

    Args:
        other: what it gets to be, for `OTHER`.
    """
    before = path.read_bytes()
    data, middle = bytearray(before), max((len(before) - _BLOCK) // 2, 0)
    if way == "flip":
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
    elif way == "zero block":
        data[middle : middle + _BLOCK] = bytes(len(data[middle : middle + _BLOCK]))
    elif way == "zero all":
        data = bytearray(len(data))
    elif way == "half":
        data = data[: len(data) // 2]
    elif way == "empty":
        data = bytearray()
    elif way == "append":
        data += bytes(draw.randrange(256) for _ in range(64))
    elif way == OTHER:
        if other is None or not other.exists():
            return False
        data = bytearray(other.read_bytes())
    # A new file: copies may share the old one.
    path.unlink()
    if way == NAN:
        path.write_bytes(before)
        return _put_nan(path)
    if way != "delete":
        path.write_bytes(bytes(data))
    return way == "delete" or bytes(data) != before


def _put_nan(path: Path) -> bool:
    """Writes the file anew with NaN for one of its numbers; returns whether it has one."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        found = _sets_nan(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return found
    with safe_globals():
        value = torch.load(path, weights_only=True)
    found = _sets_nan(value)
    torch.save(value, path)
    return found


def _sets_nan(value: Any) -> bool:
    """Puts NaN for the first number of a tensor, or for the first float that a list or mapping holds."""
    if isinstance(value, torch.Tensor):
        if found := value.is_floating_point() and value.numel() > 1:
            value.view(-1)[0] = torch.nan
        return found
    places = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    for place in places:
        if isinstance(value[place], float):
            value[place] = float("nan")
            return True
        if _sets_nan(value[place]):
            return True
    return isinstance(value, tuple) and any(_sets_nan(inner) for inner in value)


def ways_for(file: str, *, has_other: bool) -> list[str]:
    """What can befall a file by its kind."""
    found = list(_ANY)
    if file.endswith(TENSORS):
        found.append(NAN)
    if file.endswith((".json", ".jsonl", ".yaml", ".jinja", ".txt")):
        # Small: the block is all of it.
        found.remove("zero block")
    return [*found, OTHER] if has_other else found


def judged(ended: Ended, path: Path, given: Path, differs: Callable[[], list[str]]) -> Verdict:
    """The verdict on whoever was given a folder and read a damaged file there, without a way back.

    Args:
        path: the damaged file.
        given: the folder.
        differs: names of what came out otherwise than it does without the damage.
    """
    verdict = Verdict("", said=error_of(ended.said) if ended.code else "")
    if (wrong := fault_of(ended)) is not None:
        verdict.word, verdict.said = wrong, last_words(ended.said)
    elif ended.code:
        # What is wrong is found by its file, or by the folder that was given.
        verdict.word = REFUSED if path.name in verdict.said or str(given) in verdict.said else UNTOLD
    else:
        verdict.differs = differs()
        verdict.said = warning_of(ended.said, path)
        # That nothing came of a changed weight is luck, and a word of it no excuse.
        if path.suffix in TENSORS:
            verdict.word = ACCEPTED
        elif verdict.said:
            verdict.word = TOLD
        else:
            verdict.word = ACCEPTED if verdict.differs else HARMLESS
    return verdict


def warning_of(said: str, path: Path) -> str:
    """The line by which a user is told that a file is not what was written; empty where none is."""
    marks = (f"{path} is not what its run wrote", f"{path.name} ends in half a line", f"{path.name} ends at step")
    marks += (f"there is no {path.name}",)
    return next((line.strip() for line in said.splitlines() if any(mark in line for mark in marks)), "")


@dataclass(frozen=True)
class Resumed:
    """A run that was stopped; a file of its last checkpoint, or beside it, is damaged before it goes on.

    Attributes:
        run: see `tests.faults.stages`.
        file: below the output folder.
        way: one of `WAYS`.
        by_name: the checkpoint is named rather than looked for.
    """

    run: str
    file: str
    way: str
    by_name: bool = False
    kind: str = "damage"

    @property
    def id(self) -> str:
        reader = "by-name" if self.by_name else "resume"
        return f"damage/{reader}-{self.run}/{self.file}/{self.way}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Damages, goes on and judges."""
        whole = shop.reference(self.run)
        folder = shop.stopped(self.run)
        noted = {"file": self.file, "way": self.way}
        path = folder / "out" / self.file
        other = folder / "out" / self.file.replace(f"-{DAMAGED_STEP}/", f"-{_OTHER_STEP}/")
        if not path.exists() or not damage(path, self.way, shop.draw(self.id), None if other == path else other):
            return Verdict(MISSED), noted
        named = str(folder / "out" / f"checkpoint-{DAMAGED_STEP}")
        first = ("--resume_from_checkpoint", named) if self.by_name else RESUME
        run = shop.going_on(self.run, folder)
        verdict = after_kill(run, folder, whole.outcome, first=first, newest=DAMAGED_STEP)
        if verdict.word == IDENTICAL:
            verdict.word = ACCEPTED if path.suffix in TENSORS else HARMLESS
        elif verdict.word == DIVERGED:
            verdict.word = ACCEPTED
        return verdict, noted


@dataclass(frozen=True)
class Cached:
    """A cache of token scores beside a run that is done anew; a file of it is damaged.

    Attributes:
        run: see `tests.faults.stages`.
        file: pattern below the run's folder.
        way: one of `WAYS`.
    """

    run: str
    file: str
    way: str
    kind: str = "damage"

    @property
    def id(self) -> str:
        return f"damage/cache-{self.run}/{Path(self.file).name.replace('*', 'segment')}/{self.way}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Damages, does the run anew and judges."""
        whole = shop.reference(self.run)
        folder = shop.finished(self.run)
        shutil.rmtree(folder / "out")
        noted = {"file": self.file, "way": self.way}
        (path,) = folder.glob(self.file)
        if not damage(path, self.way, shop.draw(self.id)):
            return Verdict(MISSED), noted
        ended, _ = shop.going_on(self.run, folder)(())
        return judged(ended, path, path.parent, lambda: differing(outcome(folder / "out"), whole.outcome)), noted


OF_CHECKPOINTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
OF_CHECKPOINTS += ("config.json", "digests.json", "run.json")
_OF_STAGES = {
    "sft": (),
    "grpo-entropy": ("entropy_ctrl_state.json", "rollouts_0.pt"),
    "hpt": ("rollouts_0.pt",),
    "ppo": ("rollouts_0.pt", "kl_controller.json", "value_head/value_head.safetensors"),
    "critic": ("value_head/value_head.safetensors",),
    "mtp": ("future_heads/model.safetensors", "token_weights.json"),
    "dpo-moving": ("reference_model.safetensors",),
}
_BESIDE = ("recipe.yaml", "before.json", "metrics.jsonl")
# Every way for one stage and for what the others have of their own; of what all have alike a few.
_IN_FULL = "sft"
_A_FEW = ("flip", "half", NAN)


_CACHES = {"rho1": ("scores/*/*.nll", "scores/*/manifest.json"), "mtp": ("values/*/*.values", "values/*/manifest.json")}


def damages() -> list[Resumed | Cached]:
    """All of them, each once."""
    found: list[Resumed | Cached] = []
    for run, own in _OF_STAGES.items():
        for name in (*own, *OF_CHECKPOINTS):
            ways = [way for way in ways_for(name, has_other=True) if run == _IN_FULL or name in own or way in _A_FEW]
            file = f"checkpoint-{DAMAGED_STEP}/{name}"
            found += [Resumed(run, file, way) for way in ways]
            if run == _IN_FULL:
                found += [Resumed(run, file, way, by_name=True) for way in ways if way in _A_FEW]
        if run == _IN_FULL:
            found += [Resumed(run, file, way) for file in _BESIDE for way in ways_for(file, has_other=False)]
    for run, files in _CACHES.items():
        found += [Cached(run, file, way) for file in files for way in ways_for(file, has_other=False)]
    return found
