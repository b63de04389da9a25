"""The layouts that stages read, and the forms in which files have them: what `dataset_layout` may say."""

from collections.abc import Sequence
from typing import Literal, get_args

from hpt_trl.settings.ranges import Rule, one_of

# Which rows a stage trains on (columns after the mapping):
#   prompts         prompt, and where the data has them a demonstration, `answer` and what else the rewards read
#   demonstrations  prompt and completion; or `messages`, the last one the assistant's
#   comparisons     prompt, chosen and rejected; or chosen and rejected as whole conversations
#   documents       text
#   solutions       instruction, output, problem_id and is_correct, from which demonstrations are drawn
Layout = Literal["prompts", "demonstrations", "comparisons", "documents", "solutions"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# Form -> the layouts that it becomes, which of them depends on the stage.
FORM_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "messages": ("demonstrations", "prompts"),
    "sharegpt": ("demonstrations", "prompts"),
    "ultrachat": ("demonstrations", "prompts"),
    "capybara": ("demonstrations", "prompts"),
    "lima": ("demonstrations", "prompts"),
    "alpaca": ("demonstrations", "prompts"),
    "dolly": ("demonstrations", "prompts"),
    "question-answer": ("demonstrations", "prompts"),
    "vrag": ("prompts",),
    "vrag-parquet": ("prompts",),
    "slidevqa": ("prompts",),
    "whole-conversations": ("comparisons",),
    "hh-rlhf": ("comparisons",),
    "orca": ("comparisons",),
    "llama-factory": ("comparisons",),
}


def layout_rule(layouts: Sequence[Layout]) -> Rule:
    """The values that `dataset_layout` may have in a stage that reads these layouts."""
    return one_of("dataset_layout", *layouts, *(name for name in FORM_LAYOUTS if layouts_of(name, layouts)))


def layouts_of(name: str | None, layouts: Sequence[Layout]) -> tuple[Layout, ...]:
    """Those of a stage's layouts that rows may have by what `dataset_layout` says; all where it says nothing."""
    if name is None:
        return tuple(layouts)
    meant = FORM_LAYOUTS.get(name, (name,))
    return tuple(layout for layout in layouts if layout in meant)
