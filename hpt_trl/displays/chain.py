"""A pipeline's output folder read back: a table of its stages, and each of them as a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpt_trl.displays.output import Run
from hpt_trl.displays.showing import rendered
from hpt_trl.errors import UserError
from hpt_trl.pipeline.record import read_record
from hpt_trl.pipeline.summary import PICTURE_FILE, measures, table
from hpt_trl.run_files import PIPELINE_FILE


class Chain(Mapping[str, Run]):
    """What a pipeline left: name of a stage -> its run.

    Args:
        folder: Its output folder.

    Raises:
        UserError: no pipeline has written there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / PIPELINE_FILE).is_file():
            raise UserError(f"{self.folder} is not the output folder of a pipeline: it has no {PIPELINE_FILE}.")
        self.record = read_record(self.folder)

    def __getitem__(self, stage: str) -> Run:
        if stage not in self.record.stages:
            raise KeyError(stage)
        return Run(self.folder / stage)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.record.order if name in self.record.stages)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _repr_html_(self) -> str:
        rows: list[dict[str, Any]] = []
        found = measures(self.record)
        for name in self:
            known = self.record.stages[name]
            first = {"stage": name, "kind": known.stage, "uses": ", ".join(known.uses) or "\N{EN DASH}"}
            empty = {"measure": "" if name in found else "not finished", "before": None, "after": None, "verdict": ""}
            for measure, values in (found.get(name) or {"": empty}).items():
                rows.append({**first, "measure": measure, **values})
                first = dict.fromkeys(first, "")
        return rendered("chain.html.jinja", title=self.record.pipeline, rows=rows)

    def _repr_png_(self) -> bytes | None:
        picture = self.folder / PICTURE_FILE
        return picture.read_bytes() if picture.exists() else None

    def __repr__(self) -> str:
        return table(self.record)
