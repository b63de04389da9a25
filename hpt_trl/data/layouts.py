"""The training and held-out rows of a recipe, and the columns of what answers their prompts."""

from dataclasses import dataclass

from datasets import Dataset

from hpt_trl.data.layout_names import Layout
from hpt_trl.data.reading.places import ROW, shares
from hpt_trl.data.reading.streams import Stream

# What is said where prompts are asked for.
NO_PROMPTS = "documents hold no prompts to answer"


@dataclass
class Splits:
    """Training and held-out rows; `source` and `test_source` are how messages name them.

    `form` is how the source has its rows, by the name that `dataset_layout` takes, `said` what it is called, and `used`
    are the columns of the source that those of the layout are made of. `dropped` and `test_dropped` count the
    faulty rows that `on_bad_row: drop` left out. Where the training rows are a `stream`, `train` holds those of its
    first rows by which the recipe is checked.

    Columns: those of the layout (`Layout`), all texts or all messages; of layout `prompts` the
    demonstration column is optional. Then `answer` (text or None; optional), `_row` (its number in the source)
    and what else the source has.
    """

    train: Dataset
    test: Dataset | None
    source: str
    test_source: str
    demonstration_column: str = "completion"
    layout: Layout = "prompts"
    form: str = ""
    said: str = ""
    used: frozenset[str] = frozenset()
    dropped: int = 0
    test_dropped: int = 0
    stream: Stream | None = None

    @property
    def counted(self) -> str:
        """The training data and the number of its rows, of a mixture also of each data set."""
        if self.stream is not None:
            return f"{self.source}, streamed, of which the first {len(self.train):,} rows were looked at"
        parts = [f"{name} {count:,}" for name, count in shares(self.source, self.train[ROW][:]).items()]
        return f"{self.source}, {len(self.train):,} rows" + (f" ({', '.join(parts)})" if parts else "")

    @property
    def rows(self) -> int | None:
        """How many training rows there are; None of a stream, which is read as it is trained."""
        return None if self.stream is not None else len(self.train)

    @property
    def left_out(self) -> int:
        """Faulty training rows that were left out; of a stream that was read, those that were met."""
        return self.stream.tally.faulty if self.stream is not None and self.stream.tally.rows else self.dropped

    @property
    def named(self) -> list[tuple[Dataset, str]]:
        """The training rows and, where there are some, the held-out rows, each with the name that messages use."""
        training = [(self.train, self.source)]
        return training if self.test is None else [*training, (self.test, self.test_source)]

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns of what follows the prompt."""
        return answer_columns(self.layout, self.demonstration_column)


def answer_columns(layout: Layout, demonstration_column: str) -> tuple[str, ...]:
    if layout == "comparisons":
        return ("chosen", "rejected")
    return () if layout in ("documents", "solutions") else (demonstration_column,)
