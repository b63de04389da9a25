"""What a notebook shows of runs: objects with a rich display, each with plain text for everywhere else."""
