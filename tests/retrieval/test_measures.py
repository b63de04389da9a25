"""Recall and NDCG against values by hand, a brute-force oracle and VRAG's own formula."""

import itertools
import math
import random

import numpy as np
import pytest

from hpt_trl.retrieval.measures import ndcg, recall_at

THIRD = 1 / math.log2(3)


@pytest.mark.parametrize(
    ("ranking", "references", "k", "value"),
    [
        (["a"], ["a"], None, 1.0),
        (["x", "a"], ["a"], None, THIRD),
        (["x", "y"], ["a"], None, 0.0),
        ([], ["a"], None, 0.0),
        (["a"], ["a", "b"], None, 1 / (1 + THIRD)),
        (["a", "b"], ["b", "a"], None, 1.0),
        (["a", "x", "b"], ["a", "b"], None, (1 + 1 / 2) / (1 + THIRD)),
        (["a", "a", "a"], ["a"], None, 1.0),
        (["x", "x", "a"], ["a"], None, THIRD),
        (["x", "a"], ["a"], 1, 0.0),
        (["a", "x"], ["a", "b"], 1, 1.0),
        (["a", "b", "c"], ["a", "b", "c", "d"], 3, 1.0),
        (["a"], ["a", "a"], None, 1.0),
    ],
)
def test_ndcg_by_hand(ranking, references, k, value):
    assert ndcg(ranking, references, k) == pytest.approx(value, abs=1e-12)


def vrag(ranking, references):
    """The project's own, rewritten: gains 2^r - 1 over log2(place + 1), the best one over all references."""
    gains = np.array([float(name in references) for name in ranking])
    ideal = np.array([1.0] * len(references) + [0.0] * (len(ranking) - len(references)))

    def dcg(values):
        return float(((2**values - 1) / np.log2(np.arange(2, len(values) + 2))).sum())

    return dcg(gains) / dcg(ideal)


def test_ndcg_is_that_of_vrag_on_rankings_without_repeats():
    draw, pages = random.Random(0), [f"p{number}" for number in range(12)]
    for _ in range(500):
        ranking = draw.sample(pages, draw.randint(1, 12))
        references = draw.sample(pages, draw.randint(1, 5))
        assert ndcg(ranking, references) == pytest.approx(vrag(ranking, references), abs=1e-12)


def test_no_order_is_better_than_references_first():
    pages, references = ["a", "b", "x", "y"], ["a", "b"]
    best = [order for order in itertools.permutations(pages) if ndcg(order, references) == 1.0]
    assert {frozenset(order[:2]) for order in best} == {frozenset(references)} and len(best) == 4
    for k in (1, 2, 3, 4):
        assert max(ndcg(order, references, k) for order in itertools.permutations(pages)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("k", "ranking", "references", "value"),
    [
        (1, ["a", "b"], ["a", "b"], 0.5),
        (2, ["a", "b"], ["a", "b"], 1.0),
        (1, ["b", "a"], ["a"], 0.0),
        (5, ["b", "a"], ["a"], 1.0),
        (5, [], ["a"], 0.0),
        (2, ["x", "x", "a"], ["a"], 1.0),
        (3, ["a", "b", "c"], ["a", "a", "d"], 0.5),
    ],
)
def test_recall_by_hand(k, ranking, references, value):
    assert recall_at(k, ranking, references) == value


def test_what_is_not_defined_is_an_error():
    for call in (lambda: ndcg(["a"], []), lambda: recall_at(1, ["a"], []), lambda: recall_at(0, ["a"], ["a"])):
        with pytest.raises(ValueError, match=r"no|there are none|k is 0"):
            call()
    with pytest.raises(ValueError, match="k is -1"):
        ndcg(["a"], ["a"], -1)
