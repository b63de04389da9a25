"""NDCG and recall against an oracle by hand and in NumPy."""

import numpy as np
import pytest

from hpt_trl.retrieval.measures import ndcg, recall_at


def oracle(ranking: list[str], references: list[str], k: int | None) -> float:
    """The textbook's: gains in the order of the ranking over gains in the best order."""
    unique: list[str] = []
    for page in ranking:
        if page not in unique:
            unique.append(page)
    gains = np.array([float(page in references) for page in unique])[:k]
    best = np.ones(len(set(references)))[:k]
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum() / (best / np.log2(np.arange(len(best)) + 2)).sum())


@pytest.mark.parametrize(
    ("ranking", "references", "k", "expected"),
    [
        (["a"], ["a"], None, 1.0),
        (["b", "a"], ["a"], None, 1 / np.log2(3)),
        (["b", "c", "a"], ["a"], None, 0.5),
        (["b", "c", "a"], ["a"], 2, 0.0),
        # One of two is found, at the first place: the ideal has both.
        (["a"], ["a", "b"], None, 1 / (1 + 1 / np.log2(3))),
        (["a"], ["a", "b"], 1, 1.0),
        # A page that is shown again takes no place and gains nothing.
        (["b", "b", "a", "a"], ["a"], None, 1 / np.log2(3)),
        (["a", "a"], ["a", "a"], None, 1.0),
        ([], ["a"], None, 0.0),
    ],
)
def test_ndcg_by_hand(ranking, references, k, expected):
    assert ndcg(ranking, references, k) == pytest.approx(expected)


def test_ndcg_is_the_oracle_s_on_random_rankings():
    random = np.random.default_rng(0)
    names = [f"page_{number}" for number in range(12)]
    seen = set()
    for _ in range(500):
        ranking = [str(name) for name in random.choice(names, size=random.integers(0, 12))]
        references = [str(name) for name in random.choice(names, size=random.integers(1, 5))]
        k = [None, 1, 3, 20][random.integers(4)]
        value = ndcg(ranking, references, k)
        assert value == pytest.approx(oracle(ranking, references, k)) and 0 <= value <= 1 + 1e-12
        seen.add(round(value, 3))
        if k is not None:
            shown = list(dict.fromkeys(ranking))[:k]
            found = sum(reference in shown for reference in set(references)) / len(set(references))
            assert recall_at(k, ranking, references) == pytest.approx(found)
    assert len(seen) > 50


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="reference pages"):
        ndcg(["a"], [])
    with pytest.raises(ValueError, match="k is 0"):
        recall_at(0, ["a"], ["a"])
