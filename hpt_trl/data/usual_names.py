"""The names that people give their columns: forms find their parts by them, and messages guess what is meant."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import chain

Names = tuple[str, ...]

QUESTIONS: Names = ("prompt", "question", "problem", "instruction", "query", "inputs", "input")
# `answer` is apart: beside a solution it is the result alone.
ANSWERS: Names = ("completion", "solution", "response", "output", "target", "targets", "demonstration")
CONVERSATIONS: Names = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
CHOSEN: Names = ("chosen", "chosen_response")
REJECTED: Names = ("rejected", "rejected_response")

# Column that a trainer reads -> names under which others have the same.
_MEANT: dict[str, Names] = {
    "prompt": (*QUESTIONS[1:], "messages"),
    "completion": (*ANSWERS[1:], "answer", "generation", "code", "summary"),
    "chosen": (*CHOSEN[1:], "better", "preferred", "accepted"),
    "rejected": (*REJECTED[1:], "worse", "dispreferred", "refused"),
    "text": ("content", "document", "story", "body"),
    "instruction": ("description", "problem", "question", "prompt", "statement"),
    "output": ("solution", "code", "completion", "response"),
    "problem_id": ("name", "task_id", "id", "problem"),
    "is_correct": ("correct", "passed", "label"),
}


def guessed(target: str, written: str, columns: Sequence[str], taken: Collection[str] = ()) -> str | None:
    """The column that may be meant by one that the data lacks; None where no name is like it.

    Args:
        target: the column that the trainer reads.
        written: what was looked for, another name where a mapping gives one.
        taken: columns that mean something else.
    """
    free = {name.lower(): name for name in columns if name not in taken}
    # Less alike, a name is another word.
    near = iter(get_close_matches(written.lower(), free, n=1, cutoff=0.7))
    usual = _MEANT.get(target, _MEANT["completion"])
    same = (name for one in usual for name in (one, f"{one}s") if name in free)
    ending = (name for one in usual for name in free if name.endswith(f"_{one}"))
    found = next(chain(near, same, ending), None)
    return None if found is None else free[found]


def in_small_letters(columns: Sequence[str], kept: Collection[str]) -> dict[str, str]:
    """Each column whose name has capitals -> the name without them; nothing where two would have one name.

    Args:
        kept: columns that somebody names as they are.
    """
    small = {name: name.lower() for name in columns if name not in kept and name != name.lower()}
    every = [small.get(name, name) for name in columns]
    return small if len(set(every)) == len(every) else {}
