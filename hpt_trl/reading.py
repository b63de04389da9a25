"""The files that a run leaves beside its model, written and read back: metrics.jsonl, warnings.jsonl, results.json.

No training library is imported: what is asked of a folder is answered at once.
"""

import json
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of, parsed_json, valid_json, write_atomically
from hpt_trl.run_files import METRICS_FILE, RESULTS_FILE

# What a picture can tell apart from its neighbour, as a float.
_MOST_STEPS = 2**53


def write_results(output_dir: str | Path, results: dict[str, Any]) -> Path:
    """Writes results.json; its presence marks a finished run."""
    path = Path(output_dir) / RESULTS_FILE
    write_atomically(path, json.dumps(valid_json(results), indent=2, ensure_ascii=False) + "\n")
    return path


def read_results(output_dir: str | Path) -> dict[str, Any] | None:
    """Results of a finished run, None if it did not finish.

    Raises:
        UserError: the file is not valid JSON.
    """
    return read_object(Path(output_dir) / RESULTS_FILE, "results of a run", "Remove it and run the recipe again.")


def read_object(path: Path, what: str, advice: str = "Remove it.", *, or_null: bool = False) -> dict[str, Any] | None:
    """Reads a file that holds one JSON object; None where there is no file.

    Args:
        what: what the file should hold.
        advice: what to do where it does not.
        or_null: it may also say null.

    Raises:
        UserError: the file is not valid JSON, or holds something else.
    """
    if not path.exists():
        return None
    try:
        found = parsed_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}. {advice}") from None
    if not (isinstance(found, dict) or (or_null and found is None)):
        raise UserError(f"{path} holds {type(found).__name__}, not {what}. {advice}")
    return found


def read_metrics(output_dir: str | Path, *, tolerant: bool = False) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without half a line at the end, as a run that was killed leaves it.

    Args:
        tolerant: Take a file without lines as it is.

    Raises:
        UserError: no such folder or file, no lines, or a line that is not a JSON object with a `step`.
    """
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        raise UserError(f"{path} does not exist: `{output_dir}` is not the output folder of a run that has started.")
    lines, _ = read_steps(path)
    if not lines and not tolerant:
        raise UserError(f"{path} is empty: the run has not logged a step yet.")
    return lines


def read_steps(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Lines of a file to which a run adds while it goes on, each a JSON object with a `step`.

    Returns:
        The lines, and whether half a line at the end was left out.

    Raises:
        UserError: the file cannot be read, or a line is not such an object.
    """
    try:
        texts = lines_of(path, errors="replace")
        is_whole = path.read_bytes().endswith(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = parsed_json(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int) and abs(line["step"]) < _MOST_STEPS:
            lines.append(line)
        elif is_whole or number < len(texts):
            raise UserError(
                f"{path}, line {number}: not a JSON object with a `step`; remove the line to read the rest."
            )
    return lines, len(lines) < len(texts)


def duration(seconds: float) -> str:
    """Seconds for reading: `42 s`, `5 min 03 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
