"""Pairs of a correct and an incorrect solution of one problem: which are drawn, of like length if asked.

Incorrect solutions are longer than correct ones on average, so that who learns from pairs as they come may learn the
length alone. In a balanced draw both solutions of a pair are in one bin of lengths.
"""

import logging
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from hpt_trl.data.solutions import (
    ProblemArguments,
    Sampling,
    Solution,
    capped,
    nothing_drawn,
    outside_of_bins,
    quotas,
    ranked,
)
from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Lower edges, in tokens of the solution; the last bin holds all that is longer.
LENGTH_BINS = (0, 50, 100, 125, 150, 175, 200, 250, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000)
# Solutions of each kind that are measured of a problem, at least: some are too long, or alone in their bin.
_LEAST = 8

Pair = tuple[int, int]


@dataclass
class PairArguments(ProblemArguments):
    """Which pairs of solutions are drawn; `data_seed` (0 where it is not set) seeds the draw."""

    n_samples: int | None = field(
        default=None, metadata={"help": "Pairs drawn for the training; by default all that the other keys leave."}
    )
    n_test_samples: int | None = field(
        default=1000, metadata={"help": "Pairs drawn at most from the held-out problems, one of each problem."}
    )
    max_pairs_per_problem: int | None = field(
        default=60,
        metadata={"help": "Pairs of one problem at most; null: each correct with each incorrect solution."},
    )
    length_balanced: bool = field(
        default=True,
        metadata={
            "help": "Draw training pairs whose solutions are in the same bin of lengths (in tokens), so that length "
            "tells nothing. Held-out pairs are drawn as they come."
        },
    )


def length_bin(tokens: int) -> int:
    """Number of the bin that a solution's length falls into."""
    return bisect_right(LENGTH_BINS, tokens) - 1


def candidates(dataset: "Dataset", source: str, wanted: Sampling) -> list[int]:
    """Return the positions of the solutions that may be drawn, in the order in which they are taken.

    Args:
        dataset: layout `solutions`, checked.
        source: how messages name it.
        wanted: `max_pairs_per_problem` bounds the solutions of each kind too, some more are kept for pairs of like
            length.

    Raises:
        UserError: no problem has solutions of both kinds that are one or the other, or none of them lies within the
            bins.
    """
    rows = ranked(dataset, source, wanted)
    kinds: dict[str, set[bool]] = defaultdict(set)
    labels: dict[tuple[str, bytes], set[bool]] = defaultdict(set)
    for row in rows:
        kinds[row.problem].add(row.correct)
        labels[row.problem, row.rank].add(row.correct)
    both = {problem for problem, found in kinds.items() if len(found) == 2}
    if not both:
        alone = "each problem has one kind"
        if len({row.correct for row in rows}) == 1:
            alone = f"all {len(rows):,} solutions are {'correct' if rows[0].correct else 'incorrect'}"
        raise UserError(
            f"{source}: none of its {len(kinds):,} problems has a correct and an incorrect solution ({alone}); a pair "
            "takes one of each. Add solutions of the other kind, with `is_correct`."
        )
    if len(both) < len(kinds):
        logger.warning(
            "%s: %d of %d problems have no pair and are skipped: %d with correct solutions alone, %d with incorrect "
            "ones alone.",
            source,
            len(kinds) - len(both),
            len(kinds),
            sum(found == {True} for found in kinds.values()),
            sum(found == {False} for found in kinds.values()),
        )
    inside = [row for row in rows if row.problem in both and row.bin is not None]
    if not inside:
        raise outside_of_bins(dataset, source, wanted, "pair")
    disputed = sum(len(found) == 2 for found in labels.values())
    if disputed:
        logger.warning("%s: %d solutions are there as correct and as incorrect; they are skipped.", source, disputed)
    once: dict[tuple[str, bytes], Solution] = {}
    for row in sorted(inside):
        if len(labels[row.problem, row.rank]) == 1:
            once.setdefault((row.problem, row.rank), row)
    left = {(row.problem, row.correct) for row in once.values()}
    if disputed and not any((problem, True) in left and (problem, False) in left for problem, _ in left):
        raise UserError(
            f"{source}: without the {disputed:,} solutions that are there as correct and as incorrect, no problem has "
            "one of each left, which a pair takes; mend `is_correct`."
        )
    most = wanted.max_pairs_per_problem
    kept = capped(list(once.values()), None if most is None else max(most, _LEAST))
    return [row.position for row in kept]


@dataclass(frozen=True)
class Pairs:
    """What was drawn.

    Attributes:
        pairs: positions of a correct and an incorrect solution each.
        summary: how many, of how many problems, and how far their lengths are apart.
        shortage: what was asked for and is not there; None if nothing is missing.
    """

    pairs: list[Pair]
    summary: str
    shortage: str | None


def draw_pairs(
    problems: Sequence[str],
    correct: Sequence[bool],
    tokens: Sequence[int],
    wanted: Sampling,
    *,
    source: str,
    balanced: bool,
    difficulties: Sequence[float | None] | None = None,
) -> Pairs:
    """Draw pairs of the candidates.

    Every problem gives its first pair before any gives its second, and in a problem each solution is used about as
    often as any other.

    Args:
        problems, correct, tokens, difficulties: of each candidate, in the order of `candidates`.
        source: how messages name them.
        balanced: both solutions of a pair are in the same bin of lengths.

    Raises:
        UserError: there is no pair, or the weights leave none to draw.
    """
    found: dict[str, tuple[list[int], list[int]]] = {}
    for place, (problem, is_correct) in enumerate(zip(problems, correct, strict=True)):
        found.setdefault(problem, ([], []))[0 if is_correct else 1].append(place)
    most = wanted.max_pairs_per_problem
    every = {problem: list(_limited(even_pairs(*sides), most)) for problem, sides in found.items()}
    paired = every
    if balanced:
        paired = {problem: list(_limited(_balanced(*sides, tokens), most)) for problem, sides in found.items()}
    # A problem is of one difficulty; by its bin the quotas go.
    cells: dict[int, list[tuple[int, Pair]]] = defaultdict(list)
    for pairs in paired.values():
        for turn, pair in enumerate(pairs):
            number = wanted.bin_of(difficulties[pair[0]]) if wanted.weights and difficulties is not None else 0
            cells[number or 0].append((turn, pair))
    there = sum(map(len, cells.values()))
    if there == 0:
        raise UserError(
            f"{source}: there is no pair of solutions"
            + (" in the same bin of lengths; write `length_balanced: false`." if any(every.values()) else ".")
        )
    shares = {number: quota for (number, is_correct), quota in quotas(wanted, there).items() if is_correct}
    drawn = [pair for number, quota in shares.items() for _, pair in sorted(cells[number])[:quota]]
    drawn.sort()
    short = {number: quota for number, quota in shares.items() if len(cells[number]) < quota}
    shortage = None
    if short:
        parts = (f"{wanted.name_of(number)}: {len(cells[number]):,} of {quota:,}" for number, quota in short.items())
        shortage = f"{wanted.n_samples:,} pairs are asked for, {len(drawn):,} are drawn; {'; '.join(parts)}"
    if not drawn:
        raise nothing_drawn(source, wanted, shortage)
    of_problems = {problems[right] for right, _ in drawn}
    apart = f"lengths {_apart(drawn, tokens):.1f} tokens apart on average"
    if balanced:
        apart += f", {_apart([pair for problem in of_problems for pair in every[problem]], tokens):.1f} without balance"
    summary = (
        f"{len(drawn):,} pairs, of {len(of_problems):,} of {len(found):,} problems (data_seed {wanted.seed}): {apart}"
    )
    return Pairs(drawn, summary, shortage)


def even_pairs(rights: Sequence[int], wrongs: Sequence[int]) -> Iterator[Pair]:
    """Yield every pair once; the first ones use each solution about as often as any other."""
    if not rights or not wrongs:
        return
    shifts = math.gcd(len(rights), len(wrongs))
    for shift in range(shifts):
        for turn in range(len(rights) * len(wrongs) // shifts):
            yield rights[turn % len(rights)], wrongs[(turn + shift) % len(wrongs)]


def _balanced(rights: Sequence[int], wrongs: Sequence[int], tokens: Sequence[int]) -> Iterator[Pair]:
    """Pairs of one problem within its bins of lengths, a pair of each bin in turn."""
    bins: dict[int, tuple[list[int], list[int]]] = {}
    for side, places in enumerate((rights, wrongs)):
        for place in places:
            bins.setdefault(length_bin(tokens[place]), ([], []))[side].append(place)
    # In the order of their solutions, so that the seed decides which bin comes first.
    sides = sorted(bins.values(), key=lambda pair: min(pair[0] + pair[1]))
    turns = [even_pairs(*pair) for pair in sides]
    while turns:
        left = []
        for turn in turns:
            pair = next(turn, None)
            if pair is not None:
                yield pair
                left.append(turn)
        turns = left


def _limited(pairs: Iterable[Pair], most: int | None) -> Iterator[Pair]:
    for number, pair in enumerate(pairs):
        if most is not None and number >= most:
            return
        yield pair


def _apart(pairs: Sequence[Pair], tokens: Sequence[int]) -> float:
    """Mean distance of the lengths, in tokens."""
    return fmean(abs(tokens[right] - tokens[wrong]) for right, wrong in pairs)
