"""Completions for reading: the same prompts answered before and after, and by several runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpt_trl.reports.run import Run

# Prompts that are shown, and characters of each text.
_MOST = 8
_LONGEST = 3000
_LONGEST_PROMPT = 1200
# Characters that no browser shows, as signs for them; a random model writes them.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@dataclass(frozen=True)
class Text:
    """A text, and how many of its characters are left out: at the beginning, or (None) at the end."""

    text: str
    before: int = 0
    behind: int = 0


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
        runs: Places of the runs that gave it.
        side: `before`, `after`, or empty of a run that only measures.
        solved: None where it is not known.
        rewards: Each reward by its name.
    """

    runs: tuple[int, ...]
    side: str
    text: Text
    solved: bool | None
    reward: float | None
    rewards: dict[str, float | None]
    length: int | None
    truncated: bool


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, the answer that is right where the data has one, and completions."""

    prompt: Text
    answer: str | None
    answers: tuple[Answer, ...]


def samples_of(runs: Sequence[Run]) -> list[Sample]:
    """The first prompts of the runs with what they answered; those that several runs answered come first."""
    found: dict[tuple[str, str | None], list[Answer]] = {}
    for place, run in enumerate(runs):
        for side, entry in _entries(run):
            answer = None if entry.get("answer") is None else str(entry["answer"]).translate(_SIGNS)
            found.setdefault((entry["prompt"], answer), []).append(_answer(place, side, entry))
    ordered = sorted(found.items(), key=lambda item: -len({answer.runs for answer in item[1]}))[:_MOST]
    return [
        Sample(_end(prompt, _LONGEST_PROMPT), answer, tuple(_merged(sorted(answers, key=_order))))
        for (prompt, answer), answers in ordered
    ]


def _entries(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    for side, evaluation in (("before", run.before), ("after", run.after)):
        for entry in (evaluation or {}).get("completions", []):
            yield side, entry
    for entry in (run.results or {}).get("completions", []):
        yield "", entry


def _answer(place: int, side: str, entry: dict[str, Any]) -> Answer:
    return Answer(
        runs=(place,),
        side=side,
        text=_beginning(entry["completion"].strip(), _LONGEST),
        solved=entry.get("solved"),
        reward=entry.get("reward"),
        rewards=entry.get("rewards", {}),
        length=entry.get("length"),
        truncated=bool(entry.get("truncated")),
    )


def _order(answer: Answer) -> tuple[bool, int]:
    return answer.side != "before", answer.runs[0]


def _merged(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Answers of several runs that are the same, as before trainings of one model, as one."""
    kept: list[Answer] = []
    for answer in answers:
        for place, other in enumerate(kept):
            if replace(answer, runs=other.runs) == other:
                kept[place] = replace(other, runs=other.runs + answer.runs)
                break
        else:
            kept.append(answer)
    yield from kept


def _beginning(text: str, most: int) -> Text:
    return Text(text[:most].translate(_SIGNS), behind=max(0, len(text) - most))


def _end(text: str, most: int) -> Text:
    # The end of a prompt is the question; what comes first is often the same for every row.
    return Text(text[-most:].translate(_SIGNS), before=max(0, len(text) - most))
