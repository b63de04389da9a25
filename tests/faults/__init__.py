"""Runs that are killed, files that are damaged, and what comes of it: `python -m tests.faults.campaign --help`."""
