"""Short answers as texts: the same, near, and far; ANLS against an oracle of its own."""

import numpy as np
import pytest

from hpt_trl.rewards.answer_texts import accepted, normalised, same_answer, similarity


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("Eiffel Tower", "the  eiffel\ntower."),
        ("“Yes”", "**Yes!**"),
        ("1,234", "1234"),
        ("1234.0", " 1234"),
        ("12%", "12"),
        ("12 %", "0.12"),
        ("0.12", "12%"),
        ("$5", "5.00"),
        ("5 million", "5,000,000"),
        ("-3", "\u22123"),
        (".5", "0.5"),
        ("\uff11\uff12", "12"),
        ("A", "a"),
        ("?", "?"),
    ],
)
def test_the_same(reference, answer):
    assert same_answer(reference, answer) and same_answer(answer, reference)
    assert similarity([reference], answer) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("12", "13"),
        ("1234567", "1234568"),
        ("12%", "1200%"),
        ("$5", "€5"),
        ("12", "12 apples and 3 pears"),
        ("in May 2019", "in May 2018"),
        ("12 km", "13 km"),
        ("Table 3.1", "Table 3.2"),
        ("yes", "no"),
        ("Paris", ""),
        ("Paris", "  ...  "),
        ("", ""),
        ("x", "x" * 5000),
    ],
)
def test_nothing_is_earned(reference, answer):
    assert not same_answer(reference, answer)
    assert similarity([reference], answer) == 0.0


def distance(one: str, two: str) -> int:
    table = np.zeros((len(one) + 1, len(two) + 1), dtype=int)
    table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(two) + 1)
    for row, first in enumerate(one, start=1):
        for column, second in enumerate(two, start=1):
            table[row, column] = min(
                table[row - 1, column] + 1,
                table[row, column - 1] + 1,
                table[row - 1, column - 1] + (first != second),
            )
    return int(table[-1, -1])


def test_anls_is_the_oracle_s():
    random = np.random.default_rng(1)
    kinds = set()
    for _ in range(400):
        one, two = ("".join(random.choice(list("bcd"), size=random.integers(1, 9))) for _ in range(2))
        far = distance(one, two) / max(len(one), len(two))
        expected = 1 - far if far < 0.5 else 0.0
        assert similarity([one], two) == pytest.approx(expected)
        kinds.add("near" if 0 < expected < 1 else expected)
    assert kinds == {"near", 0.0, 1.0}


def test_the_best_of_several_and_the_threshold():
    assert similarity(["revenue", "total revenues"], "total revenue") == pytest.approx(1 - 1 / 14)
    # Exactly one half is too far.
    assert similarity(["abcd"], "abxy") == 0.0 and similarity(["abcde"], "abcxy") == pytest.approx(0.6)
    # Numbers in the answer alone are its own affair.
    assert similarity(["quarterly report of sales"], "quarterly report of sales 1") > 0.9


def test_accepted_answers_and_normalising():
    assert accepted(None) == [] and accepted([]) == [] and accepted([None, "a"]) == ["a"]
    assert accepted(12) == ["12"] and accepted(("a", 2.5)) == ["a", "2.5"]
    assert normalised("A") == "a" and normalised("An  Owl ") == "owl" and normalised("...") == "..."
