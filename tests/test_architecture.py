"""What docs/architecture.md says of additions, done in a copy of the package: each by the lines that it names."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.helpers.processes import ROOT
from tests.helpers.stage_runs import KEYS

METHOD = '''"""The stage `copying`: supervised fine-tuning that repeats each batch's loss."""

from trl import SFTConfig, SFTTrainer

from hpt_trl.data.loading import columns_for
from hpt_trl.recipes.recipe import Stage, StageInputs


def build(inputs: StageInputs) -> SFTTrainer:
    print(f"loudness {inputs.arguments.loudness}")
    rows = columns_for(inputs.splits.train, "prompt", "completion")
    return SFTTrainer(train_dataset=rows, **inputs.trainer_arguments())


STAGE = Stage(
    name="copying",
    config_class=SFTConfig,
    build=build,
    layouts=("demonstrations",),
    needs_demonstration=lambda config: True,
    rewards="optional",
)
'''
REWARD = '''

def vowels(completions: Sequence[Any], **_: Any) -> list[float]:
    """Share of the characters that are vowels."""
    texts = [text_of(completion) for completion in completions]
    return [sum(text.count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in texts]
'''
SOURCE = '''"""The alphabet, a letter at a time."""

from typing import Any

from datasets import Dataset


def alphabet(options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build rows that ask for the next letter: columns prompt, completion."""
    letters = "abcdefghijklmnop"
    rows = [{"prompt": f"After {a} comes", "completion": b} for a, b in zip(letters, letters[1:])]
    return Dataset.from_list(rows), Dataset.from_list(rows[:4])
'''
KEY = """    loudness: int = field(default=1, metadata={"help": "How loud the run is."})
"""


@pytest.fixture
def house(tmp_path):
    """A copy of the package with one of each added; each change is a file of its own or one line."""
    package = tmp_path / "house" / "hpt_trl"
    shutil.copytree(ROOT / "hpt_trl", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("recipes", "accelerate_configs"):
        shutil.copytree(ROOT / folder, package.parent / folder)

    def one_line(file: str, before: str, line: str) -> None:
        text = (package / file).read_text()
        assert text.count(before) == 1, f"docs/architecture.md names {before!r} in {file}"
        (package / file).write_text(text.replace(before, before + line))

    (package / "methods" / "copying").mkdir()
    (package / "methods" / "copying" / "__init__.py").write_text('"""Copying."""\n')
    (package / "methods" / "copying" / "stage.py").write_text(METHOD)
    one_line("recipes/stages.py", "STAGE_MODULES = {\n", '    "copying": "hpt_trl.methods.copying.stage",\n')
    functions = package / "rewards" / "functions.py"
    functions.write_text(functions.read_text().replace("\n\nREWARDS: ", REWARD + "\n\nREWARDS: "))
    one_line("rewards/functions.py", "REWARDS: dict[str, Reward] = {\n", '    "vowels": vowels,\n')
    (package / "data" / "alphabet.py").write_text(SOURCE)
    one_line("data/generated.py", "GENERATED = {\n", '    "alphabet": "hpt_trl.data.alphabet:alphabet",\n')
    with (package / "recipes" / "arguments.py").open("a") as file:
        file.write(KEY)
    one_line("recipes/ranges.py", "COMMON_RULES = (\n", '    at_least(1, "loudness"),\n')
    return package.parent


def test_a_method_a_reward_a_data_source_and_a_key_are_added_by_the_lines_that_the_docs_name(
    house, tmp_path, tiny_model_path
):
    recipe = tmp_path / "copying.yaml"
    values = {**KEYS, "stage": "copying", "model_name_or_path": tiny_model_path, "dataset_name": "alphabet"}
    values |= {"output_dir": str(tmp_path / "out"), "reward_funcs": ["vowels"], "eval_samples": 3, "max_steps": 1}
    recipe.write_text(yaml.safe_dump(values | {"eval_max_new_tokens": 4}))

    def hpt_trl(*words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(house)}
        command = [sys.executable, "-m", "hpt_trl", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    quiet = hpt_trl("check", str(recipe), "--loudness", "0")
    assert quiet.returncode == 2 and "--loudness on the command line" in quiet.stderr and "1 or more" in quiet.stderr
    done = hpt_trl("run", str(recipe), "--loudness", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loudness 3" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["stage"] == "copying" and results["after"]["samples"] == 3


def test_an_arrow_that_runs_up_is_refused(house, tmp_path):
    lint = [str(ROOT / ".venv" / "bin" / "lint-imports"), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    if not (ROOT / ".venv" / "bin" / "lint-imports").exists():
        pytest.skip("import-linter is not installed in .venv")

    def held() -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(house)}
        return subprocess.run(lint, cwd=house, env=environment, capture_output=True, text=True, timeout=100)

    kept = held()
    assert kept.returncode == 0 and "2 kept, 0 broken" in kept.stdout, kept.stdout + kept.stderr
    module = house / "hpt_trl" / "data" / "alphabet.py"
    module.write_text(module.read_text() + "\n\ndef up() -> None:\n    from hpt_trl.recipes import stages  # noqa\n")
    broken = held()
    assert broken.returncode != 0 and "hpt_trl.data.alphabet" in broken.stdout
    # A circle within a wing is one also where it is for type checking alone.
    layouts = house / "hpt_trl" / "data" / "layouts.py"
    module.write_text(SOURCE)
    layouts.write_text(
        layouts.read_text() + "\n\nif TYPE_CHECKING:\n    from hpt_trl.data.loading import load_splits  # noqa\n"
    )
    circular = held()
    assert circular.returncode != 0 and "in a circle BROKEN" in circular.stdout
