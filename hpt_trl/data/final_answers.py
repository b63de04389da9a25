r"""Where a worked solution gives its final answer: in boxes, and on lines that begin with `####`."""

import re
from bisect import bisect_left
from dataclasses import dataclass

HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(.*)$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"\\[dt]?frac ?\d ?\d|-?\d[\d.,]*(?<![.,])|\\[a-zA-Z]+(?:\{[^{}\n]*\})*|[^\s{}$\\.,;]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may stand between two boxes that are one answer: `x=\boxed{2} or x=\boxed{3}`. What two parts could match is
# kept by the first (`*+`), for a model may write thousands of spaces.
_BETWEEN = re.compile(
    r"(?:\$|\\[()])*\s*+(?:,?\s*+(?:\\text\{\s*|\\quad\s*)?(?:and|or)(?:\s*\})?|[,;])\s*+(?:\$|\\[()])*+\s*+"
    r"(?:\\quad\s*)?(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?(?:\$|\\[()])*"
)
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:(?:final|correct)\s+)?"
    r"(?:(?:answers?|results?|ans\.?)\s*(?:is\b|are\b|[:=]|$|(?=[-\d($\\]))|(?:total|sum|value|final)\s*(?:is\b|[:=])|"
    # `Solution: 42`; with words after it, it is a heading.
    r"solutions?\s*(?:is\b|are\b|[:=])(?=\s*(?:[-\d($\\{\[]|[a-zA-Z]\s*=)))\s*:?\s*",
    re.IGNORECASE,
)
_MARKDOWN = ("***", "**", "__", "`", "*")
_SHORT_WORDS = {"yes", "no", "true", "false", "none", "dne", "undefined"}
_STEP = re.compile(
    r"(?:step|part|case|section|example|question|problem|task|method|approach|solution|"
    r"alternative\w*|another|check\w*|verif\w*|note|summary|explanation)\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"\(?[\da-zA-Z]{1,2}[.):]\s+[a-zA-Z]{2,}")
_PLAIN_WORDS = re.compile(r"(?=[^\d\\=$]*[a-zA-Z]{2})[^\d\\=$]+")
# `Why 5 is right`, `Remark 2`, `Double-check with n=3`: words from a capital letter on (or of a script without them, or
# after an emoji), but no conclusion (`Thus x=5`), no choice, date, verdict or amount of money. Typographic marks are
# what models write.
_TITLE = re.compile(
    r"[^\w\x00-\x7f]*+\s*+(?!(?:So|Thus|Therefore|Hence|Option|Choice|Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|"
    r"June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?|Yes|No|True|False|"
    r"USD|EUR|GBP|JPY|CNY|INR|Rs)\b)"
    r"(?:[AI]\s+|(?![a-z]))[^\W\d_]{2,}(?:['’-][^\W\d_]+)*(?:\s*[,:–—])?\s+(?:[^\W_]|[$(\"'“]|\\\()"  # noqa: RUF001
)


@dataclass(frozen=True)
class _Mark:
    """One place with an answer: its start and end in the text, and whether it may be a heading instead."""

    start: int
    end: int
    answer: str
    boxed: bool
    heading: bool


def final_answers(text: str) -> list[tuple[int, str]]:
    r"""Return every final answer in `text` with its position: the contents of boxes and of `#### ...` lines.

    Boxes that only a comma, `and` or `or` parts are one answer, joined by commas. A box on a `####` line is that
    line's answer. A `####` line of words, such as `#### Verification` or `#### Remark 2`, is a heading where the text
    has other answers. A box that is never closed and an empty answer do not count.
    """
    marks = _joined(text, _boxes(text))
    starts = [mark.start for mark in marks]
    for line in HASHES.finditer(text):
        if bisect_left(starts, line.start()) == bisect_left(starts, line.end()):
            mark = _line(text, line)
            if mark is not None:
                marks.append(mark)
    if any(not mark.heading for mark in marks):
        marks = [mark for mark in marks if not mark.heading]
    return [(mark.start, mark.answer) for mark in sorted(marks, key=lambda mark: mark.start)]


def final_answer(text: str) -> str | None:
    r"""Return the last final answer in `text` (see `final_answers`), or None."""
    answers = final_answers(text)
    return answers[-1][1] if answers else None


def _boxes(text: str) -> list[_Mark]:
    """Find the innermost boxes; one pass over the braces, for texts may be long and hold many open ones."""
    starts = list(_BOX.finditer(text))
    if not starts:
        return []
    open_at: list[int] = []
    closes: dict[int, int] = {}
    for brace in _BRACE.finditer(text, starts[0].start()):
        if brace[0] == "{":
            open_at.append(brace.start())
        elif brace[0] == "}" and open_at:
            closes[open_at.pop()] = brace.start()
    marks: list[_Mark] = []
    for box in starts:
        begin = box.end()
        if text[begin : begin + 1] == "{":
            end = closes.get(begin, -1)
            answer = text[begin + 1 : end].strip() if end >= 0 else ""
            if marks and end >= 0 and marks[-1].end > end:
                # `\boxed{\boxed{5}}`
                marks.pop()
            if answer:
                marks.append(_Mark(box.start(), end + 1, answer, boxed=True, heading=False))
        elif bare := _BARE.match(text, begin):
            marks.append(_Mark(box.start(), bare.end(), bare[0], boxed=True, heading=False))
    return marks


def _joined(text: str, boxes: list[_Mark]) -> list[_Mark]:
    groups: list[list[_Mark]] = []
    for box in boxes:
        if groups and _BETWEEN.fullmatch(text, groups[-1][-1].end, box.start):
            groups[-1].append(box)
        else:
            groups.append([box])
    return [
        _Mark(group[0].start, group[-1].end, ", ".join(box.answer for box in group), boxed=True, heading=False)
        for group in groups
    ]


def _line(text: str, line: re.Match[str]) -> _Mark | None:
    content = _bare(line[1])
    lead = _LEAD.match(content)
    if lead and lead.end() == len(content):
        # `#### Final answer`, and the answer on the next line.
        following = re.compile(r"\s*([^\n#][^\n]*)").match(text, line.end())
        answer = _bare(following[1]) if following else ""
        heading = not answer
        answer = answer or content
    else:
        answer = _bare(content[lead.end() :]) if lead else content
        heading = not lead and _is_heading(answer)
    return _Mark(line.start(1), line.end(), answer, boxed=False, heading=heading) if answer else None


def _is_heading(content: str) -> bool:
    if content.lower().strip(" .") in _SHORT_WORDS:
        return False
    return bool(
        _STEP.match(content)
        or _NUMBERED.match(content)
        or _PLAIN_WORDS.fullmatch(content)
        or (_TITLE.match(content) and not _is_named(content))
        or (content.endswith(":") and len(content) > 2)
    )


def _is_named(content: str) -> bool:
    """Whether words are the name of a value, as in `Total cost = 5`; `with n=3` names a letter."""
    name, equals, _ = content.partition("=")
    return bool(equals) and name.rstrip(" $\\(")[-2:].isalpha()


def _bare(content: str) -> str:
    """Drop the markdown around an answer."""
    content = content.strip()
    for mark in _MARKDOWN:
        inner = content.rstrip(".").removesuffix(mark).removeprefix(mark)
        if content.startswith(mark) and content.rstrip(".").endswith(mark) and inner and mark not in inner:
            content = inner.strip()
        # `**Answer:** 5`
        if content.startswith(mark) and content.count(mark) == 2:
            content = content.replace(mark, "").strip()
    return content
