"""Every command of README and docs/: those of code blocks are run in the reader's folder, those within sentences read.

A run that trains is cut to a step on a tiny model (`REDUCED`), one of several processes or of a model that is not here
is resolved as `hpt-trl check` does it, a benchmark's flags go through its own parser. A command of which none of these
can be said fails the test.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hpt_trl.cli import main
from hpt_trl.cli.parser import JSON_COMMANDS, RECIPE_COMMANDS, build_parser
from hpt_trl.data.generated import is_generated
from hpt_trl.launching.accelerate import planned_profile
from hpt_trl.launching.options import pipeline_words, split_launch_options
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.pipeline.reading import is_pipeline, read_plan
from hpt_trl.pipeline.record import plan_steps, read_record
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.resolving import read_recipe, resolve_recipe
from hpt_trl.rollouts import vllm_server
from hpt_trl.runs.next_commands import serving
from hpt_trl.settings.file import read_recipe_file
from tests.helpers.documents import Block, Command, blocks, commands_of, inline_commands
from tests.helpers.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))

# Names that stand for the reader's own.
STAND_INS = {"RECIPE": "my_recipe.yaml", "PIPELINE": "my_pipeline.yaml", "OUTPUT_DIR": "outputs/mine"}

TINY = "--model_name_or_path tiny --max_steps 1 --warmup_steps 0"
BATCH = "--global_batch_size 4 --per_device_train_batch_size 4 --per_device_eval_batch_size 4"
STORIES = f"{TINY} {BATCH} --dataset_options '{{size: 40, test_size: 8}}'"
# What makes a run small enough; the last value of a key counts.
REDUCED = {
    "my_recipe.yaml": "--max_steps 1",
    "my_reward.yaml": "--max_steps 1",
    "quickstart": f"{TINY} {BATCH} --dataset_options '{{size: 40, test_size: 4}}' --eval_samples 2 --bf16 false",
    "pretrain/stories-tiny": f"--max_steps 1 --warmup_steps 0 {BATCH} --dataset_options '{{size: 400, test_size: 40}}' "
    "--tokenizer_vocab_size 300",
    "reward/stories-tiny": f"{STORIES} --max_length 512",
    "sft/stories-tiny": f"{STORIES} --eval_samples 2",
    "dpo/stories-tiny": f"{STORIES} --eval_samples 2 --max_length 512",
    "grpo/stories-tiny": f"{STORIES} --eval_samples 2 --num_generations 2 --reward_model_name_or_path null "
    "--reward_funcs tests.helpers.stage_runs.remainder --reward_weights 1 --eval_success_threshold 6.5 "
    "--max_completion_length 8",
    "ppo/smollm2-135m-positive-words": f"{TINY} --num_train_epochs 1 --eval_samples 1 --eval_num_generations 2 "
    "--generation_batch_size 4 --global_batch_size 4 --per_device_train_batch_size 4 --bf16 false --num_iterations 1",
    "rho1/smollm2-135m-gsm8k": f"{TINY} {BATCH} --reference_model_name_or_path reference --test_split_size 4 "
    "--reference_cache_dir caches/reference --bf16 false --max_length 256",
    "ref_tuning/stories-tiny": f"{STORIES} --n_samples 20 --n_test_samples 4",
    "evaluate/gsm8k": "--dataset_name gsm8k.jsonl --dataset_config null --max_rows 2 --max_completion_length 8 "
    "--bf16 false",
}

# The same of commands without a recipe.
SMALLER = {"pages": "--size 6 --test_size 4", "chat": "--prompt 'What is 1 + 1?' --max_new_tokens 4"}

# Folders that a reader of the page has from elsewhere -> which of the reader's earlier runs they are (tests/helpers).
EARLIER = {
    "outputs/quickstart": "run",
    "outputs/short": "run",
    "outputs/longer": "run",
    "outputs/base": "run",
    "outputs/adapter": "adapter",
    "outputs/rlhf-tiny": "pipeline",
}

# What a reader of the page has on the Hub: the earlier run of an adapter.
PUSHED = "me/my-lora"


def run_in_the_readers_folder(command: Command, planned: set[str]) -> None:
    """Runs a command of `hpt-trl`, or what of it can be run here.

    Args:
        planned: output folders of the runs that were resolved alone; adds to them. A later command may name one.
    """
    name, *words = [STAND_INS.get(word, word) for word in command.words[1:]]
    if name not in RECIPE_COMMANDS or "--json" in words or Path(words[0]).is_dir():
        build_parser().parse_args([name, *words])
        words += shlex.split(SMALLER.get(name, ""))
        for word in words if name in ("report", "chat", "merge", "push") else ():
            if word in EARLIER and not Path(word).exists():
                shutil.copytree(Path("earlier", EARLIER[word]), word)
        if not planned & {word for word in words[:1] if not Path(word).exists()}:
            assert main([name, *words]) == 0, command
        return
    recipe, shown = words[0], words.count("--json")
    # What `--measure` takes, a training of two steps, is shown by a test of its own.
    overrides = [word for word in words[1:] if word not in ("--json", "--measure")]
    path = find_recipe(recipe)
    if is_pipeline(path):
        # They are run by tests/pipeline, which is minutes: here their stages are read with the words given.
        plan = read_plan(path, pipeline_words(overrides))
        for step in plan_steps(plan, read_record(plan.output_dir)):
            resolve_recipe(plan.sources(step.stage, step.words), None, plan.profile)
        planned.add(str(plan.output_dir))
        return
    options, keys = split_launch_options(overrides)
    if read_recipe_file(path).values.get("vllm") in ("colocate", "server") and find_spec("vllm") is None:
        keys = [*keys, "--vllm", "null"]
    starts_processes = name == "run" and options.given
    asks_a_server = "--vllm" in overrides
    if asks_a_server:
        keys = keys[: keys.index("--vllm")]
    if recipe in REDUCED and name in ("run", "eval") and not starts_processes and not asks_a_server:
        given = [name, recipe, *keys, *shlex.split(REDUCED[recipe])]
        assert (run_with_trackers(command, given) if "--report_to" in keys else main(given)) == 0, command
        return
    if name == "run" or name == "eval":
        planned.add(str(read_recipe(path, keys).raw["output_dir"]))
    if is_here(path, keys):
        assert name == "check" or starts_processes or asks_a_server or name == "score-reference", (
            f"{command}: add what makes it small to REDUCED"
        )
        assert main(["check", recipe, *options.words(), *keys, "--overwrite", "true", *["--json"] * shown]) == 0
    else:
        read_recipe(path, keys, profile=planned_profile(options))


def run_with_trackers(command: Command, words: list[str]) -> int:
    """Runs a command in a process of its own, since trackers read their variables once, and returns its exit code."""
    paths = os.pathsep.join([str(ROOT), str(Path.cwd())])
    places = {"PYTHONPATH": paths, "TRACKIO_DIR": str(Path.cwd() / "trackio"), **dict(command.variables)}
    return subprocess.run([sys.executable, "-m", "hpt_trl", *words], env=os.environ | places, timeout=300).returncode


def is_here(path: Path, overrides: list[str]) -> bool:
    """Whether a recipe's model and data need no Hub, no other run and no download."""
    recipe = read_recipe(path, overrides)
    model, data = (str(recipe.raw.get(key, "")) for key in ("model_name_or_path", "dataset_name"))
    return all(not name or name in BUILT_IN or is_generated(name) or Path(name).exists() for name in (model, data))


def check_extras(words: tuple[str, ...]) -> None:
    """`pip install` of this package with extras that there are, or of files and packages that the project names."""
    assert words[:2] == ("pip", "install")
    for word in [word for word in words[2:] if word not in ("-e", "-r", "--no-deps")]:
        if word.endswith(".txt"):
            assert (ROOT / word).is_file(), word
            continue
        requirement = Requirement(re.sub(r"^\.", PROJECT["name"], word).replace("git+URL", "git+https://host/it"))
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(PROJECT["optional-dependencies"]), word
        else:
            known = [Requirement(text).name for group in PROJECT["optional-dependencies"].values() for text in group]
            assert requirement.name in known, word


def check_flags(words: tuple[str, ...], monkeypatch) -> None:
    """`python -m NAME` of benchmarks or tests, or `python notebooks/NAME.py`, with flags that its own parser takes."""
    if words[1] == "-m":
        assert words[2].startswith(("benchmarks.", "tests.")), words
        name, given = words[2], words[2:]
    else:
        assert words[1].startswith("notebooks/") and (ROOT / words[1]).is_file(), words
        name, given = words[1].removesuffix(".py").replace("/", "."), words[1:]
    module = importlib.import_module(name)
    parse, depth = argparse.ArgumentParser.parse_known_args, 0

    class Parsed(Exception):
        pass

    def parsed(self, *arguments, **keywords):
        nonlocal depth
        depth += 1
        try:
            found, unknown = parse(self, *arguments, **keywords)
        finally:
            depth -= 1
        if depth == 0:
            assert not unknown, f"{shlex.join(words)}: there is no {unknown}"
            raise Parsed
        return found, unknown

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)
    monkeypatch.setattr(sys, "argv", list(given))
    with pytest.raises(Parsed):
        module.main()


def check_other(command: Command, monkeypatch) -> None:
    """A command that is not `hpt-trl`."""
    words = tuple(word for word in command.words if word != "…")
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS, command
    elif words[0] == "pip":
        check_extras(words)
    elif words[0] == "python":
        check_flags(words, monkeypatch)
    elif words[0] == "pytest":
        paths = [word for word in words[1:] if word.startswith("tests")]
        assert paths and all((ROOT / path).exists() for path in paths), command
    elif words[0] == "source":
        assert words[1] == ".venv/bin/activate", command
    elif words[:2] == ("vllm", "serve") and "--enable-lora" in words:
        folder = Path(words[-1].partition("=")[2])
        shutil.copytree("earlier/adapter", folder)
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert shlex.join(words).replace("BASE", base) == serving(folder), command
    elif words[:2] == ("vllm", "serve") and Path(words[2]).parts[0] == "outputs":
        assert shlex.join(words) == serving(Path(words[2])), command
    elif words[:2] == ("vllm", "serve"):
        assert shlex.join(words) in vllm_server.server_command(words[2], "http://localhost:8000"), command
    else:
        pytest.fail(f"{command}: the test does not know this command")


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_of_blocks_run(block: Block, reader, request, monkeypatch, capsys):
    commands = commands_of(block)
    assert commands, block
    if any("push" in word for command in commands for word in command.words):
        request.getfixturevalue("hub")
    if any(PUSHED in command.words for command in commands):
        request.getfixturevalue("hub").take(PUSHED, "earlier/adapter")
    # The reader makes it.
    shutil.rmtree(reader / "indexes")
    planned: set[str] = set()
    for command in commands:
        if command.words[0] == "hpt-trl":
            run_in_the_readers_folder(command, planned)
        else:
            with monkeypatch.context() as patch:
                check_other(command, patch)


def test_the_page_of_commands_has_them_all():
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    page = ROOT / "docs" / "recipes.md"
    named = {line.words[1] for block in blocks("bash") if block.page == page for line in commands_of(block)}
    assert named >= set(commands.choices)


def test_the_page_of_json_has_every_command():
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    table, _, others = (ROOT / "docs" / "json.md").read_text().partition("`hpt-trl --version`")
    first_cells = re.findall(r"(?m)^\| (`.*?`) \| ", table)
    assert {name for cell in first_cells for name in re.findall(r"`([a-z-]+)`", cell)} == set(JSON_COMMANDS)
    # `--json` is of the table's and of no other command, also where a parser takes all words as a recipe's keys.
    options = {name: parser._option_string_actions for name, parser in commands.choices.items()}
    assert {name for name, known in options.items() if "--json" in known} <= set(JSON_COMMANDS)
    assert set(re.findall(r"`([a-z][a-z-]*)`", others)) - {"hpt-trl"} == set(commands.choices) - set(JSON_COMMANDS)


@pytest.mark.parametrize("command", inline_commands(), ids=str)
def test_commands_within_sentences_can_be_given(command: Command, reader, monkeypatch):
    if command.words[0] != "hpt-trl":
        if command.words != ("pip", "install") and command.words != ("vllm", "serve"):
            check_other(command, monkeypatch)
        return
    parser = build_parser()
    words = [STAND_INS.get(word, word) for word in command.words[1:]]
    if words[0].startswith("--"):
        with pytest.raises(SystemExit, match=r"^0$"):
            parser.parse_args(words)
        return
    (commands,) = (action for action in parser._actions if action.dest == "command")
    assert words[0] in (*commands.choices, "--version"), command
    if len(words) == 1:
        return
    parser.parse_args(words)
    if words[0] in RECIPE_COMMANDS and not is_pipeline(path := find_recipe(words[1])):
        read_recipe(path, split_launch_options([word for word in words[2:] if word != "--measure"])[1])
