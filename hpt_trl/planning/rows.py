"""What `hpt-trl check` shows of the training rows: the ids that the trainer gets, decoded, those with a loss marked."""

from typing import Any

from transformers import ProcessorMixin

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import WHOLE, Encoded, Encoder
from hpt_trl.data.row_lengths import count_tokens, examples
from hpt_trl.methods.hybrid.demonstrations import demonstration_ids, rollout_encoder
from hpt_trl.runs.evaluation import encode_prompts
from hpt_trl.runs.preparation import Prepared

# Rows that are measured for the estimate of memory.
_MEASURED = 1000
# Characters that are shown of a part of a row.
_SHOWN = 240


def describe_rows(prepared: Prepared) -> tuple[list[tuple[str, str]], int]:
    """The lines about the training rows, and the tokens of the longest prompt or, without rollouts, row."""
    splits, recipe = prepared.splits, prepared.recipe
    tokenizer: Any = prepared.tokenizer
    first = splits.train[0]
    source = f"{splits.source}, {len(splits.train):,} rows"
    some = splits.train.select(range(min(_MEASURED, len(splits.train))))
    if splits.layout == "documents":
        encoder = Encoder(tokenizer)
        longest = max(tokens for _, tokens in count_tokens(some, splits.source, encoder, ("text",)))
        shown = marked(encoder.document(first["text"]), tokenizer)
        limit = recipe.setting("max_length") or longest
        return [("data", f"{source}, documents of up to {longest} tokens"), ("first document", _indented(shown))], limit
    kwargs = recipe.setting("chat_template_kwargs")
    encoded = encode_prompts(tokenizer, [some[index] for index in range(len(some))], kwargs, return_tensors=None)
    longest = max(len(ids) for ids in encoded["input_ids"])
    lines = [
        ("data", f"{source}, prompts of up to {longest} tokens"),
        ("first prompt", _indented(cut(str(tokenizer.decode(encoded["input_ids"][0])), 2 * _SHOWN))),
        *_answers(prepared, first),
    ]
    if first.get("answer") is not None:
        lines.append(("answer", cut(str(first["answer"]))))
    if splits.layout == "prompts" or isinstance(tokenizer, ProcessorMixin):
        return lines, longest
    encoder = Encoder(tokenizer)
    whole = max(
        tokens
        for column in splits.answers
        for _, tokens in count_tokens(some, splits.source, encoder, ("prompt", column))
    )
    lines[0] = ("data", f"{lines[0][1]}, with their answer {whole}")
    if splits.layout == "demonstrations" and not isinstance(first["prompt"], str):
        lines.insert(1, ("turns", _turns(prepared, some, encoder)))
    limit = recipe.setting("max_length")
    return lines, limit if recipe.setting("packing", False) else min(whole, limit or whole)


def _answers(prepared: Prepared, first: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each answer of the first row: the ids that follow the prompt's end, those with a loss marked."""
    splits, recipe = prepared.splits, prepared.recipe
    tokenizer: Any = prepared.tokenizer
    lines = []
    for column in splits.answers:
        if not first.get(column):
            continue
        name = column if splits.layout == "comparisons" else "demonstration"
        if isinstance(tokenizer, ProcessorMixin):
            lines.append((name, _indented(cut(as_text(first[column])))))
            continue
        if splits.layout == "prompts":
            encoder = rollout_encoder(tokenizer, recipe.setting("chat_template_kwargs"))
            longest = recipe.setting("max_demonstration_length")
            found = demonstration_ids(first, column, encoder, [tokenizer.eos_token_id], longest)
            encoded = Encoded(found.ids, found.trained)
        else:
            encoder = Encoder(tokenizer)
            encoded = encoder.answered(first, column, last_turn_only=_last_alone(prepared))
            if not first.get(WHOLE):
                start = len(encoder.prompt(first))
                encoded = Encoded(encoded.ids[start:], encoded.trained[start:])
        lines.append((name, _indented(marked(encoded, tokenizer))))
    return lines


def _last_alone(prepared: Prepared) -> bool:
    return vars(prepared.recipe.arguments).get("train_on_turns") == "last"


def _turns(prepared: Prepared, rows: Any, encoder: Encoder) -> str:
    every = [
        encoder.answered(row, "completion", last_turn_only=_last_alone(prepared))
        for _, row in examples(rows, ("prompt", "completion"))
    ]
    turns = sum(encoded.turns for encoded in every) / len(every)
    trained = sum(encoded.trained_turns for encoded in every) / len(every)
    return f"{turns:.3g} of the assistant in a row on average, {trained:.3g} of them trained"


def marked(encoded: Encoded, tokenizer: Any) -> str:
    """The ids decoded, each run of those with a loss between ⟦ and ⟧, long runs cut in the middle."""
    parts, start = [], 0
    for place in range(1, len(encoded.ids) + 1):
        if place == len(encoded.ids) or encoded.trained[place] != encoded.trained[start]:
            text = cut(str(tokenizer.decode(encoded.ids[start:place])))
            parts.append(f"⟦{text}⟧" if encoded.trained[start] else text)
            start = place
    return cut("".join(parts), 4 * _SHOWN)


def cut(text: str, length: int = _SHOWN) -> str:
    """A text with its middle left out where it is long."""
    return text if len(text) <= length else f"{text[: length // 2]} […] {text[-length // 2 :]}"


def _indented(text: str) -> str:
    return text.rstrip().replace("\n", "\n" + 16 * " ")
