"""A drawn page, with a question that its picture answers."""

from dataclasses import dataclass

from hpt_trl.data.pages.sheet import Box, Sheet


@dataclass(frozen=True)
class Page:
    """What a layout makes of a title.

    Attributes:
        sheet: the picture and its text layer.
        title: what search finds the page by; no other page of a folder has it.
        question: what is asked about it.
        answer: what stands in `box`, and nowhere in the text layer without values.
        box: x1, y1, x2, y2 in pixels of the picture, around the cell, bar, line or field that answers.
    """

    sheet: Sheet
    title: str
    question: str
    answer: str
    box: Box
