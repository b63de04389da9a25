"""How many tokens rows have, counted on the ids that the trainers get."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from datasets import Dataset

from hpt_trl.data.messages import IMAGES
from hpt_trl.data.reading.places import where
from hpt_trl.data.rendered_with import RENDERED_WITH
from hpt_trl.data.rendering import WHOLE, Encoder
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError

# Beside prompt and answer, what a row's rendering depends on.
_READ_WITH = (*RENDERED_WITH, WHOLE, *IMAGES)


class Asked(NamedTuple):
    """Which tokens of a row are counted.

    Attributes:
        columns: prompt, prompt and answer, or text; taken together.
        as_rollout: the answer follows the prompt and ends as a rollout does.
        limit: tokens that such an answer may have, None for any number.
    """

    columns: tuple[str, ...]
    as_rollout: bool = False
    limit: int | None = None


class Length(NamedTuple):
    """Of a row.

    Attributes:
        tokens: that are read.
        cut: whether the limit has left some out.
    """

    tokens: int
    cut: bool = False


# What was counted of all rows of a data set, by the encoder's state.
_COUNTED: "WeakKeyDictionary[Dataset, dict[Hashable, list[tuple[int, Length]]]]" = WeakKeyDictionary()


def remember(dataset: Dataset, encoder: Encoder, asked: Asked, lengths: list[tuple[int, Length]]) -> None:
    """Keeps the number of each row and its length for those who ask `count_tokens` or `recall` for them."""
    _COUNTED.setdefault(dataset, {})[encoder.state, asked] = lengths


def recall(dataset: Dataset, encoder: Encoder, asked: Asked) -> list[tuple[int, Length]] | None:
    """What `remember` was told of these rows; None where it was told nothing."""
    return _COUNTED.get(dataset, {}).get((encoder.state, asked))


def validate_lengths(
    dataset: Dataset,
    source: str,
    encoder: Encoder,
    *,
    longest: int,
    reason: str,
    remedy: str = "lower max_completion_length",
) -> None:
    """Check that no prompt has more than `longest` tokens.

    Args:
        dataset: rows as `to_conversational` returns them.
        reason: where the limit comes from, e.g. `max_position_embeddings 8192 - max_completion_length 1024`.
        remedy: what else can be done than to shorten or drop the rows.

    Raises:
        UserError: the longest one's row, its tokens and the limit; or a row that cannot be encoded.
    """
    found, worst_row, too_long = 0, 0, 0
    for row, tokens in count_tokens(dataset, source, encoder):
        too_long += tokens > longest
        if tokens > found:
            found, worst_row = tokens, row
    if too_long:
        raise UserError(
            f"{where(source, worst_row)}: the prompt has {found} tokens, more than {longest} ({reason}); {too_long} of "
            f"{len(dataset)} prompts are too long. Shorten or drop them, or {remedy}."
        )


def count_tokens(
    dataset: Dataset, source: str, encoder: Encoder, columns: Sequence[str] = ("prompt",)
) -> Iterator[tuple[int, int]]:
    """Yield the number of each row and the tokens of its columns taken together, as the trainers encode them.

    Args:
        columns: `("prompt",)`, the prompt and its answer's column, or `("text",)`.

    Raises:
        UserError: a row that cannot be encoded.
    """
    if (known := recall(dataset, encoder, Asked(tuple(columns)))) is not None:
        yield from ((row, length.tokens) for row, length in known)
        return
    for row, example in examples(dataset, columns):
        try:
            if len(columns) > 1:
                ids = encoder.answered(example, columns[1]).ids
            else:
                ids = encoder.prompt(example) if columns[0] == "prompt" else encoder.document(example["text"]).ids
        except UserError as error:
            raise UserError(f"{where(source, row)}: {error}") from error
        yield row, len(ids)


def examples(dataset: Dataset, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row with the named columns and those that its rendering depends on."""
    read = [*columns, *(name for name in _READ_WITH if name in dataset.column_names and name not in columns)]
    for row, values in iterate_rows(dataset, read):
        yield row, dict(zip(read, values, strict=True))
