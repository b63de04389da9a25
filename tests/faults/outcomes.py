"""What a run came to, without what differs from run to run: times, paths, figures drawn for the eye."""

import hashlib
import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

# Not of the training: pictures and pages, settings with paths, notes of who ran and what was written when.
_LEFT_OUT = (".png", ".html", ".md", ".bin", ".lock", ".owner", ".partial")
_NAMES_LEFT_OUT = ("recipe.yaml", "run.json", "digests.json", "trackers.json", "run.owner", "pipeline.json")
_FOLDERS_LEFT_OUT = ("abandoned", "damaged", "runs", ".saving", ".removing", ".replaced", ".replacing", "recipes")
_TIMES = ("step_time", "wall_time_s", "hardware", "versions", "command", "recipe", "model", "attempts", "digests")
_TIMES += (
    "recipe_digest",
    "seconds",
    "training_seconds",
    "evaluation_seconds",
    "peak_bytes",
    "started",
    "since",
    "time",
)
_TIMES_WITHIN = ("runtime", "per_second", "profiling", "_path", "_dir", "/time")


def outcome(folder: Path) -> dict[str, str]:
    """Returns name -> digest of what each file below an output folder says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or path.suffix in _LEFT_OUT or path.name in _NAMES_LEFT_OUT:
            continue
        if not any(part in _FOLDERS_LEFT_OUT for part in name.parts):
            found[str(name)] = _digest(_said(path, folder))
    return found


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names of what is missing or says something else."""
    return [name for name, digest in expected.items() if found.get(name) != digest]


def _said(path: Path, folder: Path) -> Any:
    # What is no JSON was damaged, and stayed so.
    with suppress(ValueError):
        if path.suffix == ".json":
            return _timeless(json.loads(path.read_text()), str(folder.parent))
        if path.suffix == ".jsonl":
            return [_timeless(json.loads(line), str(folder.parent)) for line in path.read_text().splitlines()]
    if path.suffix not in (".pt", ".pth"):
        return path.read_bytes()
    if any(part.startswith("global_step") for part in path.parts):
        # Of DeepSpeed, with objects of its own: their tensors.
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in sorted(archive.namelist()) if "/data/" in name]
    with safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


def _timeless(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        # PEFT writes a set.
        value = {key: sorted(inner) if key == "target_modules" else inner for key, inner in value.items()}
        kept = {key: inner for key, inner in value.items() if not _is_time(key)}
        return {key: _timeless(inner, folder) for key, inner in kept.items()}
    if isinstance(value, list):
        return [_timeless(inner, folder) for inner in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def _is_time(key: str) -> bool:
    return key in _TIMES or any(part in key for part in _TIMES_WITHIN)


def _digest(value: Any) -> str:
    made = hashlib.sha256()
    _add(value, made)
    return made.hexdigest()


def _add(value: Any, made: Any) -> None:
    """Adds a value to a digest; two that are equal give the same."""
    if isinstance(value, torch.Tensor):
        made.update(f"{value.dtype}{tuple(value.shape)}".encode())
        made.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            made.update(str(key).encode())
            _add(value[key], made)
    elif isinstance(value, list | tuple):
        for inner in value:
            _add(inner, made)
            made.update(b",")
    elif hasattr(value, "tobytes"):
        made.update(value.tobytes())
    else:
        made.update(value if isinstance(value, bytes) else repr(value).encode())
