"""Holding rows out of data that comes without a test split, so that nothing held out is trained on."""

import logging
import random

from datasets import Dataset

from hpt_trl.data.layout_names import Layout
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.sameness import digests, identity
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)


def hold_out(
    dataset: Dataset, source: str, size: float, seed: int, layout: Layout, answers: tuple[str, ...]
) -> tuple[Dataset, Dataset]:
    """Splits rows, or of layout `solutions` whole problems, off for the evaluation.

    Training rows that are the same as a held-out one (see `identity`) are dropped.

    Args:
        size: a count, or a share below 1, of rows or problems.
        answers: the columns of what follows a prompt.

    Returns:
        The training rows and the held-out rows.

    Raises:
        UserError: a size that does not fit the data.
    """
    if layout == "solutions":
        return _hold_out_problems(dataset, source, size, seed)
    count = _count(size, len(dataset), "rows", source)
    columns = identity(dataset, dataset, layout, answers)
    prompts = [digest for _, digest in digests(dataset, columns)]
    if layout == "comparisons":
        # A prompt has several comparisons: whole prompts are held out, so that few training rows are dropped.
        order = list(dict.fromkeys(prompts))
        random.Random(seed).shuffle(order)
        place = {prompt: number for number, prompt in enumerate(order)}
        rows = sorted(range(len(dataset)), key=lambda row: place[prompts[row]])
        test, rest = rows[:count], sorted(rows[count:])
    else:
        numbered = Dataset.from_dict({"row": range(len(dataset))}).train_test_split(test_size=count, seed=seed)
        test, rest = numbered["test"]["row"], numbered["train"]["row"]
    held_out = {prompts[row] for row in test}
    keep = [row for row in rest if prompts[row] not in held_out]
    if not keep:
        raise UserError(f"test_split_size: every {columns[0]} of {source} is also among the {count} held-out ones.")
    if dropped := len(rest) - len(keep):
        logger.warning("%s: %d training rows repeat a held-out %s and are dropped.", source, dropped, columns[0])
    return _copied(dataset.select(keep)), _copied(dataset.select(test))


def _count(size: float, there: int, unit: str, source: str) -> int:
    count = round(size * there) if 0 < size < 1 else int(size)
    if count != size and not 0 < size < 1:
        raise UserError(f"test_split_size: {size} must be a count of {unit}, or a share between 0 and 1.")
    if not 0 < count < there:
        raise UserError(
            f"test_split_size: {size:g} asks for {count} held-out {unit}, but {source} has {there} {unit}; write a "
            f"count from 1 to {there - 1}, or a share between 0 and 1."
        )
    return count


def _hold_out_problems(dataset: Dataset, source: str, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Another solution of a held-out problem, also one under another name with the same text, is no training row."""
    # Digests of the statements: each is repeated with every solution, and together they are gigabytes.
    rows = [(str(problem), hash(text)) for _, (problem, text) in iterate_rows(dataset, ["problem_id", "instruction"])]
    problems = sorted({problem for problem, _ in rows})
    count = _count(size, len(problems), "problems", source)
    held_out = set(random.Random(seed).sample(problems, count))
    texts = {text for problem, text in rows if problem in held_out}
    test = [row for row, (problem, _) in enumerate(rows) if problem in held_out]
    keep = [row for row, (problem, text) in enumerate(rows) if problem not in held_out and text not in texts]
    if not keep:
        raise UserError(f"test_split_size: every problem of {source} is also among the {count} held-out ones.")
    if dropped := len(rows) - len(test) - len(keep):
        logger.warning("%s: %d training rows repeat a held-out problem's text and are dropped.", source, dropped)
    return dataset.select(keep), dataset.select(test)


def _copied(dataset: Dataset) -> Dataset:
    """Lay picked rows out anew: each later change of a column would otherwise copy all columns again, and slowly."""
    return Dataset(dataset.with_format("arrow")[:].combine_chunks(), info=dataset.info)
