"""Forms of two answers to one prompt, and of answers that are judged one by one."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import extract_prompt

from hpt_trl.data.forms.form import Columns, Form, Parts
from hpt_trl.data.forms.messages import as_messages, is_conversation, lost_prompt
from hpt_trl.data.prompt_parts import GOOD
from hpt_trl.data.row_checks import conversation_fault, iterate_rows
from hpt_trl.data.usual_names import ANSWERS, CHOSEN, QUESTIONS, REJECTED

_PAIR = {"chosen": CHOSEN, "rejected": REJECTED}
# A turn of Anthropic's dialogues; what a speaker says may hold line breaks.
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]*")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def _convert_whole(parts: Parts, columns: Columns) -> Parts | str:
    pair: dict[str, Sequence[Any]] = {side: as_messages(parts[side]) for side in _PAIR}
    for side, messages in pair.items():
        if fault := conversation_fault(columns[side], messages):
            return fault
    made = _parted(pair)
    if isinstance(made, str):
        return made
    return lost_prompt(made["prompt"], parts.get("prompt"), "what `chosen` and `rejected` begin with") or made


def _parted(pair: dict[str, Sequence[Any]]) -> Parts | str:
    """What both conversations begin with is the prompt; equal ones keep their last message, for the checks to find."""
    made = extract_prompt(pair)
    if not made["prompt"]:
        return "`chosen` and `rejected` do not begin with the same prompt."
    return {side: made[side] for side in ("prompt", "chosen", "rejected")}


def _is_whole(first: Parts) -> bool:
    sides = [as_messages(first[side]) if is_conversation(first[side]) else None for side in _PAIR]
    return all(isinstance(side, list) and side and side[0].get("role") != "assistant" for side in sides)


WHOLE_CONVERSATIONS = Form(
    "whole-conversations",
    "comparisons",
    "whole conversations (what both begin with → prompt)",
    _PAIR,
    _convert_whole,
    optional={"prompt": ("prompt",)},
    looks=_is_whole,
)


def _convert_dialogues(parts: Parts, columns: Columns) -> Parts | str:
    pair: dict[str, Sequence[Any]] = {}
    for side in _PAIR:
        text = parts[side]
        if not isinstance(text, str):
            return f"`{columns[side]}` is {text!r:.60}; write a dialogue of turns of `Human:` and `Assistant:`."
        before, spoken = _spoken(text)
        if before or len(spoken) < 2 or spoken[-1]["role"] != "assistant" or not spoken[-1]["content"]:
            return (
                f"`{columns[side]}` must be a dialogue that begins with `Human:` and ends with an answer of "
                f"`Assistant:`; it reads {_ends(text)}."
            )
        pair[side] = spoken
    return _parted(pair)


def _spoken(text: str) -> tuple[str, list[dict[str, str]]]:
    """What stands before a dialogue's first turn, and its turns as messages."""
    before, *turns = _SPEAKER.split(text)
    return before.strip(), [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def asked_turns(prompt: str) -> list[dict[str, str]] | None:
    """The messages of a prompt that is a dialogue of HH-RLHF up to its last `Assistant:`; None of other texts."""
    before, spoken = _spoken(prompt)
    roles = [message["role"] for message in spoken]
    if before or not roles or roles != ["user", "assistant"] * (len(roles) // 2) or spoken[-1]["content"]:
        return None
    return spoken[:-1]


def _ends(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:38]} […] {text[-38:]}")


HH_RLHF = Form(
    "hh-rlhf",
    "comparisons",
    "dialogues of HH-RLHF (the turns that both share → prompt)",
    _PAIR,
    _convert_dialogues,
    looks=lambda first: all(isinstance(first[side], str) and _is_dialogue(first[side]) for side in _PAIR),
)


def _is_dialogue(text: str) -> bool:
    return _SPEAKER.split(text)[1:4:2] == ["Human", "Assistant"]


def _convert_asked(parts: Parts, columns: Columns) -> Parts | str:
    return {"prompt": parts["question"], "chosen": parts["chosen"], "rejected": parts["rejected"]}


ORCA = Form(
    "orca",
    "comparisons",
    "a question and two answers, as of orca's pairs (question → prompt)",
    {"question": (*QUESTIONS[1:], QUESTIONS[0]), **_PAIR},
    _convert_asked,
    looks=lambda first: not _is_whole(first),
)


def _convert_continued(parts: Parts, columns: Columns) -> Parts | str:
    made = {"prompt": as_messages(parts["conversation"])} | {side: as_messages(parts[side]) for side in _PAIR}
    for part, target in (("conversation", "prompt"), *((side, side) for side in _PAIR)):
        if not isinstance(made[target], list):
            return f"`{columns[part]}` is {made[target]!r:.60}; write a list of messages, as in the first row."
    return made


LLAMA_FACTORY = Form(
    "llama-factory",
    "comparisons",
    "LLaMA-Factory's preferences (conversations → prompt)",
    {"conversation": ("conversations", "messages"), **_PAIR},
    _convert_continued,
    looks=lambda first: (
        is_conversation(first["conversation"])
        and all(is_conversation(first[side]) for side in _PAIR)
        and not _is_whole(first)
    ),
)


def said_of_judgements(rows: Dataset, columns: list[str]) -> str | None:
    """What to say of judgements of single answers (KTO) where pairs are needed; None of other rows."""
    asked = next((name for name in ("prompt", "messages", "conversations") if name in columns), None)
    if asked is None or "label" not in columns or {"chosen", "rejected"} & set(columns):
        return None
    if asked == "prompt" and not {*ANSWERS, "answer"} & set(columns):
        return None
    labels: dict[str, set[bool]] = defaultdict(set)
    for _, (prompt, label) in iterate_rows(rows, [asked, "label"]):
        if asked != "prompt" and isinstance(prompt, list):
            prompt = prompt[:-1]
        labels[repr(prompt)].add(str(label).strip().lower() in GOOD)
    both = sum(len(marks) == 2 for marks in labels.values())
    return (
        "The rows are judgements of single answers (KTO: prompt, completion, label), which are unpaired; this stage "
        f"learns from pairs of answers to one prompt, columns `prompt`, `chosen` and `rejected`. {both:,} of "
        f"{len(labels):,} prompts have an answer of either label, which could be paired; the answers whose label is "
        "true can be trained on by `stage: sft`."
    )
