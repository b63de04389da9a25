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
    """Writes the records of a checkpoint into the output folder; of a former version's, which has none, they stay."""
    for name in _RECORDS:
        if (checkpoint / name).is_file():
            write_atomically(folder / name, (checkpoint / name).read_text(encoding="utf-8"))
