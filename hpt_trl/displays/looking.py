"""A recipe looked at before it runs: its first rows as the trainer gets them, and the prompts of its evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoded
from hpt_trl.displays.console import printed_warnings
from hpt_trl.displays.showing import rendered
from hpt_trl.displays.words import with_trial, words_of
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import encode_prompts
from hpt_trl.planning.rows import encoded_row
from hpt_trl.planning.showing import pieces
from hpt_trl.runs.acting import trains_on_answers
from hpt_trl.runs.preparation import prepare
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.quiet import quiet

# Characters that are shown of a stretch of text.
_LONG = 1200
Part = tuple[str, list[tuple[str, bool]]]


class Look:
    """A recipe, checked and with its rows read, before any weight is loaded.

    Args:
        prepared: What it resolves to.
        count: Rows that are shown.

    Attributes:
        model: The recipe's name of the model, None where it makes a new one.
    """

    def __init__(self, prepared: Prepared, count: int):
        self.prepared, self.count = prepared, count
        self.model = prepared.model

    def prompts(self, count: int = 3) -> list[Any]:
        """Returns held-out prompts as the model gets them: texts, or messages.

        Raises:
            UserError: the recipe has no held-out rows with prompts.
        """
        splits = self.prepared.splits
        rows = self.prepared.answered if self.prepared.answered is not None else splits.test
        if rows is None or "prompt" not in rows.column_names:
            raise UserError(f"{splits.source} has no held-out prompts.")
        return rows.select(range(min(count, len(rows))))["prompt"][:]

    @property
    def rows(self) -> list[list[Part]]:
        """The first training rows: of each its parts by name, in pieces of text that are trained on or not."""
        train = self.prepared.splits.train
        return [self._parts(train[place]) for place in range(min(self.count, len(train)))]

    def _parts(self, row: dict[str, Any]) -> list[Part]:
        prepared, splits = self.prepared, self.prepared.splits
        encoder = prepared.encoder
        if splits.layout == "documents":
            return [("document", pieces(encoder.document(row["text"]), encoder, _LONG))]
        if prepared.acting is not None:
            return self._acted(row)
        parts: list[Part] = []
        whole = splits.layout in ("demonstrations", "solutions")
        if not whole:
            ids = encode_prompts(encoder, [row], return_tensors=None)["input_ids"][0]
            parts.append(("prompt", pieces(Encoded(ids, [0] * len(ids)), encoder, _LONG)))
        if trains_on_answers(prepared.recipe, splits):
            for column in splits.answers:
                if row.get(column):
                    name = "prompt and demonstration" if whole else column
                    name = "demonstration" if name == "completion" else name
                    encoded = encoded_row(prepared, row, column)
                    if splits.layout == "comparisons":
                        start = len(encoder.prompt(row))
                        encoded = Encoded(encoded.ids[start:], encoded.trained[start:])
                    parts.append((name, pieces(encoded, encoder, _LONG)))
        if row.get("answer") is not None:
            parts.append(("answer", [(str(row["answer"]), False)]))
        return parts

    def _acted(self, row: dict[str, Any]) -> list[Part]:
        acting, splits = self.prepared.acting, self.prepared.splits
        assert acting is not None
        parts: list[Part] = [("prompt", [(as_text(row["prompt"]), False)])]
        column = splits.demonstration_column
        if trains_on_answers(self.prepared.recipe, splits) and row.get(column):
            flat = acting.demonstration(row, column).flat
            encoded = Encoded(flat.completion_ids, flat.drawn)
            parts.append(("trajectory of the expert", pieces(encoded, acting.encoder.encoder, _LONG)))
        if row.get("answer") is not None:
            parts.append(("answer", [(str(row["answer"]), False)]))
        return parts

    def _repr_html_(self) -> str:
        return rendered("look.html.jinja", title=self._title, about=self._about, rows=self.rows)

    def __repr__(self) -> str:
        lines = [self._title, self._about]
        for number, parts in enumerate(self.rows, start=1):
            lines += [f"{number}. {name}: {_marked(found)}" for name, found in parts]
        return "\n".join(lines)

    @property
    def _title(self) -> str:
        splits = self.prepared.splits
        if splits.stream is not None:
            return splits.counted
        return f"{splits.source}: {len(splits.train):,} training rows"

    @property
    def _about(self) -> str:
        test = self.prepared.splits.test
        return f"{'no' if test is None else f'{len(test):,}'} held-out rows."


def look(recipe: str | Path, count: int = 3, **settings: Any) -> Look:
    """Checks a recipe as `hpt-trl check` does, and shows its first rows; neither weights are loaded nor files written.

    Args:
        recipe: A YAML file, or the name of a bundled recipe.
        count: Rows that are shown.
        settings: Keys of the recipe as Python values.

    Raises:
        UserError: the first mistake found, in the recipe, the data or the rewards.
    """
    # What the folder holds does not matter: nothing is written there.
    settings = with_trial(str(recipe), settings | {"overwrite": True})
    with quiet(), printed_warnings():
        return Look(prepare(str(recipe), words_of(settings)), count)


def _marked(found: Sequence[tuple[str, bool]]) -> str:
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in found)
