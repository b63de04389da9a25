"""Pairs of solutions: which may be drawn, in what order, of which length, and what is said of those that are not."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from itertools import product

import pytest

from hpt_trl.data.loading import Splits, load_splits
from hpt_trl.data.solution_pairs import (
    LENGTH_BINS,
    PairArguments,
    candidates,
    draw_pairs,
    even_pairs,
    length_bin,
)
from hpt_trl.data.solutions import Sampling
from hpt_trl.errors import UserError
from hpt_trl.recipes.arguments import RecipeArguments
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl


@dataclass
class Arguments(PairArguments, RecipeArguments):
    pass


def load(path, **keys) -> Splits:
    arguments = Arguments(dataset_name=str(path), **keys)
    return load_splits(arguments, seed=0, needs_demonstration=False, layout="solutions")


def wanted(**settings) -> Sampling:
    defaults = {"n_samples": None, "correct_ratio": 1.0, "bins": (), "weights": (), "max_pairs_per_problem": None}
    return Sampling(**(defaults | {"seed": 0} | settings))


def drawn(sides: dict[str, tuple[list[int], list[int]]], *, balanced: bool = False, **settings):
    """Pairs of problems that are given as the lengths of their right and their wrong solutions."""
    rows = [
        (problem, kind == 0, tokens)
        for problem, lengths in sides.items()
        for kind, side in enumerate(lengths)
        for tokens in side
    ]
    problems, correct, tokens = zip(*rows, strict=True)
    found = draw_pairs(problems, correct, tokens, wanted(**settings), source="code", balanced=balanced)
    assert all(problems[a] == problems[b] and correct[a] and not correct[b] for a, b in found.pairs)
    assert len(set(found.pairs)) == len(found.pairs)
    return found, tokens, problems


def test_the_bins_are_those_of_the_method():
    assert LENGTH_BINS == (0, 50, 100, 125, 150, 175, 200, 250, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000)
    assert [length_bin(tokens) for tokens in (0, 49, 50, 99, 100, 1999, 2000, 9999)] == [0, 0, 1, 1, 2, 15, 16, 16]


@pytest.mark.parametrize(("rights", "wrongs"), [(3, 5), (4, 6), (1, 4), (5, 5), (0, 3)])
def test_every_pair_comes_once_and_each_solution_as_often_as_any_other(rights, wrongs):
    found = list(even_pairs(range(rights), range(wrongs)))
    assert sorted(found) == sorted(product(range(rights), range(wrongs)))
    for count in range(1, len(found) + 1):
        for side, size in ((0, rights), (1, wrongs)):
            uses = Counter(pair[side] for pair in found[:count])
            assert max(uses.values()) - min(uses[place] for place in range(size)) <= 1 + (count > rights * wrongs // 2)


def test_every_problem_has_its_first_pair_before_any_has_its_second():
    sides = {"a": ([10] * 3, [10] * 3), "b": ([10], [10]), "c": ([10] * 2, [10] * 2)}
    for count, expected in ((3, [1, 1, 1]), (5, [2, 1, 2]), (7, [3, 1, 3]), (14, [9, 1, 4])):
        found, _, problems = drawn(sides, n_samples=count)
        uses = Counter(problems[right] for right, _ in found.pairs)
        assert [uses[name] for name in "abc"] == expected and found.shortage is None
    found, *_ = drawn(sides, n_samples=20)
    assert found.shortage == "20 pairs are asked for, 14 are drawn; any difficulty: 14 of 20"
    found, _, problems = drawn(sides, max_pairs_per_problem=2)
    assert sorted(Counter(problems[right] for right, _ in found.pairs).values()) == [1, 2, 2]


def test_pairs_of_like_length():
    generator = random.Random(0)
    sides = {
        f"p{number}": tuple([generator.randrange(30 + 20 * kind, 300 + 60 * kind) for _ in range(8)] for kind in (0, 1))
        for number in range(20)
    }
    loose, tokens, _ = drawn(sides)
    close, _, _ = drawn(sides, balanced=True)
    assert all(length_bin(tokens[a]) == length_bin(tokens[b]) for a, b in close.pairs)

    def apart(pairs) -> float:
        return sum(abs(tokens[a] - tokens[b]) for a, b in pairs) / len(pairs)

    assert apart(close.pairs) < 0.5 * apart(loose.pairs)
    assert f"lengths {apart(close.pairs):.1f} tokens apart on average" in close.summary
    # All there are.
    by_hand = [(a, b) for a, b in loose.pairs if length_bin(tokens[a]) == length_bin(tokens[b])]
    assert sorted(close.pairs) == sorted(by_hand) and close.pairs == sorted(close.pairs)


def test_no_pair_of_like_length():
    with pytest.raises(UserError, match=r"in the same bin of lengths; write `length_balanced: false`"):
        drawn({"a": ([10], [90])}, balanced=True)
    found, *_ = drawn({"a": ([10], [90])})
    assert len(found.pairs) == 1


def test_the_quotas_of_difficulties():
    problems = [f"p{number}" for number in range(20) for _ in range(4)]
    correct, tokens = [True, True, False, False] * 20, [10] * 80
    difficulties = [float(number) for number in range(20) for _ in range(4)]
    sampling = wanted(n_samples=20, bins=(0.0, 10.0, 19.0), weights=(3.0, 1.0))
    rows: dict = {"source": "code", "balanced": False, "difficulties": difficulties}
    found = draw_pairs(problems, correct, tokens, sampling, **rows)
    easy = sum(difficulties[right] < 10 for right, _ in found.pairs)
    assert (easy, len(found.pairs)) == (15, 20)
    sampling = wanted(n_samples=20, bins=(0.0, 19.0, 30.0, 40.0), weights=(0.0, 0.0, 1.0))
    with pytest.raises(UserError, match=r"difficulty_weights: nothing is drawn from code: 20 pairs .*: 0 of 20"):
        draw_pairs(problems, correct, tokens, sampling, **rows)


def test_candidates_are_ranked_once_each_and_capped(tmp_path, caplog):
    rows = [*solutions(5, 12, 12), *solutions(1, 2, 0), *solutions(2, 3, 0)]
    rows += [row | {"problem_id": "alone", "instruction": "Alone."} for row in solutions(1, 3, 0)]
    rows += [row | {"problem_id": "wrong", "instruction": "Wrong."} for row in solutions(1, 0, 2)]
    # The same text as correct and as incorrect.
    disputed = rows[0]["output"]
    rows.append(rows[0] | {"is_correct": False})
    random.Random(0).shuffle(rows)
    splits = load(write_jsonl(tmp_path / "code.jsonl", rows))
    found = splits.train.select(candidates(splits.train, "code", wanted(max_pairs_per_problem=10)))
    kinds = Counter((row["problem_id"], row["is_correct"]) for row in found)
    assert set(kinds) == {(f"problem-{number}", kind) for number in range(1, 6) for kind in (True, False)}
    assert all(count == 10 for count in kinds.values())
    texts = [(row["problem_id"], row["output"]) for row in found]
    assert len(set(texts)) == len(texts) and ("problem-1", disputed) not in texts
    assert (
        "2 of 7 problems have no pair and are skipped: 1 with correct solutions alone, 1 with incorrect" in caplog.text
    )
    assert "1 solutions are there as correct and as incorrect; they are skipped" in caplog.text
    # What is drawn depends on what the data holds, not on the order of its rows.
    again = load(write_jsonl(tmp_path / "again.jsonl", sorted(rows, key=json.dumps))).train
    same = again.select(candidates(again, "code", wanted(max_pairs_per_problem=10)))
    assert [row["output"] for row in same] == [row["output"] for row in found]
    other = splits.train.select(candidates(splits.train, "code", wanted(max_pairs_per_problem=10, seed=1)))
    assert [row["output"] for row in other] != [row["output"] for row in found]


def test_problems_of_one_kind_alone(tmp_path):
    splits = load(write_jsonl(tmp_path / "right.jsonl", solutions(3, 2, 0)))
    with pytest.raises(UserError, match=r"none of its 3 problems has .* \(all 6 solutions are correct\)"):
        candidates(splits.train, "right.jsonl", wanted())
    rows = [row for row in solutions(2, 2, 2) if row["is_correct"] == (row["problem_id"] == "problem-1")]
    splits = load(write_jsonl(tmp_path / "apart.jsonl", rows))
    with pytest.raises(UserError, match=r"\(each problem has one kind\)"):
        candidates(splits.train, "apart.jsonl", wanted())
    rows = solutions(3, 1, 1)
    rows += [row | {"is_correct": not row["is_correct"]} for row in rows if row["is_correct"]]
    splits = load(write_jsonl(tmp_path / "disputed.jsonl", rows))
    with pytest.raises(UserError, match=r"without the 3 solutions that are there as correct and as incorrect, no prob"):
        candidates(splits.train, "disputed.jsonl", wanted())
    splits = load(write_jsonl(tmp_path / "code.jsonl", solutions(3, 2, 2)))
    with pytest.raises(
        UserError, match=r"difficulty_bins: \[7, 9\] holds no pair of code.jsonl, whose difficulty is 1"
    ):
        candidates(splits.train, "code.jsonl", wanted(bins=(7.0, 9.0)))


MODELS = {
    "6b_finetuning": {"is_correct": False, "solution": "3 + 4 = <<3+4=8>>8\nA: 8"},
    "6b_verification": {"is_correct": True, "solution": "3 + 4 = <<3+4=7>>7\nA: 7"},
    "175b_finetuning": {"is_correct": True, "solution": " "},
    "175b_verification": {"is_correct": False, "solution": "A: 9"},
}


def test_questions_with_the_solutions_of_several_models(tmp_path, caplog):
    rows = [{"question": f"What is 3 + 4? {number}", "ground_truth": "7", **MODELS} for number in range(5)]
    path = write_jsonl(tmp_path / "models.jsonl", rows)
    splits = load(path, test_split_size=2)
    assert len(splits.train) == 9 and len(splits.test) == 6
    first = splits.train[0]
    assert first["instruction"].startswith("What is 3 + 4?") and first["output"] == "3 + 4 = 8\nA: 8"
    assert not first["is_correct"] and splits.train[1]["is_correct"]
    assert "5 of 20 solutions hold no text; left out" in caplog.text and "calculator marks" in caplog.text
    # Split by question.
    assert not set(splits.train["problem_id"]) & set(splits.test["problem_id"])
    assert not set(splits.train["instruction"]) & set(splits.test["instruction"])
    named = write_jsonl(tmp_path / "named.jsonl", [row | {"problem_id": n} for n, row in enumerate(rows)])
    assert set(load(named).train["problem_id"]) == set(range(5))
