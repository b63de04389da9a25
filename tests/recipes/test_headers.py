"""Commands in the headers of recipes: those that name a file of the reader's do what they say with such a file."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from hpt_trl.cli import main
from hpt_trl.recipes.bundled import bundled_recipes

FILES = ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "example_model_solutions.jsonl", "HumanEval.jsonl.gz")


def commands() -> list[str]:
    """Those of `hpt-trl` with a file of the reader's, on one line each, without what explains them."""
    found = []
    for path in bundled_recipes():
        header = re.sub(r"\\?\n#\s{5,}", " ", path.read_text().partition("\n\nstage:")[0])
        for line in re.findall(r"^#\s+(hpt-trl (?:run|eval) .*path/to/.*)$", header, flags=re.M):
            found.append(re.sub(r"\s{2,}\(.*\)$", "", line))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    numbers = range(1, 7201)
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in numbers
    ]
    for name in FILES[:2]:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    solutions = [
        {"question": row["question"], "ground_truth": row["answer"]}
        | {f"model-{right}": {"solution": f"{row['answer']} {right}", "is_correct": bool(right)} for right in (0, 1)}
        for row in rows[:1300]
    ]
    (folder / FILES[2]).write_text("".join(json.dumps(row) + "\n" for row in solutions))
    problem = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        "entry_point": "f",
    }
    with gzip.open(folder / FILES[3], "wt") as file:
        file.write(json.dumps(problem) + "\n")
    return folder


def test_there_are_some():
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_a_header_s_command_takes_the_file_that_it_names(command, files, capsys):
    words = shlex.split(command.replace("path/to", str(files)))
    named = [Path(word) for word in words if word.startswith(str(files))]
    assert len(named) == 1 and named[0].name in FILES
    # The model of an evaluation is the reader's, too.
    more = (
        ["--model_name_or_path", "smollm2-135m"] if words[1] == "eval" and "--model_name_or_path" not in words else []
    )
    more += ["--output_dir", str(files / "out")]
    if "rho1" in command:
        more += ["--selection", "full", "--reference_model_name_or_path", "null"]
    assert main(["check", *words[2:], *more]) == 0, capsys.readouterr().err
