"""What `hpt-trl report --json` prints of an output folder: its files as one value, by keys that stay."""

from pathlib import Path
from typing import Any

from hpt_trl.pipeline.record import read_record
from hpt_trl.pipeline.summary import measures
from hpt_trl.reading import read_metrics, read_results
from hpt_trl.run_files import PIPELINE_FILE
from hpt_trl.runs.curves import logged_series


def report_data(folder: str | Path) -> dict[str, Any]:
    """Return what a run, an evaluation, a search index or a pipeline has left; docs/json.md has the keys.

    Raises:
        UserError: the folder holds none of them, or its files are broken.
    """
    path = Path(folder)
    if (path / PIPELINE_FILE).exists():
        return _pipeline(path)
    results = read_results(path)
    if results is not None and "measures" in results:
        return {"kind": "measures", "folder": str(folder), "finished": True, "results": results}
    lines = read_metrics(path, tolerant=results is None)
    series = {
        key: {"first_step": points[0][0], "first": points[0][1], "last_step": points[-1][0], "last": points[-1][1]}
        for key, points in logged_series(lines).items()
    }
    return {
        "kind": "run",
        "folder": str(folder),
        "finished": results is not None,
        "steps": lines[-1]["step"] if lines else 0,
        "results": results,
        "metrics": series,
    }


def _pipeline(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    found = measures(record)
    stages = []
    for name in record.order:
        known = record.stages.get(name)
        stages.append(
            {
                "name": name,
                "stage": None if known is None else known.stage,
                "uses": [] if known is None else known.uses,
                "started": known is not None,
                "finished": name in found,
                "seconds": None if known is None else known.seconds,
                "steps": (read_results(folder / name) or {}).get("steps") if name in found else None,
                "measures": found.get(name, {}),
            }
        )
    finished = all(stage["finished"] for stage in stages)
    named = {"kind": "pipeline", "folder": str(folder), "finished": finished, "pipeline": record.pipeline}
    return {**named, "stages": stages}
