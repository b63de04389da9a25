"""Finding brackets and what stands between them, in normalised LaTeX."""

import re

_MARK = re.compile(r"\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\\\|\\[{}]|\\[a-zA-Z]+|\\.|[(){}\[\],;|]", re.DOTALL)
_OPENING = {"(", "{", "[", r"\{"}
_CLOSING = {")", "}", "]", r"\}"}


def closing(text: str) -> int:
    """Return the place after the bracket that closes the one `text` begins with; -1 where none does."""
    depth = 0
    for found in _MARK.finditer(text):
        mark = found[0]
        if mark in _OPENING or mark.startswith(r"\begin"):
            depth += 1
        elif mark in _CLOSING or mark.startswith(r"\end{"):
            depth -= 1
            if depth == 0:
                return found.end()
    return -1


def bracketed(text: str) -> tuple[str, str, str] | None:
    r"""Split `(…)`, `[…]`, `\{…\}` or a mix such as `[0,1)` into bracket, inside, bracket; None for other texts."""
    opening = next((mark for mark in (r"\{", "(", "[") if text.startswith(mark)), None)
    if opening is None or closing(text) != len(text):
        return None
    end = r"\}" if text.endswith(r"\}") else text[-1]
    return opening, text[len(opening) : -len(end)].strip(), end


def split(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Split `text` at what `separators` matches outside of brackets; return the parts and the separators."""
    closed: list[tuple[int, int]] = []
    depth = begin = 0
    for found in _MARK.finditer(text):
        mark = found[0]
        if mark in _OPENING or mark.startswith(r"\begin"):
            begin = found.start() if depth == 0 else begin
            depth += 1
        elif mark in _CLOSING or mark.startswith(r"\end{"):
            depth -= 1
            if depth == 0:
                closed.append((begin, found.end()))
            depth = max(depth, 0)
    if depth:
        return [text], []
    parts, marks, start, hidden = [], [], 0, iter([*closed, (len(text), len(text))])
    low, high = next(hidden)
    for found in separators.finditer(text):
        while found.start() >= high and high < len(text):
            low, high = next(hidden)
        if low <= found.start() < high:
            continue
        parts.append(text[start : found.start()].strip())
        marks.append(found[0].strip())
        start = found.end()
    return [*parts, text[start:].strip()], marks
