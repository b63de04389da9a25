"""The words of the command line: its commands, their flags and their help."""

import argparse

from hpt_trl.chat import commands as chat
from hpt_trl.data.pages import commands as pages
from hpt_trl.errors import UserError
from hpt_trl.help_text import HelpText, path_word
from hpt_trl.hub import commands as hub
from hpt_trl.recipes.bundled import bundled_recipes, recipe_name
from hpt_trl.reports import commands as reports
from hpt_trl.retrieval import commands as retrieval
from hpt_trl.settings.values import did_you_mean
from hpt_trl.version import __version__

DESCRIPTION = """\
Post-training recipes for language models on Hugging Face's trainers.

A recipe is one small YAML: `stage: hpt` and flat keys, the fields of the stage's trainer
config and of TRL's ModelConfig. Any key can be set on the command line as well. A pipeline
(`stage: pipeline`) is a YAML of such stages, each of which may start from what others left."""

EXAMPLES = """\
examples:
  hpt-trl list
  hpt-trl check quickstart
  hpt-trl run quickstart --max_steps 20 --output_dir outputs/short
  hpt-trl run my_recipe.yaml --use_peft true --reward_funcs math_answer boxed_format
  hpt-trl run my_pipeline.yaml --sft.max_steps 5
  hpt-trl run my_recipe.yaml --accelerate zero3 --num_processes 8
  hpt-trl eval evaluate/humaneval --model_name_or_path outputs/my-model
  hpt-trl report outputs/quickstart
  hpt-trl report outputs/short outputs/longer --output compared.html
  hpt-trl chat outputs/quickstart
  hpt-trl merge outputs/with-lora outputs/merged
  hpt-trl push outputs/quickstart --hub_model_id me/quickstart
  hpt-trl index my_pages indexes/mine
  hpt-trl search indexes/mine "What was sold most?"
  hpt-trl pages outputs/pages --size 400 --layouts table chart
  hpt-trl doctor my_recipe.yaml"""

OVERRIDES = """\
overrides (they stand above the recipe, the recipe above the defaults):
  --key value           --max_steps 20          --key=value is the same
  --key value value     --reward_funcs math_answer boxed_format
  --key '{name: value}' --dataset_options '{size: 200}'   (YAML or JSON)
  --key                 --use_peft              (a boolean: true)
  --stage.key value     --sft.max_steps 5       (of a pipeline's stage)

processes (how many, and what they share out; `check` shows what that comes to):
  --accelerate NAME     a profile of accelerate_configs/, or a file of `accelerate config`
  --num_processes N     of all machines together; else the profile's number
  --num_machines N --machine_rank I --main_process_ip ADDRESS --main_process_port PORT
  --launcher ray --num_workers N --max_failures N       Ray instead of accelerate

  --json                print the outcome as JSON on stdout, all else on stderr (not score-reference)"""

# Of the commands that take a recipe: examples of each, above what all of them take.
_EXAMPLES_OF = {
    "run": """\
  hpt-trl run quickstart
  hpt-trl run quickstart --max_steps 20 --output_dir outputs/short
  hpt-trl run my_recipe.yaml --accelerate zero3 --num_processes 8
  hpt-trl run pipeline/rlhf-tiny --sft.max_steps 5""",
    "eval": """\
  hpt-trl eval evaluate/humaneval --model_name_or_path outputs/my-model
  hpt-trl eval outputs/my-evaluation --reward_funcs math_answer    (scores again what was written)""",
    "check": """\
  hpt-trl check quickstart
  hpt-trl check my_recipe.yaml --use_peft true --max_completion_length 1024
  hpt-trl check my_recipe.yaml --measure
  hpt-trl check ppo/tinyllama-1.1b-positive-words --accelerate zero2 --num_processes 4""",
    "score-reference": """\
  hpt-trl score-reference rho1/stories-tiny
  hpt-trl score-reference my_rho1.yaml --accelerate multi_gpu --num_processes 4""",
}

RECIPE_COMMANDS = ("run", "eval", "check", "score-reference")
# Those whose output is data, which `--json` prints as such.
JSON_COMMANDS = ("run", "eval", "check", "list", "report", "search", "doctor")

COMPLETION = """\
examples: once, in this shell:
  eval "$(hpt-trl completion bash)"
for all shells that begin later:
  hpt-trl completion bash > ~/.local/share/bash-completion/completions/hpt-trl
  hpt-trl completion zsh > ~/.zfunc/_hpt-trl        with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  hpt-trl completion fish > ~/.config/fish/completions/hpt-trl.fish

The names of the bundled recipes stand in the script: write it again after an update."""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line; overrides of a recipe are left as words."""
    parser = argparse.ArgumentParser(
        prog="hpt-trl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=HelpText, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hpt-trl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, short, long in (
        ("run", "train and evaluate by a recipe", "Train by a recipe and evaluate before and after; see `list`."),
        (
            "eval",
            "measure a model by a recipe of `stage: evaluate`",
            "Measure a model: pass@k, avg@k, maj@k, perplexity, win rate. Completions are kept: the command goes on "
            "where it was stopped, and given again with other rewards or another k it only scores. In place of the "
            "recipe the output folder of an evaluation may be named.",
        ),
        (
            "check",
            "check a recipe without loading weights",
            "Check a recipe: keys, values, files, columns, first rows, and what it costs: batch, steps, an estimate of "
            "the peak memory of a process. What the recipe needs and this machine lacks is told at the end, with "
            "what installs it; where that is the model or the rows, the cost is told by published sizes. With "
            "--measure a step is taken, in a process of its own that saves and reports nothing.",
        ),
        (
            "score-reference",
            "fill the cache of a Rho-1 recipe's reference",
            "Score a Rho-1 recipe's rows with its reference, for the training to find. What is there is kept: the "
            "command can be stopped and given again.",
        ),
    ):
        command = commands.add_parser(
            name,
            help=short,
            description=long,
            epilog=f"examples:\n{_EXAMPLES_OF[name]}\n\n{OVERRIDES}",
            formatter_class=HelpText,
            usage=f"hpt-trl {name} RECIPE [--key value ...]",
            allow_abbrev=False,
        )
        command.add_argument(
            "recipe", type=path_word, metavar="RECIPE", help="a YAML file, or the name of a bundled recipe"
        )
        command.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    listed = commands.add_parser(
        "list",
        help="list the bundled recipes",
        description="List the bundled recipes.",
        epilog="examples:\n  hpt-trl list\n  hpt-trl list --json",
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    listed.add_argument("--json", action="store_true", help="print them as JSON")
    schema = commands.add_parser(
        "schema",
        help="write the JSON Schema by which editors complete recipes",
        description="Write the JSON Schema of recipes and pipelines, for the versions of TRL and Transformers that are "
        "installed. An editor that knows YAML completes and checks a recipe whose first line names the file: "
        "`# yaml-language-server: $schema=recipe.schema.json`",
        epilog="examples:\n  hpt-trl schema recipe.schema.json\n  hpt-trl schema > recipe.schema.json",
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    schema.add_argument("file", nargs="?", type=path_word, metavar="FILE", help="by default it is printed")
    reports.add_commands(commands)
    merge = commands.add_parser(
        "merge",
        help="merge a LoRA adapter into its base model",
        description="Merge the adapter that a run with `use_peft` left into its base model, and write the whole model.",
        epilog="examples:\n  hpt-trl merge outputs/with-lora outputs/merged\n"
        "  hpt-trl merge me/with-lora outputs/merged",
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    merge.add_argument(
        "folder", type=path_word, metavar="FOLDER", help="output folder of the run, or its Hub id (owner/name)"
    )
    merge.add_argument(
        "output_dir", type=path_word, metavar="OUTPUT_DIR", help="new or empty folder for the whole model"
    )
    merge.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id (main)")
    hub.add_commands(commands)
    retrieval.add_commands(commands)
    pages.add_commands(commands)
    doctor = commands.add_parser(
        "doctor",
        help="show what is installed, and what recipes need",
        description="Show what is installed, whether it fits together, the devices, and what the named recipes need. "
        "Exit code 1 when one of them cannot run here.",
        epilog="examples:\n  hpt-trl doctor\n  hpt-trl doctor quickstart my_recipe.yaml\n  hpt-trl doctor --json",
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    doctor.add_argument(
        "recipes", type=path_word, nargs="*", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    chat.add_commands(commands)
    completion = commands.add_parser(
        "completion",
        help="complete commands and recipes in a shell",
        description="Print the script by which a shell completes commands, flags, bundled recipes and folders.",
        epilog=COMPLETION,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    return parser


def check_command(parser: argparse.ArgumentParser, word: str) -> None:
    """Refuses a word that is no command.

    Args:
        parser: that of `build_parser`.

    Raises:
        UserError: the message gives the nearest command, or the one that runs a recipe.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if word in commands.choices:
        return
    short = word[:200]
    is_recipe = word.endswith((".yaml", ".yml")) or any(word == recipe_name(path) for path in bundled_recipes())
    meant = f" Did you mean `hpt-trl run {short}`?" if is_recipe else did_you_mean(word, commands.choices)
    raise UserError(f"there is no command `{short}`.{meant} Commands: {', '.join(commands.choices)}.")
