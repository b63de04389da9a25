"""Demonstrations as token ids that continue exactly where a rollout of the same prompt would."""

from collections.abc import Hashable, Iterator
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from datasets import Dataset

from hpt_trl.data.messages import as_text
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import Asked, Length, examples, recall
from hpt_trl.data.turns import shown
from hpt_trl.environments.pieces import Segment
from hpt_trl.errors import UserError
from hpt_trl.methods.hybrid.grading import AsRollouts, Sampled, texts_as_rollouts

# What was found of a data set: `check_rows` of the stage and the trainer ask the same, which takes minutes where
# demonstrations are many and long.
_CHECKED: "WeakKeyDictionary[Dataset, dict[Hashable, int]]" = WeakKeyDictionary()


class Demonstration(NamedTuple):
    """What follows a rollout's prompt.

    Attributes:
        ids: token ids, the last one an end-of-sequence token.
        trained: 1 for a token of the assistant's turns, 0 for one of the user's and of tools; as long as `ids`.
        context: tokens of the prompt; 0 where images widen it.
        truncated: whether `max_demonstration_length` cut it, or in an environment the limit of the context.
        segments: in an environment: the contexts that it was played in.
    """

    ids: list[int]
    trained: list[int]
    context: int
    truncated: bool
    segments: list[Segment] | None = None


def demonstration_ids(
    example: dict[str, Any], column: str, encoder: Encoder, max_length: int | None = None
) -> Demonstration:
    """Token ids of a row's demonstration; each turn of the assistant ends on an end-of-sequence token.

    What a chat template writes after the end of a turn (a newline, usually) has no loss, and is cut off behind the last
    turn: a rollout stops there.

    Args:
        example: A row of the dataset: `prompt` and the demonstration, both text or both messages.
        column: Name of the demonstration's column.
        encoder: The rollouts': its prompts are theirs, and its `end_ids` stop them.
        max_length: Longest demonstration in tokens. Of a longer one the turns that fit are left; a first turn that is
            too long by itself is cut and keeps its last token, so that the model is never taught to run on.

    Raises:
        UserError: the demonstration does not continue the rollouts' prompt, is not whole in what would be trained, or
            ends before its last word.
    """
    encoded = encoder.answered(example, column)
    ids, trained = encoded.ids[encoded.context :], encoded.trained[encoded.context :]
    turns = _turns(trained)
    ends = [_end(ids, *turn, encoder) for turn in turns]
    for (_, stop), end in zip(turns, ends, strict=True):
        trained[end:stop] = [0] * (stop - end)
    ids, trained = ids[: ends[-1]], trained[: ends[-1]]
    if max_length is None or len(ids) <= max_length:
        return Demonstration(ids, trained, encoded.context, False)
    fitting = [end for end in ends if end <= max_length]
    if fitting:
        return Demonstration(ids[: fitting[-1]], trained[: fitting[-1]], encoded.context, True)
    return Demonstration([*ids[: max_length - 1], ids[ends[0] - 1]], trained[:max_length], encoded.context, True)


class Demonstrations:
    """The demonstrations of a process's rows of a generation batch, each encoded once and when it is asked for."""

    def __init__(self, rows: list[dict[str, Any]], column: str, encoder: Encoder, max_length: int | None):
        self._rows, self._column, self._encoder, self._max_length = rows, column, encoder, max_length
        self._known: dict[int, Demonstration] = {}

    def __getitem__(self, row: int) -> Demonstration:
        """Return a row's demonstration.

        Raises:
            UserError: it has none, or one that cannot be trained as it is written.
        """
        if row not in self._known:
            example, column = self._rows[row], self._column
            if not example.get(column):
                raise missing(example, column)
            try:
                self._known[row] = demonstration_ids(example, column, self._encoder, self._max_length)
            except UserError as error:
                raise UserError(f"the demonstration `{column}`: {error}\n{_shown(example)}") from error
        return self._known[row]

    def as_rollouts(self, sampled: Sampled) -> AsRollouts:
        """How these are handed to rewards."""
        encoder = self._encoder
        return texts_as_rollouts(sampled, lambda row: self[row].ids, encoder.end_ids[0], encoder.processing_class)


def missing(example: dict[str, Any], column: str) -> UserError:
    """Returns (does not raise) the error about a row without the demonstration that its prompt calls for."""
    return UserError(
        f"A prompt calls for its demonstration, but `{column}` is {example.get(column)!r}. Give the row "
        f"a demonstration or set `on_missing_demonstration: rl`. {_shown(example)}"
    )


def demonstration_asked(column: str, max_length: int | None) -> Asked:
    """What `demonstration_length` counts of a row."""
    return Asked(("prompt", column), as_rollout=True, limit=max_length)


def demonstration_length(example: dict[str, Any], column: str, encoder: Encoder, max_length: int | None) -> Length:
    """What `check_demonstrations` asks of a row: the tokens of its prompt and demonstration, and whether it is cut.

    Raises:
        UserError: it cannot be trained as it is written.
    """
    try:
        found = demonstration_ids(example, column, encoder, max_length)
    except UserError as error:
        raise UserError(f"the demonstration `{column}`: {error}") from error
    return Length(found.context + len(found.ids), found.truncated)


def check_demonstrations(
    dataset: Dataset, source: str, column: str, encoder: Encoder, *, max_length: int | None, positions: int | None
) -> int:
    """Encode the demonstration of every row that has one; return how many `max_length` cuts.

    Args:
        max_length: `max_demonstration_length`.
        positions: how many tokens the model takes, None where it has no limit.

    Raises:
        UserError: the first that cannot be trained as it is written, with its row; or the longest, where it is longer
            than the model takes with its prompt.
    """
    if column not in dataset.column_names:
        return 0
    known = _CHECKED.setdefault(dataset, {})
    question = (encoder.state, column, max_length, positions)
    if question in known:
        return known[question]
    lengths = recall(dataset, encoder, demonstration_asked(column, max_length))
    if lengths is None:
        lengths = list(_lengths(dataset, source, column, encoder, max_length))
    too_long = [(length.tokens, row) for row, length in lengths if positions is not None and length.tokens > positions]
    if too_long:
        most, row = max(too_long)
        raise UserError(
            f"{where(source, row)}: prompt and demonstration have {most} tokens, the model takes {positions} "
            f"(max_position_embeddings); {len(too_long)} of {len(dataset)} rows have more. Shorten or drop them, or "
            "set `max_demonstration_length`."
        )
    known[question] = sum(length.cut for _, length in lengths)
    return known[question]


def _lengths(
    dataset: Dataset, source: str, column: str, encoder: Encoder, max_length: int | None
) -> Iterator[tuple[int, Length]]:
    """Of every row that has a demonstration, by its number."""
    for row, example in examples(dataset, ("prompt", column)):
        if example[column]:
            try:
                yield row, demonstration_length(example, column, encoder, max_length)
            except UserError as error:
                raise UserError(f"{where(source, row)}, {error}") from error


def _shown(example: dict[str, Any]) -> str:
    number = f"row {example[ROW]}, " if ROW in example else ""
    return f"{number}prompt: {shown(as_text(example['prompt']))}"


def _turns(trained: list[int]) -> list[tuple[int, int]]:
    """Where the runs of ones begin and end."""
    runs, place = [], 0
    for value, run in groupby(trained):
        length = len(list(run))
        if value:
            runs.append((place, place + length))
        place += length
    return runs


def _end(ids: list[int], start: int, stop: int, encoder: Encoder) -> int:
    """Where a turn ends: behind its first end-of-sequence token, at which a rollout would stop."""
    first = next((place for place in range(start, stop) if ids[place] in encoder.end_ids), None)
    if first is None:
        return stop
    rest = [token for token in ids[first + 1 : stop] if token not in encoder.end_ids]
    if said := encoder.tokenizer.decode(rest).strip():
        raise UserError(
            f"it goes on after an end-of-sequence token ({encoder.tokenizer.decode([ids[first]])!r}), at which a "
            f"rollout stops: {shown(said)}. Write the text without that token."
        )
    return first + 1
