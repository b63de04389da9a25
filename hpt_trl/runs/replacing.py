"""A run that is started anew over another one: its files are set aside until the new run has trained a step."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hpt_trl.files import PARTIAL
from hpt_trl.run_files import RECIPE_FILE, REMOVING, REPLACED, REPLACING


def set_aside(folder: Path, files: Callable[[Path], list[Path]]) -> None:
    """Moves a former run's files out of the way, all or none; links are moved as links.

    Args:
        folder: Output folder of a run that is to begin.
        files: What of a folder is a run's.
    """
    put_back_half(folder)
    if (folder / REPLACED).exists():
        # A start that was killed before it had trained: what it was to replace is still there.
        _remove_new(folder, files)
        return
    if not (found := files(folder)):
        return
    replacing = folder / REPLACING
    replacing.mkdir()
    try:
        for path in found:
            # The recipe, by which the folder is known as a run's, is replaced by the new one in one go.
            if path.name == RECIPE_FILE:
                shutil.copy2(path, replacing / f"{path.name}{PARTIAL}")
                os.rename(replacing / f"{path.name}{PARTIAL}", replacing / path.name)
            else:
                os.rename(path, replacing / path.name)
        os.rename(replacing, folder / REPLACED)
    except BaseException:
        put_back_half(folder)
        raise


def put_back_half(folder: Path) -> None:
    """Puts back what a run that was killed was about to set aside, or to put back."""
    replacing = folder / REPLACING
    if not replacing.is_dir():
        return
    (replacing / f"{RECIPE_FILE}{PARTIAL}").unlink(missing_ok=True)
    for path in sorted(replacing.iterdir(), key=lambda path: path.name == RECIPE_FILE):
        os.replace(path, folder / path.name)
    replacing.rmdir()


@contextmanager
def put_back_on_failure(folder: Path, files: Callable[[Path], list[Path]]) -> Iterator[None]:
    """While open, a run that fails before it has trained leaves the folder as it found it; else the old files go."""
    put_back_half(folder)
    try:
        yield
    except BaseException:
        if (folder / REPLACED).is_dir():
            _remove_new(folder, files)
            os.rename(folder / REPLACED, folder / REPLACING)
            put_back_half(folder)
        raise
    _remove_replaced(folder)


class RemoveReplaced(TrainerCallback):
    """Removes a former run's files once the new one has trained a step."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            _remove_replaced(self.folder)


def _remove_replaced(folder: Path) -> None:
    """From here on nothing is put back, also where some of it cannot be removed."""
    if not (folder / REPLACED).is_dir():
        return
    removing = folder / REMOVING
    removing.mkdir(exist_ok=True)
    os.rename(folder / REPLACED, tempfile.mkdtemp(dir=removing))
    shutil.rmtree(removing, ignore_errors=True)


def _remove_new(folder: Path, files: Callable[[Path], list[Path]]) -> None:
    """Removes a start's own files but for the recipe, by which the folder is known as a run's."""
    for path in files(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != RECIPE_FILE:
            path.unlink()
