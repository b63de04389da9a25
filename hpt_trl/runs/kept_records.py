"""What a run has recorded up to a checkpoint lies in it, under its digests, for a run that goes on from there.

In the output folder a record may be torn or damaged by then, or be another folder's; none can be measured again.
"""

import shutil
from pathlib import Path

from hpt_trl.files import write_atomically
from hpt_trl.run_files import BEFORE_FILE, METRICS_FILE, WARNINGS_FILE

_RECORDS = (BEFORE_FILE, METRICS_FILE, WARNINGS_FILE)


def keep_records(folder: Path, checkpoint: Path) -> None:
    """Copies the records of an output folder into a checkpoint that is being written."""
    for name in _RECORDS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, checkpoint / name)


def take_up_records(checkpoint: Path, folder: Path) -> None:
    """Writes the records of the checkpoint that a run goes on from into its output folder.

    Those of a former version's checkpoint lie beside it. In another folder than the checkpoint's, what is there besides
    is of a run that came to nothing.
    """
    keeps = (checkpoint / METRICS_FILE).is_file()
    elsewhere = checkpoint.resolve().parent != folder.resolve()
    for name in _RECORDS:
        record = (checkpoint if keeps else checkpoint.parent) / name
        if record.is_file() and (keeps or elsewhere):
            write_atomically(folder / name, record.read_text(encoding="utf-8", errors="replace"))
        elif elsewhere:
            (folder / name).unlink(missing_ok=True)
