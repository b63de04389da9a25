"""Pages about finished and unfinished runs, one HTML file each that needs nothing else."""
