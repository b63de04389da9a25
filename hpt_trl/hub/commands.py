"""The command of the Hub: `hpt-trl push`."""

import argparse
from dataclasses import replace
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.help_text import HelpText, path_word
from hpt_trl.settings.values import WORDS_FOR_FALSE, WORDS_FOR_TRUE

_EXAMPLES = """\
examples:
  hpt-trl push outputs/quickstart
  hpt-trl push outputs/quickstart --hub_model_id me/quickstart --private true
  hpt-trl push outputs/rlhf/ppo --revision second-try --message "twice the steps"

The token is that of `hf auth login`, or HF_TOKEN."""


def add_commands(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "push",
        help="push a finished run to the Hub",
        description="Push the model of a finished run to the Hub, with its card, recipe, results and curves. What is "
        "up already is not sent again: a push that failed is repeated by the same command.",
        epilog=_EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=path_word, metavar="OUTPUT_DIR", help="output folder of the run, or of a pipeline's stage"
    )
    parser.add_argument("--hub_model_id", metavar="NAME", help="repository: owner/name, or a name of your own")
    parser.add_argument(
        "--private", metavar="BOOL", help="true or false, of a repository that is made (owner's default)"
    )
    parser.add_argument("--revision", metavar="NAME", help="branch; made where it is not there (main)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--overwrite", metavar="BOOL", help="true: also over what is no run of hpt-trl (false)")


def push(options: argparse.Namespace) -> None:
    """Push a run.

    Raises:
        UserError: the folder holds no finished run, or the Hub does not take it.
    """
    from hpt_trl.hub.destination import branch, destination
    from hpt_trl.hub.pushing import push as push_run
    from hpt_trl.hub.pushing import told
    from hpt_trl.hub.run_folder import read_run_folder

    private, overwrite = _bool("--private", options.private), _bool("--overwrite", options.overwrite)
    wanted = destination(read_run_folder(options.folder).recipe, options.folder)
    wanted = replace(
        wanted,
        name=options.hub_model_id or wanted.name,
        private=wanted.private if private is None else private,
        revision=wanted.revision if options.revision is None else branch(options.revision),
        overwrite=wanted.overwrite if overwrite is None else overwrite,
    )
    print(told(push_run(options.folder, wanted, options.message)))


def _bool(name: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in WORDS_FOR_TRUE + WORDS_FOR_FALSE:
        raise UserError(f"{name}: {text} is not allowed; allowed: true or false.")
    return text.lower() in WORDS_FOR_TRUE
