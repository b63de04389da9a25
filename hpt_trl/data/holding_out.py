"""Holding rows out of data that comes without a test split, so that nothing held out is trained on."""

import hashlib
import logging
import random
from typing import Any

from datasets import Dataset

from hpt_trl.data.layouts import Layout
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.sources import column_values, where
from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)


def hold_out(dataset: Dataset, source: str, size: float, seed: int, layout: Layout) -> tuple[Dataset, Dataset]:
    """Splits rows, or of layout `solutions` whole problems, off for the evaluation.

    Training rows that repeat a held-out prompt, document or problem are dropped.

    Args:
        size: a count, or a share below 1, of rows or problems.

    Returns:
        The training rows and the held-out rows.

    Raises:
        UserError: a size that does not fit the data.
    """
    if layout == "solutions":
        return _hold_out_problems(dataset, source, size, seed)
    count = _count(size, len(dataset), "rows", source)
    key = "text" if layout == "documents" else "prompt"
    if layout == "comparisons":
        # A prompt has several comparisons: whole prompts are held out, so that few training rows are dropped.
        prompts = [repr(prompt) for prompt in column_values(dataset, key)]
        order = list(dict.fromkeys(prompts))
        random.Random(seed).shuffle(order)
        place = {prompt: number for number, prompt in enumerate(order)}
        rows = sorted(range(len(dataset)), key=lambda row: place[prompts[row]])
        test, rest = dataset.select(rows[:count]), dataset.select(sorted(rows[count:]))
    else:
        parts = dataset.train_test_split(test_size=count, seed=seed)
        test, rest = parts["test"], parts["train"]
    held_out = {repr(value) for value in column_values(test, key)}
    keep = [row for row, value in enumerate(column_values(rest, key)) if repr(value) not in held_out]
    if not keep:
        raise UserError(f"test_split_size: every {key} of {source} is also among the {count} held-out ones.")
    if len(keep) < len(rest):
        logger.warning("%s: %d training rows repeat a held-out %s and are dropped.", source, len(rest) - len(keep), key)
    return _copied(rest.select(keep)), _copied(test)


def check_overlap(train: Dataset, source: str, test: Dataset, test_source: str, layout: Layout) -> int:
    """Say how many held-out rows ask for what is trained on as well: their measures tell of memory.

    Returns:
        The number of held-out rows whose prompt, document or problem is among the training rows.
    """
    key = {"documents": "text", "solutions": "instruction"}.get(layout, "prompt")
    # Digests: what is held in memory does not grow with the length of the texts.
    trained = {_digest(value) for _, (value,) in iterate_rows(train, [key])}
    found = [row for row, (value,) in iterate_rows(test, [key]) if _digest(value) in trained]
    # A recipe that lists its prompts answers the same ones, and says so.
    if not found or source == "prompts":
        return len(found)
    logger.warning(
        "%d of the %d rows of %s have a %s that %s trains on (the first is %s): their measures tell of memory, not of "
        "new rows. Name another split, or hold rows out by `test_split_size`.",
        len(found),
        len(test),
        test_source,
        key,
        source,
        where(test_source, found[0]),
    )
    return len(found)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
