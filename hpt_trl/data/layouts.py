"""Which columns the rows of a layout have, and the training and held-out rows of a recipe."""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset

# Which rows a stage trains on (columns after the mapping):
#   prompts         prompt, and where the data has them a demonstration, `answer` and what else the rewards read
#   demonstrations  prompt and completion; or `messages`, the last one the assistant's
#   comparisons     prompt, chosen and rejected; or chosen and rejected as whole conversations
#   documents       text
#   solutions       instruction, output, problem_id and is_correct, from which demonstrations are drawn
Layout = Literal["prompts", "demonstrations", "comparisons", "documents", "solutions"]


@dataclass
class Splits:
    """Training and held-out rows; `source` and `test_source` are how messages name them.

    `overlap` is the number of held-out rows whose prompt (document, problem) is also trained on.

    Columns: those of the layout (`Layout`), all texts or all messages; of layout `prompts` the
    demonstration column is optional. Then `answer` (text or None; optional), `row` (1-based row or line of the source)
    and what else the source has.
    """

    train: Dataset
    test: Dataset | None
    source: str
    test_source: str
    demonstration_column: str = "completion"
    layout: Layout = "prompts"
    overlap: int = 0

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns of what follows the prompt."""
        return answer_columns(self.layout, self.demonstration_column)


def answer_columns(layout: Layout, demonstration_column: str) -> tuple[str, ...]:
    if layout == "comparisons":
        return ("chosen", "rejected")
    return () if layout in ("documents", "solutions") else (demonstration_column,)
