"""What a program may use up before it is ended."""

import math
from dataclasses import dataclass, fields

from hpt_trl.errors import UserError

# Field -> the least and the greatest value.
RANGES: dict[str, tuple[float, float]] = {
    "wall_seconds": (0.1, 86_400),
    "cpu_seconds": (0.1, 86_400),
    "memory_mib": (64, 1_048_576),
    "processes": (1, 4096),
    "file_mib": (1, 1_048_576),
    "folder_mib": (1, 1_048_576),
    "files": (1, 1_000_000),
    "open_files": (16, 1_048_576),
    "output_kib": (1, 1_048_576),
}


@dataclass(frozen=True)
class Limits:
    """The limits of one program.

    The wall clock runs for everything, processor time for the program alone: a loop is ended by the latter, so that a
    busy machine calls no correct program too slow, and what sleeps or waits by the former.

    Attributes:
        wall_seconds: of one run, from its start; a program of several inputs has `total_seconds`.
        cpu_seconds: processor time of each of its processes, over all their threads; counted in whole seconds, upwards.
        memory_mib: address space of each process, and resident memory of all of them together, in MiB.
        processes: at a time, threads included.
        file_mib: size of one file.
        folder_mib: of all files in the working folder together.
        files: number of files in the working folder.
        open_files: at a time, in one process.
        output_kib: of standard output and standard error together.

    Raises:
        UserError: a value out of its range.
    """

    wall_seconds: float = 15.0
    cpu_seconds: float = 10.0
    memory_mib: int = 1024
    processes: int = 32
    file_mib: int = 32
    folder_mib: int = 64
    files: int = 2048
    open_files: int = 64
    output_kib: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), RANGES[field.name]
            whole = field.type is int
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise UserError(f"limits of the sandbox: `{field.name}: {value!r}` must be {kind}.")
            if not math.isfinite(value) or not least <= value <= most:
                raise UserError(
                    f"limits of the sandbox: `{field.name}: {value}` is not allowed; allowed: {least:g} to {most:g}."
                )

    def total_seconds(self, runs: int) -> float:
        """Wall time of a program that is run on several inputs: that of ten runs at most."""
        return self.wall_seconds * min(max(runs, 1), 10)
