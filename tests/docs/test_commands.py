"""Every command of README and docs/: those of code blocks are run in the reader's folder, those within sentences read.

A run that trains is cut to a step on a tiny model (`REDUCED`), one of several processes or of a model that is not here
is resolved as `hpt-trl check` does it, a benchmark's flags go through its own parser. A command of which none of these
can be said fails the test.
"""

import argparse
import importlib
import re
import shlex
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hpt_trl.cli import build_parser, main
from hpt_trl.cli.parser import RECIPE_COMMANDS
from hpt_trl.data.generated import is_generated
from hpt_trl.launching.accelerate import planned_profile
from hpt_trl.launching.options import pipeline_words, split_launch_options
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.pipeline.reading import is_pipeline, read_plan
from hpt_trl.pipeline.record import plan_steps, read_record
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.resolving import read_recipe, resolve_recipe
from hpt_trl.rollouts import vllm_server
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
SMALLER = {"pages": "--size 6 --test_size 4"}


def run_in_the_readers_folder(command: Command, planned: set[str]) -> None:
    """Runs a command of `hpt-trl`, or what of it can be run here.

    Args:
        planned: output folders of the runs that were resolved alone; adds to them. A later command may name one.
    """
    name, *words = [STAND_INS.get(word, word) for word in command.words[1:]]
    if name not in RECIPE_COMMANDS or "--json" in words or Path(words[0]).is_dir():
        build_parser().parse_args([name, *words])
        words += shlex.split(SMALLER.get(name, ""))
        if not planned & set(words[:1]):
            assert main([name, *words]) == 0, command
        return
    recipe, overrides = words[0], words[1:]
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
    if name == "run" or name == "eval":
        planned.add(str(read_recipe(path, keys).raw["output_dir"]))
    if recipe in REDUCED and name in ("run", "eval") and not starts_processes and not asks_a_server:
        assert main([name, recipe, *keys, *shlex.split(REDUCED[recipe])]) == 0, command
    elif is_here(path, keys):
        assert name == "check" or starts_processes or asks_a_server or name == "score-reference", (
            f"{command}: add what makes it small to REDUCED"
        )
        assert main(["check", recipe, *options.words(), *keys, "--overwrite", "true"]) == 0, command
    else:
        read_recipe(path, keys, profile=planned_profile(options))


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
    """`python -m benchmarks.NAME` with flags that its own parser takes."""
    assert words[1] == "-m" and words[2].startswith("benchmarks."), words
    module = importlib.import_module(words[2])
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
    monkeypatch.setattr(sys, "argv", list(words[2:]))
    with pytest.raises(Parsed):
        module.main()


def check_other(command: Command, monkeypatch) -> None:
    """A command that is not `hpt-trl`."""
    words = command.words
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
    elif words[:2] == ("vllm", "serve"):
        assert shlex.join(words) in vllm_server.server_command(words[2], "http://localhost:8000"), command
    else:
        pytest.fail(f"{command}: the test does not know this command")


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_of_blocks_run(block: Block, reader, monkeypatch, capsys):
    commands = commands_of(block)
    assert commands, block
    # The reader makes it.
    shutil.rmtree(reader / "indexes")
    planned: set[str] = set()
    for command in commands:
        if command.words[0] == "hpt-trl":
            run_in_the_readers_folder(command, planned)
        else:
            with monkeypatch.context() as patch:
                check_other(command, patch)


@pytest.mark.parametrize("command", inline_commands(), ids=str)
def test_commands_within_sentences_can_be_given(command: Command, reader, monkeypatch):
    if command.words[0] != "hpt-trl":
        if command.words != ("pip", "install") and command.words != ("vllm", "serve"):
            check_other(command, monkeypatch)
        return
    parser = build_parser()
    words = [STAND_INS.get(word, word) for word in command.words[1:]]
    (commands,) = (action for action in parser._actions if action.dest == "command")
    assert words[0] in (*commands.choices, "--version"), command
    if len(words) == 1:
        return
    parser.parse_args(words)
    if words[0] in RECIPE_COMMANDS and not is_pipeline(path := find_recipe(words[1])):
        read_recipe(path, split_launch_options(words[2:])[1])
