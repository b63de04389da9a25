"""Forms of an instruction or question and its answer, a column each: Alpaca, dolly, question and answer."""

from typing import Any

from hpt_trl.data.forms.form import Columns, Form, Parts
from hpt_trl.data.forms.messages import is_conversation
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.stored_text import decoded
from hpt_trl.data.usual_names import ANSWERS, QUESTIONS, Names


def alpaca(layout: Layout) -> Form:
    """`instruction`, `input` (see `complete_prompts`) or `context`, `output`; earlier turns in `history`."""
    return Form(
        "alpaca",
        layout,
        "Alpaca's instructions (instruction and input → prompt, output → completion)",
        {"question": ("instruction",), "answer": ("output",)},
        _CONVERTERS[layout],
        optional={"history": ("history",), "context": ("context",)},
        kept=_KEPT[layout],
    )


def dolly(layout: Layout) -> Form:
    """`instruction`, `context`, `response`."""
    return Form(
        "dolly",
        layout,
        "dolly's instructions (instruction and context → prompt, response → completion)",
        {"question": ("instruction",), "context": ("context",), "answer": ("response",)},
        _CONVERTERS[layout],
        kept=_KEPT[layout],
    )


def question_answer(layout: Layout) -> Form:
    """A question and what answers it, under their usual names.

    A bare `answer` stays for the rewards; of prompts it is no demonstration.
    """
    required: dict[str, Names] = {"question": QUESTIONS}
    optional: dict[str, Names] = {"result": ("answer",), "context": ("context",)}
    if layout == "demonstrations":
        required["answer"] = (*ANSWERS, "answer")
    else:
        optional["answer"] = ANSWERS
    return Form(
        "question-answer",
        layout,
        "questions and answers",
        required,
        _CONVERTERS[layout],
        optional=optional,
        kept=("result", *_KEPT[layout]),
    )


def _convert(parts: Parts, columns: Columns) -> Parts | str:
    question = parts["question"]
    context = parts.get("context")
    if isinstance(context, list) and all(isinstance(passage, str) for passage in context):
        context = "\n\n".join(context)
    if context is not None and str(context).strip():
        if not isinstance(question, str) or not isinstance(context, str):
            column = columns["context"]
            return (
                f"`{column}` is {context!r:.60}, and belongs to the prompt; write both as texts, or leave it out: "
                f"column_mapping: {{source_{column}: {column}}}."
            )
        question = question if context.strip() in question else f"{question}\n\n{context.strip()}"
    made: Parts = {"prompt": question}
    if "answer" in parts:
        made["completion"] = parts["answer"]
    # Where the column is there at all, so that the prompts of all rows are messages.
    if "history" in parts:
        turns = _history(parts["history"])
        if isinstance(turns, str):
            return turns
        made["prompt"] = [*turns, {"role": "user", "content": question}]
        if made.get("completion") is not None:
            made["completion"] = [{"role": "assistant", "content": made["completion"]}]
    return made


def _convert_asked(parts: Parts, columns: Columns) -> Parts | str:
    """As `_convert`, where no demonstration is needed: a number or a list is what rewards compare with."""
    if not isinstance(parts.get("answer"), str | None) and not is_conversation(parts["answer"]):
        parts = {part: value for part, value in parts.items() if part != "answer"}
    return _convert(parts, columns)


_CONVERTERS = {"demonstrations": _convert, "prompts": _convert_asked}
# Rewards may read what answers.
_KEPT: dict[Layout, Names] = {"demonstrations": (), "prompts": ("answer",)}


def _history(history: Any) -> list[dict[str, str]] | str:
    """Earlier turns, each a pair of what the user and the assistant said."""
    turns = []
    history = decoded(history)
    if not isinstance(history, list | None):
        return f"`history` is {history!r:.60}; write a list of [what the user said, what the assistant said]."
    for place, pair in enumerate(history or [], 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            return f"`history`, entry {place}, is {pair!r:.60}; write [what the user said, what the assistant said]."
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns
