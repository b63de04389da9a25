"""The command line: `hpt-trl run | eval | check | score-reference | list | report | merge | push | pages | index | …`.

Nothing heavy is imported before a command needs it, so that `hpt-trl --help` answers at once.
"""

import argparse
import atexit
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hpt_trl.chat import commands as chat
from hpt_trl.data.pages import commands as pages
from hpt_trl.errors import UserError
from hpt_trl.hub import commands as hub
from hpt_trl.reports import commands as reports
from hpt_trl.retrieval import commands as retrieval
from hpt_trl.runs.quiet import quiet_libraries, say
from hpt_trl.settings.secrets import take_token
from hpt_trl.signals import INTERRUPTED, Interrupted
from hpt_trl.version import __version__

if TYPE_CHECKING:
    from hpt_trl.launching.options import LaunchOptions

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
  hpt-trl merge outputs/with-lora outputs/merged
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

RECIPE_COMMANDS = ("run", "eval", "check", "score-reference")
# Those whose output is data, which `--json` prints as such.
JSON_COMMANDS = ("run", "eval", "check", "list", "report", "search", "doctor")

COMPLETION = """\
once, in this shell:
  eval "$(hpt-trl completion bash)"
for all shells that begin later:
  hpt-trl completion bash > ~/.local/share/bash-completion/completions/hpt-trl
  hpt-trl completion zsh > ~/.zfunc/_hpt-trl        with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  hpt-trl completion fish > ~/.config/fish/completions/hpt-trl.fish

The names of the bundled recipes stand in the script: write it again after an update."""

# Seconds that a process other than the first waits before it prints an error. Where the error is everyone's, the
# launcher ends the process within that time; where it is its own (a reward failed on its row), it must be heard.
GRACE = 5.0


def build_parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpt-trl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=plain, allow_abbrev=False
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
            "Check a recipe: keys, values, files, columns, first rows, and an estimate of peak memory.",
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
            epilog=OVERRIDES,
            formatter_class=plain,
            usage=f"hpt-trl {name} RECIPE [--key value ...]",
            allow_abbrev=False,
        )
        command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
        command.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    listed = commands.add_parser("list", help="list the bundled recipes", description="List the bundled recipes.")
    listed.add_argument("--json", action="store_true", help="print them as JSON")
    reports.add_commands(commands)
    merge = commands.add_parser(
        "merge",
        help="merge a LoRA adapter into its base model",
        description="Merge the adapter that a run with `use_peft` left into its base model, and write the whole model.",
    )
    merge.add_argument("folder", metavar="FOLDER", help="output folder of the run")
    merge.add_argument("output_dir", metavar="OUTPUT_DIR", help="new or empty folder for the whole model")
    hub.add_commands(commands)
    retrieval.add_commands(commands)
    pages.add_commands(commands)
    doctor = commands.add_parser(
        "doctor",
        help="show what is installed, and what recipes need",
        description="Show what is installed, whether it fits together, the devices, and what the named recipes need. "
        "Exit code 1 when one of them cannot run here.",
    )
    doctor.add_argument("recipes", nargs="*", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    chat.add_commands(commands)
    completion = commands.add_parser(
        "completion",
        help="complete commands and recipes in a shell",
        description="Print the script by which a shell completes commands, flags, bundled recipes and folders.",
        epilog=COMPLETION,
        formatter_class=plain,
        allow_abbrev=False,
    )
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    return parser


def run_command(words: list[str]) -> int:
    """Parses the words, runs the command they name and returns its exit code."""
    parser = build_parser()
    as_json = "--json" in words and words[0] in JSON_COMMANDS and not {"--help", "-h"} & set(words)
    words = [word for word in words if not (as_json and word == "--json")]
    if len(words) > 1 and words[0] in RECIPE_COMMANDS and words[1].startswith("--") and words[1] != "--help":
        raise UserError(f"the recipe comes before its overrides: hpt-trl {words[0]} RECIPE {words[1]} ...")
    options = parser.parse_args(words)
    if as_json:
        return _as_json(options)
    if options.command == "list":
        from hpt_trl.recipes.listing import recipe_table

        print(recipe_table())
    elif options.command == "report":
        reports.report(options)
    elif options.command == "merge":
        from hpt_trl.models.folders import check_merge

        # Before torch is imported.
        check_merge(Path(options.folder), Path(options.output_dir))
        from hpt_trl.hub.merged import keep_record
        from hpt_trl.models.merging import merge_adapter

        merge_adapter(options.folder, options.output_dir)
        keep_record(options.folder, options.output_dir)
    elif options.command == "push":
        hub.push(options)
    elif options.command == "index":
        retrieval.index(options)
    elif options.command == "search":
        retrieval.search(options)
    elif options.command == "pages":
        pages.pages(options)
    elif options.command == "chat":
        chat.chat(options)
    elif options.command == "completion":
        from hpt_trl.completion import script

        print(script(parser, options.shell, RECIPE_COMMANDS))
    elif options.command == "doctor":
        from hpt_trl.planning.doctor import doctor

        return doctor(options.recipes)
    elif {"--help", "-h"} & set(options.overrides):
        parser.parse_args([options.command, "--help"])
    else:
        return _with_recipe(options.command, options.recipe, take_token(options.overrides))
    return 0


def _as_json(options: argparse.Namespace) -> int:
    """Runs a command and prints what came out as JSON; whatever else it prints goes to stderr."""
    from hpt_trl import as_json

    code = 0
    value: Any = None
    with as_json.stdout_on_stderr():
        if options.command == "list":
            from hpt_trl.recipes.listing import recipe_records

            value = recipe_records()
        elif options.command == "report":
            value = as_json.reported(options.folders)
        elif options.command == "search":
            value = retrieval.search_data(options)
        elif options.command == "doctor":
            from hpt_trl.planning.doctor_data import doctor_data

            value = doctor_data(options.recipes)
            code = int(bool(options.recipes) and not all(recipe["can_run"] for recipe in value["recipes"]))
        elif options.command == "check":
            found: list[Any] = []
            code = _with_recipe(options.command, options.recipe, options.overrides, found.append)
            value = as_json.checked(options.recipe, found[0])
        else:
            code = _with_recipe(options.command, options.recipe, options.overrides)
            value = as_json.results_of(options.recipe, options.overrides) if code == 0 else None
    if value is not None:
        print(as_json.text(value))
    return code


def _with_recipe(
    command: str, recipe: str, words: list[str], told: Callable[[Any], object] = lambda found: None
) -> int:
    """Runs a command on a recipe or a pipeline; `told` gets what a check has found."""
    from hpt_trl.launching.options import pipeline_words, refuse_inside_a_launcher, split_launch_options
    from hpt_trl.pipeline.reading import is_pipeline
    from hpt_trl.recipes.bundled import find_recipe

    if command == "eval":
        recipe, words = _evaluation(recipe, words)
        command = "run"
    path = find_recipe(recipe)
    if is_pipeline(path):
        _with_pipeline(command, path, pipeline_words(words), told)
        return 0
    options, overrides = split_launch_options(words)
    refuse_inside_a_launcher(options)
    _check_early(command, recipe, overrides, options)
    if command == "check":
        from hpt_trl.launching.accelerate import planned_profile
        from hpt_trl.planning.check import check

        told(check(recipe, overrides, planned_profile(options)))
    elif options.launcher == "ray":
        if command != "run":
            raise UserError(f"--launcher: {command} is started by accelerate alone; allowed here: accelerate.")
        from hpt_trl.launching import ray_train

        return ray_train.launch(recipe, overrides, options)
    elif options.accelerate is not None:
        from hpt_trl.launching import accelerate

        return accelerate.launch(command, recipe, overrides, options)
    elif command == "run":
        # Its imports take seconds.
        say(f"Reading {recipe}")
        from hpt_trl.runs import runner

        runner.run(recipe, overrides)
    else:
        say(f"Reading {recipe}")
        from hpt_trl.runs.score_reference import score_reference

        score_reference(recipe, overrides)
    return 0


def _check_early(command: str, recipe: str, overrides: list[str], options: "LaunchOptions") -> None:
    """Tells mistakes that show without torch before the seconds in which it is imported."""
    from hpt_trl.launching.accelerate import chosen_profile
    from hpt_trl.recipes.early import check_early
    from hpt_trl.runs.early import check_run

    processes = options.num_workers if options.accelerate is None else chosen_profile(options).num_processes
    if command == "score-reference":
        # It leaves nothing in the output folder.
        check_early(recipe, overrides, processes)
    else:
        check_run(recipe, overrides, processes, planned=command == "check")


def _evaluation(recipe: str, words: list[str]) -> tuple[str, list[str]]:
    """Recipe and overrides of `hpt-trl eval`; a folder stands for the evaluation that it holds."""
    from hpt_trl.recipes.bundled import find_recipe
    from hpt_trl.settings.file import read_recipe_file

    stored = Path(recipe) / "recipe.yaml"
    if Path(recipe).is_dir():
        if not stored.is_file():
            raise UserError(f"{recipe} holds no evaluation (recipe.yaml); name its recipe, or its output folder.")
        recipe, words = str(stored), ["--output_dir", recipe, *words]
    stage = read_recipe_file(find_recipe(recipe)).values.get("stage")
    if stage != "evaluate":
        raise UserError(
            f"{recipe}: `stage: {stage}`; allowed here: evaluate. `hpt-trl run` runs it; to measure the model that it "
            "leaves, write a recipe of `stage: evaluate` with its folder as `model_name_or_path`."
        )
    return recipe, words


def _with_pipeline(command: str, path: Path, words: list[str], told: Callable[[Any], object]) -> None:
    if command == "score-reference":
        raise UserError(f"{path} is a pipeline; name the recipe of its stage `rho1`.")
    if command == "run":
        from hpt_trl.pipeline.run import run

        run(path, words)
    else:
        from hpt_trl.pipeline.checks import check

        told(check(path, words))


def main(words: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 after an interrupt, and that of the processes where the
        command starts some. Any other failure is a traceback.
    """
    quiet_libraries()
    rank = int(os.environ.get("RANK", "0"))
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        # torchrun starts each process in a session of its own: killed, it would leave them all behind.
        from hpt_trl.launching.processes import end_with_parent

        end_with_parent()
    try:
        return run_command(sys.argv[1:] if words is None else words)
    except UserError as error:
        if rank > 0:
            time.sleep(GRACE)
        sys.stdout.flush()
        # A reader of JSON gets one line.
        said = " ".join(str(error).split()) if "--json" in (sys.argv if words is None else words) else error
        print(f"error: {said}" if rank == 0 else f"error in process {rank}: {said}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as end:
        # Another one would interrupt Python while it takes itself apart.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        said = f". {end}" if str(end) else ""
        if rank == 0 and (said or not isinstance(end, Interrupted)):
            print(f"\ninterrupted{said}", file=sys.stderr, flush=True)
        return INTERRUPTED


def command() -> NoReturn:
    """Runs one command as the process that it is, and ends the process with the exit code.

    Where what it prints has no reader any more, that is quiet and 141, as of a process that SIGPIPE ends.
    """
    code = 1  # A traceback's.

    def leave() -> None:
        # A gloo thread lets go of a collective's tensors only after the collective has returned. Where Python is being
        # taken apart by then, it aborts the process (torch 2.13): a finished run would end with SIGABRT, and the other
        # machines would wait for it.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Registered before those of a run, it is called after them, and after the threads that a process waits for.
        atexit.register(leave)
    try:
        try:
            code = main()
        except SystemExit as end:
            # Of the parser: help, or words that are no command.
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout.fileno()):
            raise
        # Python would tell of what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _is_unread(file: int) -> bool:
    """Whether a file is a pipe that has no reader any more, as behind `| head`."""
    poll = select.poll()
    poll.register(file, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
