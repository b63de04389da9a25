"""Tables of samples: rows of text and numbers, bounded in number and length, whatever tracker shows them."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from hpt_trl.data.messages import as_text

# Rollouts of one table: a few prompts with their groups, not a generation batch.
SAMPLES = 16
# Tables of rollouts that a run leaves at most; a tracker loads all of them.
TABLES = 10
# Rows of the data, and completions of an evaluation.
ROWS, COMPLETIONS = 8, 64
# Characters of a cell; a long completion is for the files of the run.
LONGEST = 2000

_TRAINED_COLUMNS = ("prompt", "completion", "chosen", "rejected", "text", "messages", "answer", "solution")
# Unicode's pictures of the control characters.
_PICTURES = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}


@dataclass(frozen=True)
class Table:
    """Columns by name, all of the same length; cells are text, numbers or None."""

    columns: dict[str, list[Any]]

    @property
    def rows(self) -> list[list[Any]]:
        return [list(row) for row in zip(*self.columns.values(), strict=True)]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def as_html(self) -> str:
        """The table for TensorBoard, whose texts may hold HTML; nothing of a cell is read as such."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{_shown(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    # A line of its own would end the table, which Markdown takes for one block; and it has marks of its own among the
    # control characters, which a model may well draw.
    lines = text.replace("\r\n", "\n").split("\n")
    return "<br>".join(html.escape(line.translate(_PICTURES)) for line in lines)


def cell(value: Any) -> Any:
    """A value as a cell: prompts and messages as text, cut where they are long; NaN and infinities as None."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) or _is_messages(value):
        text = as_text(value)
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return cell(str(value))


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value)


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table; columns stand in the order in which they are met first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table({name: [cell(row.get(name)) for row in rows] for name in names})


def trained_rows(rows: Dataset) -> Table:
    """The first rows of the training data, by the columns that are trained on or asked."""
    names = [name for name in _TRAINED_COLUMNS if name in rows.column_names]
    return table_of(rows.select(range(min(ROWS, len(rows)))).select_columns(names).to_list() if names else [])


def held_out_samples(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Table:
    """The completions of the same held-out prompts before and after the training, with each reward."""
    sides = {name: (found or {}).get("completions", []) for name, found in (("before", before), ("after", after))}
    longest = max(sides.values(), key=len)
    rows = []
    for place, line in enumerate(longest):
        row = {"prompt": line["prompt"], "answer": line.get("answer")}
        for name, lines in sides.items():
            if place < len(lines):
                row |= {name: lines[place]["completion"], **_rewards(lines[place], f"{name} ")}
        rows.append(row)
    return table_of(rows)


def scored_completions(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Completions of an evaluation with each reward."""
    return table_of(
        [
            {"prompt": line["prompt"], "answer": line.get("answer"), "completion": line["completion"], **_rewards(line)}
            for line in lines[:COMPLETIONS]
        ]
    )


def _rewards(line: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in (line.get("rewards") or {}).items()}


def every(steps: int, logging_steps: int) -> int:
    """Steps between two tables of rollouts, so that a run leaves at most `TABLES`."""
    return max(1, logging_steps, math.ceil(steps / TABLES))
