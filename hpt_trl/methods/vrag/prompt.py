"""What a prompt tells the model of the environment: its actions, its pages, and how long it sees them."""

from hpt_trl.environments.protocol import Messages

_TAGS = """\
Answer the question by looking at pages of a collection. First think inside <think> and </think>, then do one of these:
<search>query</search> shows the next page for the query that you have not seen yet;
{crop}<answer>answer</answer> ends with your answer."""
_CROP = "<bbox>[x1, y1, x2, y2]</bbox> shows a part of the last page larger, in pixels of the page as you saw it;\n"
_TOOLS = """\
Answer the question by looking at pages of a collection. First think, then call one tool: search shows the next page \
for a query that you have not seen yet;{crop} answer ends with your answer."""
_CROP_TOOL = " crop shows a part of the last page larger, in pixels of the page as you saw it;"
_TURNS = "You have {turns} turns."
_IMAGES = "You see the last {images} images; an older one is replaced by its name."

# What stands for an image that is folded away.
FOLDED = "[{kind} {name}: folded away]"


def instructions(vocabulary: str, *, crops: bool, turns: int, images: int | None) -> str:
    """The instructions.

    Args:
        vocabulary: `tags` or `tools`.
        crops: whether parts can be asked for.
        turns: how many the model has.
        images: how many it sees at a time, None for all.
    """
    tags = vocabulary == "tags"
    crop = (_CROP if tags else _CROP_TOOL) if crops else ""
    lines = [(_TAGS if tags else _TOOLS).format(crop=crop), _TURNS.format(turns=turns)]
    if images is not None:
        lines.append(_IMAGES.format(images=images))
    return "\n".join(lines)


def with_instructions(messages: Messages, text: str) -> Messages:
    """Messages with the instructions in the system's, before what stands there."""
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    content = first["content"]
    if isinstance(content, list):
        content = [{"type": "text", "text": text + "\n\n"}, *content]
    else:
        content = f"{text}\n\n{content}"
    return [{**first, "content": content}, *messages[1:]]
