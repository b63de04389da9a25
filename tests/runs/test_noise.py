"""What a run prints on both of its streams is this package's own: no library's warning, notice or bar beside it."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.helpers.processes import ENVIRONMENT
from tests.helpers.stage_runs import LORA
from tests.helpers.tiny import save_tiny_model
from tests.methods.vrag.test_runs import training as searching  # noqa: F401

# Runs one after the other in one process, each with what it prints on the descriptors of its two streams.
_RUNS = """
import json, os, sys
from hpt_trl.cli import main
folder, found = sys.argv[1], []
kept = os.dup(1)
for number, words in enumerate(json.loads(sys.argv[2])):
    for stream in (1, 2):
        file = os.open(f"{folder}/{number}-{stream}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    found.append(main(["run", *words]))
    sys.stdout.flush()
    sys.stderr.flush()
os.write(kept, json.dumps(found).encode())
"""
RL = {"num_generations": 2, "max_completion_length": 8, "eval_samples": 3}
RL["reward_funcs"] = ["tests.helpers.stage_runs.remainder"]
DRAWN = {"eval_samples": 3, "eval_success_threshold": 9.0}
STAGES = {
    "hpt": RL | {"success_threshold": 5.0},
    "ppo": DRAWN,
    "reward": {},
    "mtp": {"n_future_tokens": 2, "weighting": "uniform"},
}
# Name -> stage and keys.
RUNS = {stage: (stage, changes) for stage, changes in STAGES.items()}
RUNS["lora"] = ("dpo", LORA | {"report_to": "tensorboard"})
RUNS["4-bit"] = ("sft", LORA | {"load_in_4bit": True})
# Each in a process of its own, as what a library says once in a process may come with any of them.
ALONE = ("hpt", "4-bit")

PROGRESS = r"(Reading .+|Checking rows, rewards and tokenizer|Loading the model|Making the model) \.\.\."
BARS = r"(Before training|Training|Held-out rows|After training): \d+/\d+ \w+, [\d:]+ gone, ([\d:]+|\?) left"
PRINTED = (
    r"Columns that nothing reads: [\w, ]+",
    r"step \d/[23]  .*loss .*",
    r"Held-out [\w ]+(:| before:| after:) .*",
    r"[23] steps in \d+ s \(training \d+ s, evaluation \d+ s\)",
    r"(Model|Results|Curves|Talk|Report|Serve|Reward shift): +\S.*",
    # Samples: the prompt, and what was drawn before and after the training.
    r"What is \d+ \+ 1\?   \(answer: \d+\)",
    r".{68} \| .*",
    # The scores of a reward model.
    r"Scores of \d+ held-out completions of \d+ prompts .*",
    r"(spread of|spread inside|share of variance|chosen above rejected).*",
    r"Little shift from prompt to prompt: .*",
)


@pytest.fixture(scope="module")
def wide_model_path(tmp_path_factory) -> str:
    """A block of 4 bits has 64 values."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden_size=64)


@pytest.fixture
def words(recipe, tmp_path, wide_model_path):
    def of(name: str) -> list[str]:
        stage, changes = RUNS[name]
        (tmp_path / name).mkdir()
        changes = changes | {"max_steps": 2, "output_dir": str(tmp_path / name / "out")}
        if name == "4-bit":
            changes["model_name_or_path"] = wide_model_path
        path = tmp_path / name / "recipe.yaml"
        os.rename(recipe(stage, **changes), path)
        return [str(path)]

    return of


def lines(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def assert_own(out: str, errors: str) -> None:
    assert len(lines(out)) > 3 and len(lines(errors)) >= 3
    assert [line for line in lines(errors) if not re.fullmatch(f"{PROGRESS}|{BARS}", line)] == []
    assert [line for line in lines(out) if not re.fullmatch("|".join(PRINTED), line)] == []


def test_runs_of_many_kinds(words, searching, tmp_path):  # noqa: F811
    names = [name for name in RUNS if name != "4-bit" or find_spec("bitsandbytes") is not None]
    command = [sys.executable, "-c", _RUNS, str(tmp_path), json.dumps([*map(words, names), [searching("acting")]])]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * (len(names) + 1)
    for number, name in enumerate([*names, "acting"]):
        out, errors = ((tmp_path / f"{number}-{stream}.txt").read_text() for stream in (1, 2))
        print(name)
        assert_own(out, errors)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_a_run_of_its_own(words, name):
    if name == "4-bit":
        pytest.importorskip("bitsandbytes")
    command = [sys.executable, "-m", "hpt_trl", "run", *words(name)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_own(done.stdout, done.stderr)
