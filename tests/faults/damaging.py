"""Files that are damaged, and who reads them afterwards."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import safe_globals

from tests.faults.outcomes import differing, outcome
from tests.faults.runs import Ended
from tests.faults.stages import write_recipe
from tests.faults.verdicts import (
    ACCEPTED,
    DIVERGED,
    HARMLESS,
    IDENTICAL,
    MISSED,
    REFUSED,
    RESUME,
    UNTOLD,
    Verdict,
    after_kill,
    error_of,
    fault_of,
    last_words,
)
from tests.faults.workshop import EVERY, BrokenError, Workshop

_BLOCK = 4096
# What may befall any file, and what only some.
_ANY = ("flip", "zero block", "zero all", "half", "empty", "append", "delete")
NAN, OTHER = "nan", "of another step"
WAYS = (*_ANY, NAN, OTHER)
_TENSORS = (".safetensors", ".pt")
_DAMAGED_STEP, _OTHER_STEP = 2 * EVERY, EVERY


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
        _put_nan(path)
        return True
    if way != "delete":
        path.write_bytes(bytes(data))
    return way == "delete" or bytes(data) != before


def _put_nan(path: Path) -> None:
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        _first_float(tensors).view(-1)[0] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})
        return
    with safe_globals():
        value = torch.load(path, weights_only=True)
    _first_float(value).view(-1)[0] = torch.nan
    torch.save(value, path)


def _first_float(value: Any) -> torch.Tensor:
    return next(tensor for tensor in _tensors(value) if tensor.is_floating_point() and tensor.numel() > 1)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _tensors(inner)


def ways_for(file: str, *, has_other: bool) -> list[str]:
    """What can befall a file by its kind."""
    found = list(_ANY)
    if file.endswith(_TENSORS):
        found.append(NAN)
    if file.endswith((".json", ".jsonl", ".yaml", ".jinja", ".txt")):
        # Small: the block is all of it.
        found.remove("zero block")
    return [*found, OTHER] if has_other else found


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
        other = folder / "out" / self.file.replace(f"-{_DAMAGED_STEP}/", f"-{_OTHER_STEP}/")
        if not path.exists() or not damage(path, self.way, random.Random(self.id), None if other == path else other):
            return Verdict(MISSED), noted
        named = str(folder / "out" / f"checkpoint-{_DAMAGED_STEP}")
        first = ("--resume_from_checkpoint", named) if self.by_name else RESUME
        run = shop.going_on(self.run, folder)
        verdict = after_kill(run, folder, whole.outcome, first=first, newest=_DAMAGED_STEP)
        if verdict.word == IDENTICAL:
            verdict.word = ACCEPTED if path.suffix in _TENSORS else HARMLESS
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
        if not damage(path, self.way, random.Random(self.id)):
            return Verdict(MISSED), noted
        ended, _ = shop.going_on(self.run, folder)(())
        return _judged(ended, path, path.parent, lambda: differing(outcome(folder / "out"), whole.outcome)), noted


def _judged(ended: Ended, path: Path, given: Path, differs: Callable[[], list[str]]) -> Verdict:
    """The verdict on whoever was given a folder and read a damaged file there, without a way back."""
    verdict = Verdict("", said=error_of(ended.said) if ended.code else "")
    if (wrong := fault_of(ended)) is not None:
        verdict.word, verdict.said = wrong, last_words(ended.said)
    elif ended.code:
        # What is wrong is found by its file, or by the folder that was given.
        verdict.word = REFUSED if path.name in verdict.said or str(given) in verdict.said else UNTOLD
    else:
        verdict.differs = differs()
        # That nothing came of a changed weight is luck.
        verdict.word = ACCEPTED if verdict.differs or path.suffix in _TENSORS else HARMLESS
    return verdict


@dataclass(frozen=True)
class Reader:
    """Who reads what a finished run has left.

    Attributes:
        run: whose folder is damaged; `{there}` is its output folder.
        files: of the output folder.
        recipe: run and keys of the recipe that reads them; None where it is a command.
        command: words of the command; `{new}` is a folder that it may write.
        foreign: the folder is another program's, without digests: a changed byte cannot be known.
    """

    run: str
    files: tuple[str, ...]
    recipe: tuple[str, dict[str, Any]] | None = None
    command: tuple[str, ...] = ()
    foreign: bool = False


_MODEL = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_MODEL += ("digests.json", "results.json")
_ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "digests.json")
_FROM = {"model_name_or_path": "{there}"}
_JUDGED = {"reward_model_name_or_path": ["{there}"], "reward_funcs": None, "eval_success_threshold": 0.0}
READERS = {
    "train": Reader("sft", _MODEL, ("sft", _FROM)),
    "evaluate": Reader("sft", _MODEL, ("evaluate", _FROM)),
    "reference": Reader("sft", _MODEL[:3], ("rho1", {"reference_model_name_or_path": "{there}"})),
    "chat": Reader("sft", _MODEL, command=("chat", "{there}", "--prompt", "What is 1 + 1?", "--max_new_tokens", "8")),
    "adapter": Reader("sft-lora", _ADAPTER, ("sft", _FROM)),
    "merge": Reader("sft-lora", _ADAPTER, command=("merge", "{there}", "{new}/out")),
    "judge": Reader("reward", _MODEL[:4], ("grpo", _JUDGED)),
    "value": Reader(
        "critic",
        ("value_head/value_head.safetensors", "value_head/value_head.json", "model.safetensors", "config.json"),
        ("mtp", {"value_model_name_or_path": "{there}"}),
    ),
    "heads": Reader("mtp", ("future_heads/model.safetensors", "future_heads/config.json"), ("mtp", _FROM)),
    "report": Reader("sft", ("metrics.jsonl", "results.json", "recipe.yaml"), command=("report", "{there}")),
    "search": Reader(
        "index",
        ("index/index.json", "index/pages.jsonl", "index/ranking/data.csc.index.npy", "index/ranking/vocab.index.json"),
        command=("search", "{there}/index", "weather of the coast"),
    ),
    "foreign": Reader("foreign", ("model.safetensors", "config.json", "tokenizer.json"), ("sft", _FROM), foreign=True),
}


@dataclass(frozen=True)
class Read:
    """A file of a finished run is damaged before something else reads it."""

    reader: str
    file: str
    way: str
    kind: str = field(default="damage", init=False)

    @property
    def id(self) -> str:
        return f"damage/{self.reader}/{self.file}/{self.way}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Damages, reads and judges."""
        expected, noted = _sound(self.reader, shop), {"file": self.file, "way": self.way}
        there = _there(READERS[self.reader], shop)
        path = there / self.file
        other = there / f"checkpoint-{_DAMAGED_STEP}" / self.file
        if not path.exists() or not damage(path, self.way, random.Random(self.id), other):
            return Verdict(MISSED), noted
        ended, found = _read(self.reader, there, shop)
        return _judged(ended, path, there, lambda: differing(found, expected)), noted


def _there(reader: Reader, shop: Workshop) -> Path:
    if not reader.foreign:
        return shop.finished(reader.run) / "out"
    there = shop.folder / "places" / "foreign"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(shop.inputs / "model", there)
    return there


def _sound(name: str, shop: Workshop) -> dict[str, str]:
    """What a reader comes to where nothing is damaged."""
    kept = shop.folder / "readers" / f"{name}.json"
    if not kept.exists():
        ended, found = _read(name, _there(READERS[name], shop), shop)
        if ended.code:
            raise BrokenError(f"{name} fails without any fault:\n{ended.said[-4000:]}")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def _read(name: str, there: Path, shop: Workshop) -> tuple[Ended, dict[str, str]]:
    reader, new = READERS[name], shop.folder / "places" / f"reader-{name}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    place = {"{there}": str(there), "{new}": str(new)}
    if reader.recipe is not None:
        run, keys = reader.recipe
        words = ["run", str(write_recipe(run, shop.inputs, new, **_placed(keys, place)))]
    else:
        words = _placed(list(reader.command), place)
    ended = shop.server().run(words, new, control=shop.control)
    if ended.code:
        return ended, {}
    found = outcome(new / "out") if (new / "out").exists() else {"printed": ended.printed}
    return ended, found


def _placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _placed(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, places) for inner in value]
    if isinstance(value, str):
        for mark, path in places.items():
            value = value.replace(mark, path)
    return value


_OF_CHECKPOINTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_OF_CHECKPOINTS += ("config.json", "digests.json", "run.json")
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


def damages() -> list[Resumed | Cached | Read]:
    """All damages, each once."""
    found: list[Resumed | Cached | Read] = []
    for run, own in _OF_STAGES.items():
        for name in (*own, *_OF_CHECKPOINTS):
            ways = [way for way in ways_for(name, has_other=True) if run == _IN_FULL or name in own or way in _A_FEW]
            file = f"checkpoint-{_DAMAGED_STEP}/{name}"
            found += [Resumed(run, file, way) for way in ways]
            if run == _IN_FULL:
                found += [Resumed(run, file, way, by_name=True) for way in ways if way in _A_FEW]
        if run == _IN_FULL:
            found += [Resumed(run, file, way) for file in _BESIDE for way in ways_for(file, has_other=False)]
    for run, files in _CACHES.items():
        found += [Cached(run, file, way) for file in files for way in ways_for(file, has_other=False)]
    for name, reader in READERS.items():
        for file in reader.files:
            unknowable = ("flip", "zero block", "append", OTHER) if reader.foreign else ()
            ways = ways_for(file, has_other=not reader.foreign and file in _OF_CHECKPOINTS)
            found += [Read(name, file, way) for way in ways if way not in unknowable]
    return found
