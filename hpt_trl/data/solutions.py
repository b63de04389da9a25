"""Drawing from solutions of programming problems: how many, how many correct, how hard, how many of one problem.

Shared by the stages that read the layout `solutions`. Each row has a rank, a hash of the seed, its problem and its
solution, and the lowest ranks are drawn: the draw depends on what the data holds, not on the order of its rows.
"""

import hashlib
import logging
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hpt_trl.data.solution_texts import ALPACA, FORMS
from hpt_trl.errors import UserError
from hpt_trl.settings.ranges import Rule, at_least, one_of, share

if TYPE_CHECKING:
    from datasets import Dataset

    from hpt_trl.settings.file import Sources

logger = logging.getLogger(__name__)

SAMPLING_RULES: tuple[Rule, ...] = (
    at_least(1, "n_samples", "n_test_samples", "max_pairs_per_problem"),
    share("correct_ratio", zero=False),
    one_of("solution_prompt", *FORMS),
)


@dataclass
class ProblemArguments:
    """Which problems' solutions are drawn; `data_seed` (0 where it is not set) seeds the draw."""

    n_samples: int | None = field(
        default=None, metadata={"help": "Solutions drawn for the training; by default all that the other keys leave."}
    )
    n_test_samples: int | None = field(
        default=1000, metadata={"help": "Solutions drawn at most from the held-out problems, in the same way."}
    )
    difficulty_bins: list[float] | None = field(
        default=None,
        metadata={
            "help": "Edges of bins of the column `difficulty`, rising; what lies outside is left out. [1, 25] is one "
            "bin; [1, 7, 25] are two, 1 to below 7 and 7 to 25."
        },
    )
    difficulty_weights: list[float] | None = field(
        default=None,
        metadata={"help": "How much of the draw each bin gets, one number each; by default what falls to it."},
    )
    max_pairs_per_problem: int | None = field(
        default=None, metadata={"help": "Correct solutions of one problem at most, and as many incorrect ones."}
    )
    solution_languages: list[str] | None = field(
        default=None,
        metadata={"help": "Programming languages of the solutions, as the column `language` names them, e.g. PYTHON3."},
    )
    solution_prompt: str = field(
        default=ALPACA,
        metadata={
            "help": "What stands before a solution: `alpaca`, Alpaca's text with the instruction (and input) in it; "
            "`plain`, instruction and input as they are, e.g. a signature that the solution goes on from.",
            "choices": list(FORMS),
        },
    )


@dataclass
class SolutionArguments(ProblemArguments):
    """Which of the solutions are drawn, correct and incorrect ones apart."""

    correct_ratio: float = field(default=1.0, metadata={"help": "Share of correct ones among the drawn solutions."})


@dataclass(frozen=True)
class Sampling:
    """What is asked of a draw; see `ProblemArguments`."""

    n_samples: int | None
    correct_ratio: float
    bins: tuple[float, ...]
    weights: tuple[float, ...]
    max_pairs_per_problem: int | None
    seed: int

    def bin_of(self, difficulty: float | None) -> int | None:
        """Number of the bin, 0 without bins, None outside of all; the last one holds its upper edge too."""
        if not self.bins:
            return 0
        if difficulty is None or not self.bins[0] <= difficulty <= self.bins[-1]:
            return None
        return min(bisect_right(self.bins, difficulty), len(self.bins) - 1) - 1

    def name_of(self, number: int) -> str:
        """A bin in words."""
        if not self.bins:
            return "any difficulty"
        last = number == len(self.bins) - 2
        return f"difficulty {self.bins[number]:g} to {'' if last else 'below '}{self.bins[number + 1]:g}"


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        rows: positions in the dataset, in an order drawn as well.
        summary: how many, of how many problems and of which bins.
        shortage: what was asked for and is not there; None if nothing is missing.
    """

    rows: list[int]
    summary: str
    shortage: str | None


class Solution(NamedTuple):
    """A solution in a draw: the lower its rank the earlier it is taken, and equal texts of a problem have one rank."""

    rank: bytes
    position: int
    problem: str
    correct: bool
    bin: int | None


def sampling_of(
    arguments: ProblemArguments,
    sources: "Sources",
    *,
    seed: int | None,
    held_out: bool = False,
) -> Sampling:
    """The draw that a recipe asks for.

    Args:
        sources: where the keys come from, for the message.
        seed: the recipe's `data_seed`.
        held_out: the draw from the held-out problems.

    Raises:
        UserError: settings that do not fit together.
    """
    correct_ratio = arguments.correct_ratio if isinstance(arguments, SolutionArguments) else 1.0
    number_key = "n_test_samples" if held_out else "n_samples"
    n_samples = getattr(arguments, number_key)
    bins, weights = tuple(arguments.difficulty_bins or ()), tuple(arguments.difficulty_weights or ())
    if arguments.difficulty_bins is not None and (len(bins) < 2 or any(low >= high for low, high in pairwise(bins))):
        raise sources.error("difficulty_bins", f"{_list(bins)}: write two or more rising edges, e.g. [1, 25].")
    if arguments.difficulty_weights is not None and (
        len(weights) != len(bins) - 1 or min(weights) < 0 or not sum(weights) > 0
    ):
        raise sources.error(
            "difficulty_weights",
            f"{_list(weights)}: write one number of 0 or more for each bin of `difficulty_bins` "
            f"({max(len(bins) - 1, 0)} here), not all 0.",
        )
    if n_samples is None and (weights or correct_ratio < 1):
        key = "difficulty_weights" if weights else "correct_ratio"
        raise sources.error(number_key, f"`{key}` gives shares of a number of solutions; write that number.")
    return Sampling(
        n_samples=n_samples,
        correct_ratio=correct_ratio,
        bins=bins,
        weights=weights,
        max_pairs_per_problem=arguments.max_pairs_per_problem,
        seed=seed or 0,
    )


def draw(dataset: "Dataset", source: str, wanted: Sampling) -> Draw:
    """Draws solutions.

    A bin, or the correct or incorrect ones, that have less than their share give all they have; no other is drawn in
    their stead.

    Args:
        dataset: layout `solutions`, checked.
        source: how messages name it.

    Raises:
        UserError: no problem has a correct solution, none is within the bins, or the shares leave nothing to draw.
    """
    rows = ranked(dataset, source, wanted)
    problems, solved = {row.problem for row in rows}, {row.problem for row in rows if row.correct}
    if not solved:
        raise UserError(
            f"{source}: none of its {len(problems):,} problems has a correct solution (`is_correct` is false in all "
            f"{len(rows):,} rows); there is nothing to learn from."
        )
    if len(solved) < len(problems):
        logger.warning(
            "%s: %d of %d problems have no correct solution and are skipped.",
            source,
            len(problems) - len(solved),
            len(problems),
        )
    inside = [row for row in rows if row.problem in solved and row.bin is not None]
    if not any(row.correct for row in inside):
        raise outside_of_bins(dataset, source, wanted, "correct solution")
    cells: dict[tuple[int, bool], list[Solution]] = defaultdict(list)
    for row in capped(sorted(inside), wanted.max_pairs_per_problem):
        cells[_cell(row, wanted)].append(row)
    shares = quotas(wanted, len(cells[0, True]))
    drawn = sorted(row for cell, quota in shares.items() for row in cells[cell][:quota])
    short = {cell: quota for cell, quota in shares.items() if len(cells[cell]) < quota}
    shortage = None
    if short:
        parts = (
            f"{'correct' if correct else 'incorrect'}, {wanted.name_of(number) if wanted.weights else 'in all'}: "
            f"{len(cells[number, correct]):,} of {quota:,}"
            for (number, correct), quota in short.items()
        )
        shortage = f"{wanted.n_samples:,} solutions are asked for, {len(drawn):,} are drawn; {'; '.join(parts)}"
    if not drawn:
        raise nothing_drawn(source, wanted, shortage)
    return Draw([row.position for row in drawn], _summary(drawn, rows, wanted), shortage)


def ranked(dataset: "Dataset", source: str, wanted: Sampling) -> list[Solution]:
    """Every solution with its rank and its bin.

    Raises:
        UserError: bins are asked for, and no difficulty is given.
    """
    if wanted.bins and "difficulty" not in dataset.column_names:
        raise UserError(
            f"{source} has no column `difficulty`, by which `difficulty_bins` sorts; write, e.g. column_mapping: "
            "{difficulty: <column>}, or drop the key."
        )
    return list(_rows(dataset, wanted))


def outside_of_bins(dataset: "Dataset", source: str, wanted: Sampling, what: str) -> UserError:
    """Return (do not raise) the error that nothing lies within the bins."""
    found = sorted({value for value in dataset["difficulty"] if value is not None})
    span = f"{found[0]:g} to {found[-1]:g}" if found else "not given in any row"
    return UserError(f"difficulty_bins: {_list(wanted.bins)} holds no {what} of {source}, whose difficulty is {span}.")


def nothing_drawn(source: str, wanted: Sampling, shortage: str | None) -> UserError:
    """Return (do not raise) the error that the shares leave nothing to draw, though there are solutions."""
    keys = ["difficulty_weights"] * bool(wanted.weights) + ["correct_ratio"] * (wanted.correct_ratio < 1)
    return UserError(f"{', '.join(keys)}: nothing is drawn from {source}: {shortage}. Give what is there a share.")


def _rows(dataset: "Dataset", wanted: Sampling) -> "Iterable[Solution]":
    columns = ["problem_id", "output", "is_correct"] + ["difficulty"] * bool(wanted.bins)
    position = 0
    for batch in dataset.select_columns(columns).iter(batch_size=1000):
        values: dict[str, list[Any]] = cast(dict[str, list[Any]], batch)
        difficulties = values.get("difficulty") or [None] * len(values["output"])
        for problem, output, correct, difficulty in zip(
            values["problem_id"], values["output"], values["is_correct"], difficulties, strict=True
        ):
            text = f"{wanted.seed}\0{problem}\0{output}".encode("utf-8", "surrogatepass")
            rank = hashlib.blake2b(text, digest_size=8).digest()
            yield Solution(rank, position, str(problem), correct, wanted.bin_of(difficulty))
            position += 1


def capped(rows: list[Solution], most: int | None) -> "Iterable[Solution]":
    """The first rows of each problem, counted apart for correct and incorrect ones."""
    seen: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        seen[row.problem, row.correct] += 1
        if most is None or seen[row.problem, row.correct] <= most:
            yield row


def _cell(row: Solution, wanted: Sampling) -> tuple[int, bool]:
    """What has a quota of its own: a bin where the bins have weights, and in it the correct and the incorrect ones."""
    return (cast(int, row.bin) if wanted.weights else 0, row.correct)


def quotas(wanted: Sampling, there: int) -> dict[tuple[int, bool], int]:
    """Solutions to draw from each cell: together `n_samples`; where that is None, all correct ones that are `there`."""
    if wanted.n_samples is None:
        return {(0, True): there}
    weights = wanted.weights or (1.0,)
    shares = {
        (number, correct): weight / sum(weights) * part
        for number, weight in enumerate(weights)
        for correct, part in ((True, wanted.correct_ratio), (False, 1 - wanted.correct_ratio))
    }
    found, given, total = {}, 0, 0.0
    for cell, part in shares.items():
        total += part
        # Rounded as running sums: the remainders go on to the next cell, and nothing is lost.
        found[cell] = math.floor(total * wanted.n_samples + 0.5) - given
        given += found[cell]
    return found


def _summary(drawn: list[Solution], rows: list[Solution], wanted: Sampling) -> str:
    correct = sum(row.correct for row in drawn)
    parts = [f"{correct:,} correct" + (f", {len(drawn) - correct:,} incorrect" if correct < len(drawn) else "")]
    if wanted.bins:
        counts = Counter(cast(int, row.bin) for row in drawn)
        parts += [f"{wanted.name_of(number)}: {counts[number]:,}" for number in range(len(wanted.bins) - 1)]
    problems, of_problems = len({row.problem for row in drawn}), len({row.problem for row in rows})
    return (
        f"{len(drawn):,} of {len(rows):,} solutions, of {problems:,} of {of_problems:,} problems (data_seed "
        f"{wanted.seed}): {'; '.join(parts)}"
    )


def _list(numbers: Iterable[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"
