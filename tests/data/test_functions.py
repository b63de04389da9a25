"""The functions that the package makes: tests agree with solutions, wrong ones fail, held-out problems stay out."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from hpt_trl.data.function_grammar import STEPS, Function, write
from hpt_trl.data.functions import functions, prompt_of
from hpt_trl.errors import UserError
from tests.helpers.processes import ROOT


def passes(row: dict, program: str) -> bool:
    names: dict = {}
    # Programs of the package's own grammar: loops over lists alone.
    exec(f"{program}\n{row['test']}", names)
    try:
        names["check"](names[row["entry_point"]])
    except AssertionError:
        return False
    return True


def test_every_label_is_what_the_tests_say():
    for rows in functions("solutions", {"size": 800, "test_size": 200}, seed=0):
        assert len(rows) in (800, 200)
        for row in rows:
            assert passes(row, row["instruction"] + row["output"]) == row["is_correct"], row
        assert 0.4 < sum(rows["is_correct"]) / len(rows) < 0.6


def test_every_step_is_written_as_it_computes():
    """Each step alone, in both spellings, against its own value."""
    for kind in ("filter", "map", "arrange"):
        for step in STEPS[kind]:
            for end in STEPS["end"]:
                function = Function((step,), end)
                for seed in range(6):
                    names: dict = {}
                    exec("def solve(xs):\n" + write(function, random.Random(seed)), names)
                    for numbers in ([], [3], [-4, 7, 0, 12, 5, 5, -9]):
                        assert names["solve"](list(numbers)) == function(list(numbers)), (function.name, seed)


def test_tests_notice_a_step_that_is_left_out():
    train, _ = functions("demonstrations", {"size": 200, "test_size": 0}, seed=3)
    steps = {step.name: step for kind in STEPS.values() for step in kind}
    for row in train:
        *names, end = row["problem_id"].split(".")
        for place in range(len(names)):
            other = Function(tuple(steps[name] for name in names[:place] + names[place + 1 :]), steps[end])
            assert not passes(row, prompt_of(other) + write(other, random.Random(0))), row["problem_id"]


def test_demonstrations_solve_and_prompts_are_of_the_same_problems():
    train, test = functions("demonstrations", {"size": 100, "test_size": 50}, seed=1)
    assert all(passes(row, row["prompt"] + row["completion"]) for rows in (train, test) for row in rows)
    assert set(train["difficulty"]) == {1, 2, 3}
    prompts, _ = functions("prompts", {"size": 10}, seed=1)
    assert set(prompts.column_names) == {"prompt", "problem_id", "difficulty", "test", "entry_point"}


def test_held_out_problems_are_in_no_training_split():
    held_out: set = set()
    trained: set = set()
    for part, seed in (("solutions", 0), ("demonstrations", 1), ("prompts", 2)):
        train, test = functions(part, {"size": 1500, "test_size": 300, "hardest": 2}, seed=seed)
        trained |= set(train["problem_id"])
        held_out |= set(test["problem_id"])
    assert not trained & held_out
    assert len(held_out) > 300


def test_noise_puts_wrong_solutions_among_the_documents():
    clean, noisy = (functions("documents", {"size": 300, "noise": noise}, seed=0) for noise in (0.0, 0.5))
    assert clean[1]["text"] == functions("documents", {"size": 300}, seed=0)[1]["text"]
    assert Counter(clean[0]["text"]) != Counter(noisy[0]["text"])


def test_the_same_seed_gives_the_same_rows():
    first, again, other = (functions("solutions", {"size": 40}, seed=seed)[0].to_list() for seed in (0, 0, 1))
    assert first == again != other


def test_every_process_makes_the_same_rows():
    code = (
        "import hashlib, json; from hpt_trl.data.functions import PARTS, functions;"
        "from hpt_trl.data.stories import PARTS as STORIES, stories;"
        "made = [functions(part, {'size': 60}, seed=0) for part in PARTS];"
        "made += [stories(part, {'size': 60}, seed=0) for part in STORIES];"
        "rows = [split.to_list() for splits in made for split in splits];"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    ]
    assert len(set(found)) == 1 and len(found[0]) == 65


@pytest.mark.parametrize(
    "part, options, said",
    [
        ("solution", {}, "did you mean `functions:solutions`"),
        ("prompts", {"noise": 0.5}, "unknown option `noise`"),
        ("prompts", {"hardst": 2}, "did you mean `hardest`"),
        ("prompts", {"size": 0}, "whole number of at least 1"),
        ("prompts", {"easiest": 3, "hardest": 2}, "the first at most the second"),
        ("documents", {"noise": 2}, "write 0 to 1"),
        ("prompts", {"size": 100000, "hardest": 1}, "there are only"),
    ],
)
def test_what_cannot_be_made_is_refused(part, options, said):
    with pytest.raises(UserError, match=said):
        functions(part, options, seed=0)
