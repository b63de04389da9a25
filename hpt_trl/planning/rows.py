"""What `hpt-trl check` shows of the training rows: the ids that the trainer gets, decoded, those with a loss marked."""

from statistics import fmean
from typing import Any

from datasets import Dataset

from hpt_trl.data.layouts import Splits
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
    splits, recipe, encoder = prepared.splits, prepared.recipe, prepared.encoder
    if prepared.acting is not None:
        return acted_rows(prepared, prepared.acting)
    first = splits.train[0]
    source = splits.counted
    if splits.dropped:
        source += f" without {splits.dropped:,} faulty ones"
    texts = ("text",) if splits.layout == "documents" else ("prompt", *splits.answers)
    some, count = measured_rows(splits.train, texts)
    if splits.layout == "documents":
        longest = max(tokens for _, tokens in count_tokens(some, splits.source, encoder, ("text",)))
        shown = marked(encoder.document(first["text"]), encoder)
        limit = recipe.setting("max_length") or longest
        data = ("data", f"{source}, documents of up to {longest} tokens")
        lines = [data, ("layout", _layout(splits)), ("first document", shown.rstrip())]
        return lines, Lengths(limit, limit)
    encoded = encode_prompts(encoder, [some[index] for index in range(len(some))], return_tensors=None)
    prompts = [len(ids) for ids in encoded["input_ids"]]
    longest = max(prompts)
    lines = [
        ("data", f"{source}, prompts of up to {longest} tokens"),
        ("layout", _layout(splits)),
        ("first prompt", cut(str(encoder.tokenizer.decode(encoded["input_ids"][0])), 2 * SHOWN).rstrip()),
        *_answers(prepared, first),
    ]
    if first.get("answer") is not None:
        lines.append(("answer", cut(str(first["answer"]))))
    if splits.layout == "demonstrations" and not isinstance(first["prompt"], str):
        lines[1] = ("layout", f"{splits.said}, {_turns(prepared, some)}{_named(splits)}")
    if splits.layout == "prompts":
        pair = _longest_demonstration(prepared, some, prompts)
        if pair is not None:
            lines[0] = ("data", f"{lines[0][1]}, with their demonstration {sum(pair)}")
        return lines, Lengths(longest, fmean(prompts[:count]), pair)
    if encoder.is_processor:
        return lines, Lengths(longest, fmean(prompts[:count]))
    limit = recipe.setting("max_length")
    counts = [
        [tokens for _, tokens in count_tokens(some, splits.source, encoder, ("prompt", column))]
        for column in splits.answers
    ]
    whole = max(map(max, counts))
    lines[0] = ("data", f"{lines[0][1]}, with their answer {whole}")
    if limit is not None and recipe.setting("packing", False):
        return lines, Lengths(limit, limit)
    first_ones = [min(tokens, limit or tokens) for column in counts for tokens in column[:count]]
    return lines, Lengths(min(whole, limit or whole), fmean(first_ones))


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
