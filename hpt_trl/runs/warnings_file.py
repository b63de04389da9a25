"""The warnings of a run as a file: `step`, `kind` and `message`, a JSON line each, from the moment they are said."""

import json
from pathlib import Path
from typing import Any

from hpt_trl.files import lines_of, parsed_json, write_atomically
from hpt_trl.run_files import WARNINGS_FILE


def write_warnings(folder: Path, warnings: list[dict[str, Any]]) -> None:
    """Writes all warnings of a run; its folder is there."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in warnings)
    write_atomically(folder / WARNINGS_FILE, text)


def read_warnings(folder: str | Path) -> list[dict[str, Any]]:
    """The warnings of a run, finished or not, in their order; lines that are none are left out."""
    path, found = Path(folder) / WARNINGS_FILE, []
    for text in lines_of(path, errors="replace") if path.exists() else []:
        try:
            line = parsed_json(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and {"kind", "message"} <= line.keys():
            found.append(line)
    return found
