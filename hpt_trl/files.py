"""Small files that a run leaves: written in one go, and JSON that any reader takes."""

import math
import os
from pathlib import Path
from typing import Any


def valid_json(value: Any) -> Any:
    """The value with NaN and infinities as None, tensors and NumPy numbers as floats, what JSON lacks as text."""
    if isinstance(value, dict):
        return {str(key): valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(item) for item in value]
    if isinstance(value, str | bool | int | None):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file in one go: a run that is killed leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
