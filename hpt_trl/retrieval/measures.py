"""How good a ranking is against the pages that should have been found.

Relevance is binary, and a page that stands in a ranking twice counts where it stands first and takes one place.
"""

import math
from collections.abc import Sequence


def ndcg(ranking: Sequence[str], references: Sequence[str], k: int | None = None) -> float:
    """Returns the normalised discounted cumulative gain, from 0 to 1 (Järvelin and Kekäläinen, 2002).

    The gain of a reference page is 1, its discount 1 / log2(place + 1) with places from 1. The ideal ranking has all
    references first, also where fewer pages were retrieved than there are references.

    Args:
        ranking: Names of pages, best first.
        references: Names of the pages that should be found.
        k: Places that count; all by default.

    Raises:
        ValueError: no references, or a `k` below 1.
    """
    wanted, shown = _counted(ranking, references, k)
    gain = sum(1 / math.log2(place + 1) for place, page in enumerate(shown, start=1) if page in wanted)
    best = len(wanted) if k is None else min(k, len(wanted))
    return gain / sum(1 / math.log2(place + 1) for place in range(1, best + 1))


def recall_at(k: int, ranking: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of the references among the first `k` pages of a ranking, from 0 to 1.

    Raises:
        ValueError: no references, or a `k` below 1.
    """
    wanted, shown = _counted(ranking, references, k)
    return len(wanted.intersection(shown)) / len(wanted)


def _counted(ranking: Sequence[str], references: Sequence[str], k: int | None) -> tuple[set[str], list[str]]:
    if not references:
        raise ValueError("no reference pages: a ranking without any cannot be measured")
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    return set(references), list(dict.fromkeys(ranking))[:k]
