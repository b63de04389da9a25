"""The command line: `hpt-trl run | eval | check | list | report | chat | merge | push | index | search | …`.

Nothing heavy is imported before a command needs it, so that `hpt-trl --help` answers at once.
"""

from hpt_trl.cli.parser import build_parser
from hpt_trl.cli.process import command, main

__all__ = ["build_parser", "command", "main"]
