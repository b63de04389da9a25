"""The expert's way to an answer: its turns alone, in VRAG's tags.

An environment that replays them puts what it observes between them: the page that a search shows, the part that a box
cuts out.
"""

from collections.abc import Sequence


def shown_box(box: Sequence[int], page_size: tuple[int, int], shown_size: tuple[int, int]) -> list[int]:
    """A box of a page in pixels of the image that is shown of it.

    It covers what the box covers: rounded down at its left and upper side, up at the others.

    Args:
        box: x1, y1, x2, y2 in pixels of the page; x2 and y2 are the first ones outside.
        page_size: width and height of the page in pixels.
        shown_size: width and height of the shown image in pixels.
    """
    (width, height), (shown_width, shown_height) = page_size, shown_size
    x1, y1, x2, y2 = box
    return [
        x1 * shown_width // width,
        y1 * shown_height // height,
        -(-x2 * shown_width // width),
        -(-y2 * shown_height // height),
    ]


def expert_turns(
    title: str, answer: str, *, box: Sequence[int] | None = None, missed: str | None = None
) -> list[dict[str, str]]:
    """The assistant's turns: a search, a look closer, and the answer.

    Args:
        title: of the page that answers, which is searched for.
        box: x1, y1, x2, y2 in pixels of the shown image, around what answers; None for an expert that does not crop.
        missed: the title of another page, for which this expert searches first.

    Returns:
        Messages of the role `assistant`, one an action.
    """
    turns = []
    if missed is not None:
        turns.append(f"<think>I need a page.</think><search>{missed}</search>")
        turns.append(f"<think>This is another page.</think><search>{title}</search>")
    else:
        turns.append(f"<think>I need a page.</think><search>{title}</search>")
    if box is not None:
        turns.append(f"<think>I look closer.</think><bbox>{list(box)}</bbox>")
    turns.append(f"<think>I can see it.</think><answer>{answer}</answer>")
    return [{"role": "assistant", "content": turn} for turn in turns]
