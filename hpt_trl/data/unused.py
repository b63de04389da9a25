"""Columns that a stage does not read, so that nobody takes a part of the data for trained on that is not."""

from collections.abc import Iterable, Sequence

from hpt_trl.data.layout_names import Layout
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.rendering import WHOLE

# What the trainers read beside prompt and answers, in each layout.
_READ: dict[Layout, tuple[str, ...]] = {
    "prompts": ("image", "images", "environment"),
    "demonstrations": ("tools", "chat_template_kwargs", "image", "images"),
    "comparisons": ("tools", "chat_template_kwargs", "image", "images", "margin"),
    "documents": ("text",),
    "solutions": ("instruction", "input", "output", "problem_id", "is_correct", "language", "difficulty"),
}
# A column that is often meant to be read -> what is to be done where it is not.
HINTS = {
    "tools": "rollouts do not show them to the model; write the tools into the prompt",
    "chat_template_kwargs": "rollouts take those of the recipe alone, the key `chat_template_kwargs`",
    "context": "put it into the prompt where it belongs to it",
    "history": "put earlier turns into the prompt, as messages",
    "choices": 'where the prompt shall show them, write prompt_template: "{prompt}\\n{choices}"',
    "options": 'where the prompt shall show them, write prompt_template: "{prompt}\\n{options}"',
    "functions": "templates show what is in `tools`",
    "label": "nothing is left out by it",
    "video": "no stage reads videos",
    "videos": "no stage reads videos",
    "weight": "all rows count the same",
}


def unused_columns(
    columns: Sequence[str], layout: Layout, answers: Sequence[str], *, read: Iterable[str] = ()
) -> list[str]:
    """Return the columns that neither the trainer nor the prompts read.

    Args:
        columns: those of the rows, after the mapping.
        answers: those that the trainer reads as answers.
        read: columns that the rewards read, or that were put into the prompts.
    """
    known = {ROW, WHOLE, *_READ[layout], *read}
    if layout not in ("documents", "solutions"):
        known |= {"prompt", *answers}
    # Renamed so by the user, to leave it out.
    return [name for name in columns if name not in known and not name.startswith("source_")]


def describe_unused(columns: Sequence[str]) -> str:
    """One line of unused columns, with what is to be done about known ones."""
    return ", ".join(f"{name} ({HINTS[name]})" if name in HINTS else name for name in columns)
