"""`python -m hpt_trl`, the form that launchers of several processes start."""

from hpt_trl.cli import command

command()
