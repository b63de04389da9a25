"""Where a worked solution gives its final answer: in boxes, and on lines that begin with `####`."""

import re

HASHES = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)
BOXED = "\\boxed{"


def final_answers(text: str) -> list[tuple[int, str]]:
    r"""Return every final answer in `text` with its position: the contents of `\boxed{...}` and of `#### ...` lines.

    Braces in `\boxed{...}` are matched; a box that is never closed and an empty answer do not count.
    """
    found = [(match.start(1), match.group(1).strip()) for match in HASHES.finditer(text)]
    start = text.find(BOXED)
    while start >= 0:
        begin = start + len(BOXED)
        depth, end = 1, begin
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        found.append((begin, text[begin : end - 1].strip()))
        start = text.find(BOXED, end)
    return sorted((place, answer) for place, answer in found if answer)


def final_answer(text: str) -> str | None:
    r"""Return the last final answer in `text` (see `final_answers`), or None."""
    answers = final_answers(text)
    if not answers:
        return None
    # `#### \boxed{7}` is one answer, written both ways: the box, which comes last, holds it.
    return answers[-1][1]
