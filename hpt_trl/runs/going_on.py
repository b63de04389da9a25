"""What a run that was ended says: what it left, and the command that goes on from there. Nothing heavy is imported."""

import os
import shlex
from pathlib import Path

from hpt_trl.run_files import RESULTS_FILE
from hpt_trl.runs.changes import STARTING_KEYS
from hpt_trl.runs.checkpoints import complete_checkpoints
from hpt_trl.settings.masking import masked_command

# Variable with the command that goes on where the run is a part of something larger.
COMMAND = "HPT_TRL_GOES_ON_BY"


def resuming(words: list[str]) -> list[str]:
    """Returns a run's words of the command line with which it goes on from its last checkpoint."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0].replace("-", "_") in STARTING_KEYS[:2]
        if not dropping:
            kept.append(word)
    return [*kept, "--resume_from_checkpoint", "true"]


def after_interrupt(folder: Path, command: list[str], *, goes_on: bool = False) -> str:
    """Returns what to say of a run that Ctrl-C ended.

    Args:
        folder: its output folder, which it has begun to write to.
        command: the words that started it.
        goes_on: the same command goes on with what is there.
    """
    if (folder / RESULTS_FILE).exists():
        return f"The run had come to its end: {folder / RESULTS_FILE}"
    whole = os.environ.get(COMMAND)
    checkpoints = complete_checkpoints(folder)
    if checkpoints:
        again = whole or masked_command(shlex.join(resuming(command)))
        return f"{checkpoints[-1]} is complete. Go on with:\n  {again}"
    again = whole or masked_command(shlex.join(command))
    if goes_on:
        return f"What was done is kept. Go on with:\n  {again}"
    if whole:
        return f"This stage has no checkpoint yet and begins anew; those before it are kept. Go on with:\n  {again}"
    return f"There is no checkpoint yet. Start anew with:\n  {again}"
