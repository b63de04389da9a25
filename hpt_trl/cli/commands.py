"""What each command of the command line does: nothing heavy is imported before it is needed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.chat import commands as chat
from hpt_trl.cli.parser import JSON_COMMANDS, RECIPE_COMMANDS, build_parser, check_command
from hpt_trl.data.pages import commands as pages
from hpt_trl.errors import Collector, UserError
from hpt_trl.hub import commands as hub
from hpt_trl.reports import commands as reports
from hpt_trl.retrieval import commands as retrieval
from hpt_trl.run_files import RECIPE_FILE
from hpt_trl.runs.quiet import say
from hpt_trl.settings.secrets import take_token

if TYPE_CHECKING:
    from hpt_trl.launching.options import LaunchOptions


def run_command(words: list[str]) -> int:
    """Parses the words, runs the command they name and returns its exit code.

    With `--json` what came out is printed, also the mistakes for which `check` refuses a recipe.
    """
    parser = build_parser()
    as_json = "--json" in words and words[0] in JSON_COMMANDS and not {"--help", "-h"} & set(words)
    words = [word for word in words if not (as_json and word == "--json")]
    try:
        options = _parsed(parser, words)
        return _as_json(options) if as_json else _run(parser, options)
    except UserError as error:
        if as_json and words[0] == "check":
            from hpt_trl import as_json as written

            print(written.text(written.mistaken(error)))
        raise


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    if words and words[0] in RECIPE_COMMANDS:
        # Before anything is parsed, since a complaint may quote the words, as the line of a launch does.
        words = take_token(words)
    if words and not words[0].startswith("-"):
        check_command(parser, words[0])
    if len(words) == 1 and words[0] in RECIPE_COMMANDS:
        # argparse would ask for the overrides as well.
        raise UserError(
            f"hpt-trl {words[0]} needs a recipe: a YAML file, or the name of a bundled one (`hpt-trl list`), as in "
            f"`hpt-trl {words[0]} quickstart`."
        )
    if len(words) > 1 and words[0] in RECIPE_COMMANDS and words[1].startswith("--") and words[1] != "--help":
        raise UserError(f"the recipe comes before its overrides: hpt-trl {words[0]} RECIPE {words[1]} ...")
    if words and words[0] not in RECIPE_COMMANDS and words.count("--") > 1:
        # argparse would make a list of what it takes for a word.
        raise UserError("`--` stands there more than once; what follows the first are words, and not options.")
    return parser.parse_args(words)


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.command == "list":
        from hpt_trl.recipes.listing import recipe_table

        print(recipe_table())
    elif options.command == "schema":
        from hpt_trl.recipes.schema import write_schema

        write_schema(None if options.file is None else Path(options.file))
    elif options.command == "report":
        reports.report(options)
    elif options.command == "merge":
        from hpt_trl.hub.merged import merge_run

        merge_run(options.folder, options.output_dir, revision=options.revision)
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
        return _with_recipe(options.command, options.recipe, options.overrides)
    return 0


def _as_json(options: argparse.Namespace) -> int:
    """Runs a command and prints what came out as JSON; whatever else it prints goes to stderr."""
    from hpt_trl import as_json

    with as_json.stdout_on_stderr():
        code, value = _json_value(options)
    if value is not None:
        print(as_json.text(value))
    return code


def _json_value(options: argparse.Namespace) -> tuple[int, Any]:
    """Runs a command; its exit code, and what came out."""
    from hpt_trl import as_json

    code = 0
    value: Any = None
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
    return code, value


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
    measures = command == "check" and "--measure" in words
    words = [word for word in words if not (measures and word == "--measure")]
    mistakes = Collector()
    options, overrides = split_launch_options(words, mistakes)
    refuse_inside_a_launcher(options)
    _check_early(command, recipe, overrides, options, mistakes)
    if command == "check":
        from hpt_trl.launching.accelerate import planned_profile
        from hpt_trl.planning.check import check, with_measured

        checked = check(recipe, overrides, planned_profile(options))
        told(with_measured(checked, recipe, overrides, options) if measures else checked)
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


def _check_early(
    command: str, recipe: str, overrides: list[str], options: "LaunchOptions", mistakes: Collector
) -> None:
    """Tells mistakes that show without torch, with those of the options, before the seconds of its import."""
    from hpt_trl.launching.accelerate import chosen_profile
    from hpt_trl.runs.early import check_run, check_scoring

    processes = options.num_workers
    if options.accelerate is not None:
        with mistakes.noted():
            processes = chosen_profile(options).num_processes
    if mistakes.errors:
        processes = 0
    with mistakes.noted():
        if command == "score-reference":
            check_scoring(recipe, overrides, processes)
        else:
            check_run(recipe, overrides, processes, planned=command == "check")
    mistakes.settle()


def _evaluation(recipe: str, words: list[str]) -> tuple[str, list[str]]:
    """Recipe and overrides of `hpt-trl eval`; a folder stands for the evaluation that it holds."""
    from hpt_trl.recipes.bundled import find_recipe
    from hpt_trl.recipes.pipeline_keys import PIPELINE
    from hpt_trl.recipes.stages import STAGE_MODULES
    from hpt_trl.settings.file import read_recipe_file

    stored = Path(recipe) / RECIPE_FILE
    if Path(recipe).is_dir():
        if not stored.is_file():
            raise UserError(f"{recipe} holds no evaluation (recipe.yaml); name its recipe, or its output folder.")
        recipe, words = str(stored), ["--output_dir", recipe, *words]
    stage = read_recipe_file(find_recipe(recipe), Collector()).values.get("stage")
    if stage in (*STAGE_MODULES, PIPELINE) and stage != "evaluate":
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
