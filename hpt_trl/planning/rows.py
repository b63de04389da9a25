"""What `hpt-trl check` shows of the training rows: the ids that the trainer gets, decoded, those with a loss marked."""

from statistics import fmean
from typing import Any

from datasets import Dataset

from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import images_of
from hpt_trl.data.rendering import WHOLE, Encoded
from hpt_trl.data.row_lengths import count_tokens, examples
from hpt_trl.evaluation.generating import encode_prompts
from hpt_trl.methods.hybrid.demonstrations import demonstration_ids
from hpt_trl.methods.sft.turns import encode
from hpt_trl.planning.acted_rows import acted_rows
from hpt_trl.planning.lengths import Lengths, measured_rows
from hpt_trl.planning.showing import SHOWN, cut, marked
from hpt_trl.runs.acting import trains_on_answers
from hpt_trl.runs.prepared import Prepared


def describe_rows(prepared: Prepared) -> tuple[list[tuple[str, str]], Lengths]:
    """The lines about the training rows, and how long these are."""
    splits, encoder = prepared.splits, prepared.encoder
    if prepared.acting is not None:
        return acted_rows(prepared, prepared.acting)
    if splits.layout == "documents":
        return _documents(prepared)
    first = splits.train[0]
    some, count = measured_rows(splits.train, ("prompt", *splits.answers))
    ids = encode_prompts(encoder, [some[index] for index in range(len(some))], return_tensors=None)["input_ids"]
    prompts = [len(prompt) for prompt in ids]
    beside, lengths = _lengths(prepared, some, prompts, count)
    layout = _layout(splits)
    if splits.layout == "demonstrations" and not isinstance(first["prompt"], str):
        layout = f"{splits.said}, {_turns(prepared, some)}{_named(splits)}"
    lines = [
        ("data", f"{_source(splits)}, prompts of up to {max(prompts)} tokens{beside}"),
        ("layout", layout),
        ("first prompt", cut(str(encoder.tokenizer.decode(ids[0])), 2 * SHOWN).rstrip()),
        *_answers(prepared, first),
    ]
    if first.get("answer") is not None:
        lines.append(("answer", cut(str(first["answer"]))))
    return lines, lengths


def rows_there(prepared: Prepared) -> int | None:
    """How many rows an epoch has, which bounds a batch and a step; None where it bounds neither.

    Rollouts fill their batches, packed rows, documents and episodes make other rows than those that are read, and
    several processes fill their batches up with rows that they have had.
    """
    recipe, splits = prepared.recipe, prepared.splits
    others = splits.layout == "documents" or prepared.acting is not None or recipe.setting("packing", False)
    if others or splits.stream is not None or "num_generations" in recipe.keys or recipe.world_size > 1:
        return None
    return len(splits.train)


def _documents(prepared: Prepared) -> tuple[list[tuple[str, str]], Lengths]:
    """The lines about documents, which are trained on whole, and how long these are."""
    splits, encoder = prepared.splits, prepared.encoder
    some, _ = measured_rows(splits.train, ("text",))
    longest = max(tokens for _, tokens in count_tokens(some, splits.source, encoder, ("text",)))
    lines = [
        ("data", f"{_source(splits)}, documents of up to {longest} tokens"),
        ("layout", _layout(splits)),
        ("first document", marked(encoder.document(splits.train[0]["text"]), encoder).rstrip()),
    ]
    limit = prepared.recipe.setting("max_length") or longest
    return lines, Lengths(limit, limit)


def _source(splits: Splits) -> str:
    return splits.counted + (f" without {splits.dropped:,} faulty ones" if splits.dropped else "")


def _lengths(prepared: Prepared, rows: Dataset, prompts: list[int], count: int) -> tuple[str, Lengths]:
    """What is said of the longest answer behind the longest prompt, and how long the rows are.

    Args:
        rows: the first ones, and those that may be longest.
        prompts: tokens of each row's prompt, images included.
        count: how many are the first ones.
    """
    splits, recipe, encoder = prepared.splits, prepared.recipe, prepared.encoder
    longest, mean = max(prompts), fmean(prompts[:count])
    if splits.layout == "prompts":
        pair = _longest_demonstration(prepared, rows, prompts)
        return "" if pair is None else f", with their demonstration {sum(pair)}", Lengths(longest, mean, pair)
    limit = recipe.setting("max_length")
    if encoder.is_processor:
        counts = [_with_images(prepared, rows, prompts, column) for column in splits.answers]
    else:
        counts = [
            [tokens for _, tokens in count_tokens(rows, splits.source, encoder, ("prompt", column))]
            for column in splits.answers
        ]
    whole = max(map(max, counts))
    said = f", with their answer {whole}"
    if limit is not None and recipe.setting("packing", False):
        return said, Lengths(limit, limit)
    first_ones = [min(tokens, limit or tokens) for column in counts for tokens in column[:count]]
    return said, Lengths(min(whole, limit or whole), fmean(first_ones))


def _with_images(prepared: Prepared, rows: Dataset, prompts: list[int], column: str) -> list[int]:
    """Tokens of each row's prompt, images included, with its answer."""
    encoder, found = prepared.encoder, []
    for prompt, (_, row) in zip(prompts, examples(rows, ("prompt", column)), strict=True):
        ids = encoder.answered(row, column).ids
        # Of a row with images it is the answer alone.
        found.append(prompt + len(ids) - (0 if images_of(row) else len(encoder.prompt(row))))
    return found


def _longest_demonstration(prepared: Prepared, rows: Dataset, prompts: list[int]) -> tuple[int, int] | None:
    """Tokens of the prompt and the demonstration that are longest together; None where none is trained on.

    Args:
        prompts: tokens of each row's prompt, images included.
    """
    column = prepared.splits.demonstration_column
    if not trains_on_answers(prepared.recipe, prepared.splits) or column not in rows.column_names:
        return None
    pairs = [
        (prompt, len(encoded_row(prepared, row, column).ids))
        for prompt, (_, row) in zip(prompts, examples(rows, ("prompt", column)), strict=True)
        if row[column]
    ]
    return max(pairs, key=sum, default=None)


def _answers(prepared: Prepared, first: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each answer of the first row: the ids that follow the prompt's end, those with a loss marked."""
    splits, encoder = prepared.splits, prepared.encoder
    lines: list[tuple[str, str]] = []
    if not trains_on_answers(prepared.recipe, splits):
        return lines
    for column in splits.answers:
        if not first.get(column):
            continue
        name = column if splits.layout == "comparisons" else "demonstration"
        encoded = encoded_row(prepared, first, column)
        # Of a conversation the prompt's turns are trained as well.
        if splits.layout != "prompts" and not first.get(WHOLE):
            start = min(len(encoder.prompt(first)), encoded.context)
            encoded = Encoded(encoded.ids[start:], encoded.trained[start:])
        lines.append((name, marked(encoded, encoder).rstrip()))
    return lines


def encoded_row(prepared: Prepared, row: dict[str, Any], column: str) -> Encoded:
    """A row as the stage's trainer gets it; of a rollout's demonstration what follows the prompt."""
    layout, recipe, encoder = prepared.splits.layout, prepared.recipe, prepared.encoder
    if layout == "prompts":
        found = demonstration_ids(row, column, encoder, recipe.setting("max_demonstration_length"))
        return Encoded(found.ids, found.trained)
    if layout == "comparisons":
        return encoder.answered(row, column)
    return encode(row, encoder, recipe.config, recipe.arguments)


def _layout(splits: Splits) -> str:
    return splits.said + _named(splits)


def _named(splits: Splits) -> str:
    """How the form is named in a recipe, where it is not the layout itself."""
    return "" if splits.form == splits.layout else f" (dataset_layout: {splits.form})"


def _turns(prepared: Prepared, rows: Any) -> str:
    """How many turns of the assistant the rows have, and which of them are trained."""
    every = [encoded_row(prepared, row, "completion") for _, row in examples(rows, ("prompt", "completion"))]
    turns = sum(encoded.turns for encoded in every) / len(every)
    trained = sum(encoded.trained_turns for encoded in every) / len(every)
    said = "every assistant turn" if trained == turns else f"{trained:.3g} of them"
    return f"{turns:.3g} turn{'' if turns == 1 else 's'} on average, {said} trained"
