"""How many tokens the training rows have, as far as memory and time depend on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from datasets import Dataset

from hpt_trl.data.row_checks import iterate_rows

# Rows that are encoded: the first ones, from which means are taken, and those with the longest texts.
_FIRST, _LONGEST = 1000, 100


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows.

    Attributes:
        longest: of the longest prompt; in stages without rollouts of the longest row, prompt and answer together.
        mean: the same on average.
        demonstration: prompt and demonstration of the row in which they are longest together, where the stage trains
            on demonstrations beside its rollouts.
    """

    longest: int
    mean: float
    demonstration: tuple[int, int] | None = None


def measured_rows(dataset: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """Returns rows that are worth encoding: the first ones, then those with the longest texts; and how many are first.

    All rows are read, few are encoded: what has the most characters has the most tokens, or nearly so.

    Args:
        columns: whose texts count, those that there are.
    """
    count = min(_FIRST, len(dataset))
    if count == len(dataset):
        return dataset, count
    there = [column for column in columns if column in dataset.column_names]
    sizes = ((len(str(values)), place) for place, (_, values) in enumerate(iterate_rows(dataset, there)))
    longest = [place for _, place in nlargest(_LONGEST, sizes) if place >= count]
    return dataset.select([*range(count), *sorted(longest)]), count
