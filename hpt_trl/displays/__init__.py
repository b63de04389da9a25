"""What a notebook shows of runs: objects with a rich display, each with plain text for everywhere else."""

from hpt_trl.runs.quiet import quiet_libraries

# Before a module of this folder imports the libraries.
quiet_libraries()
