"""How well a ranking finds reference pages."""

import math
from collections.abc import Iterable, Sequence


def recall_at(k: int, ranking: Sequence[str], references: Iterable[str]) -> float:
    """Share of the reference pages that are among the first k of a ranking.

    |{first k pages} ∩ {references}| / |{references}|, with each page of the ranking counted at its first place.

    Args:
        k: 1 or more.
        ranking: names of pages, best first.
        references: names of the pages to be found; repeated ones count once.

    Raises:
        ValueError: there are no references, or k is below 1.
    """
    wanted = _wanted(references, k)
    return len(wanted & set(list(dict.fromkeys(ranking))[:k])) / len(wanted)


def ndcg(ranking: Sequence[str], references: Iterable[str], k: int | None = None) -> float:
    """Normalised discounted cumulative gain with gains 0 and 1, as VRAG's reward has it.

    DCG = Σ_i g_i / log2(i + 1) over places i from 1, with g_i = 1 for a reference page (2^1 - 1 there). It is divided
    by the DCG of all references in the first places, also where the ranking is shorter: it is 1 only when every
    reference was found. With k, places above k count in neither. A page that stands again later in the ranking is
    taken out there; in VRAG's `ndcg` it gains again, up to values above 1.

    Source: Järvelin and Kekäläinen 2002; VRAG, `verl/workers/reward_manager/rm.py`.

    Args:
        ranking: names of pages, best first.
        references: names of the pages to be found; repeated ones count once.
        k: places that count; all where None.

    Returns:
        From 0 to 1; 0 for an empty ranking.

    Raises:
        ValueError: there are no references, or k is below 1.
    """
    wanted = _wanted(references, k)
    places = list(dict.fromkeys(ranking))[:k]
    gained = sum(_discount(place) for place, name in enumerate(places, start=1) if name in wanted)
    count = len(wanted) if k is None else min(k, len(wanted))
    return gained / sum(_discount(place) for place in range(1, count + 1))


def _discount(place: int) -> float:
    return 1 / math.log2(place + 1)


def _wanted(references: Iterable[str], k: int | None) -> set[str]:
    wanted = set(references)
    if not wanted:
        raise ValueError("a ranking is measured by reference pages, and there are none")
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    return wanted
