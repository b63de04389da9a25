"""A run that is started anew over another one: its files are set aside until the new run has trained a step."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hpt_trl.run_files import RECIPE_FILE, REPLACED


def set_aside(folder: Path, files: Callable[[Path], list[Path]]) -> None:
    """Moves a former run's files out of the way; links are moved as links.

    Args:
        folder: Output folder of a run that is to begin.
        files: What of a folder is a run's.
    """
    replaced = folder / REPLACED
    if replaced.exists():
        # A start that was killed before it had trained: what it was to replace is still there.
        _remove(files(folder))
        return
    if found := files(folder):
        replaced.mkdir()
    for path in found:
        # The recipe, by which the folder is known as a run's, is replaced by the new one in one go.
        if path.name == RECIPE_FILE:
            shutil.copy2(path, replaced / path.name)
        else:
            os.rename(path, replaced / path.name)


@contextmanager
def put_back_on_failure(folder: Path, files: Callable[[Path], list[Path]]) -> Iterator[None]:
    """While open, a run that fails before it has trained leaves the folder as it found it; else the old files go."""
    replaced = folder / REPLACED
    try:
        yield
    except BaseException:
        if replaced.is_dir():
            _remove([path for path in files(folder) if path.name != RECIPE_FILE])
            for path in sorted(replaced.iterdir(), key=lambda path: path.name == RECIPE_FILE):
                os.replace(path, folder / path.name)
            replaced.rmdir()
        raise
    shutil.rmtree(replaced, ignore_errors=True)


class RemoveReplaced(TrainerCallback):
    """Removes a former run's files once the new one has trained a step."""

    def __init__(self, folder: Path):
        self.replaced = folder / REPLACED

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            shutil.rmtree(self.replaced, ignore_errors=True)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
