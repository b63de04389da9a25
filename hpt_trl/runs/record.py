"""What results.json says of a run beside its figures: recipe, versions, hardware."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hpt_trl.recipes.bundled import recipe_name, recipes_folder
from hpt_trl.version import __version__

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")


def short_name(path: Path) -> str:
    """A recipe's name: of a bundled one as `hpt-trl list` has it, else its file's without the ending."""
    return recipe_name(path) if path.resolve().is_relative_to(recipes_folder()) else path.stem


def versions() -> dict[str, str]:
    """Of this package, Python, and what decides about figures."""
    return {"hpt_trl": __version__, "python": platform.python_version()} | {
        package: version(package) for package in _PACKAGES
    }


def hardware(device: torch.device, processes: int, peak_bytes: int | None) -> dict[str, Any]:
    """The device of the first process, how many there were, and what one of them held at most."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "cpu_threads": torch.get_num_threads(),
    }
    if peak_bytes is not None:
        found["peak_memory_gib"] = round(peak_bytes / 2**30, 3)
    return found
