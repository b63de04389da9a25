"""Completions for reading: before and after a training side by side, or of a model as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpt_trl.displays.showing import rendered
from hpt_trl.runs.reporting import side_by_side


class Samples:
    """Completions of the same held-out prompts before and after a training; a slice of them is one as well.

    Args:
        before, after: Evaluations of results.json that have `completions`.
    """

    def __init__(self, before: dict[str, Any], after: dict[str, Any]):
        self.before, self.after = before, after

    def __len__(self) -> int:
        return len(self.after["completions"])

    def __getitem__(self, rows: slice) -> "Samples":
        cut = [side | {"completions": side["completions"][rows]} for side in (self.before, self.after)]
        return Samples(*cut)

    def _repr_html_(self) -> str:
        pairs = zip(self.before["completions"], self.after["completions"], strict=True)
        rows = [
            {"prompt": new["prompt"], "answer": new["answer"], "cells": [_cell(old), _cell(new)]} for old, new in pairs
        ]
        return rendered("samples.html.jinja", names=["before", "after"], rows=rows)

    def __repr__(self) -> str:
        return side_by_side(self.before, self.after, count=len(self))


@dataclass(frozen=True)
class Completions:
    """What a model wrote on prompts; `texts` has the completions of each."""

    model: str
    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]

    def _repr_html_(self) -> str:
        cells = [
            [{"badge": "", "solved": False, "text": text.strip() or "(empty)"} for text in each] for each in self.texts
        ]
        rows = [
            {"prompt": prompt, "answer": None, "cells": found}
            for prompt, found in zip(self.prompts, cells, strict=True)
        ]
        count = max(map(len, self.texts), default=0)
        names = [self.model] if count == 1 else [f"{self.model}, {place}" for place in range(1, count + 1)]
        return rendered("samples.html.jinja", names=names, rows=rows)

    def __repr__(self) -> str:
        blocks = ["\n".join([f"> {prompt}", *found]) for prompt, found in zip(self.prompts, self.texts, strict=True)]
        return "\n\n".join(blocks)


def _cell(entry: dict[str, Any]) -> dict[str, Any]:
    badge = "no reward" if entry["reward"] is None else f"reward {entry['reward']:g}"
    solved = entry.get("solved", False)
    return {
        "badge": f"solved, {badge}" if solved else badge,
        "solved": solved,
        "text": entry["completion"].strip() or "(empty)",
    }
