"""The completions of an evaluation on disk, written as they come: a stopped one goes on, and scoring can be redone.

    samples.json           what the completions depend on: model, rows, decoding
    samples.jsonl          one line per completion, sorted by row
    samples.<process>.part what a process has added since; merged into the former when all are there
    scored.jsonl           what each is worth, written anew by each scoring

A line has the token ids, from which completions are scored, and the text, for reading; last a digest of all that, by
which a damaged one is told. Lines of a former version have none.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Item, Sample
from hpt_trl.files import lines_of, parsed_json, valid_json, write_atomically

SAMPLES_FILE = "samples.jsonl"
CONDITIONS_FILE = "samples.json"
# Written anew by each scoring: what each completion is worth, with prompt and text, for reading.
SCORED_FILE = "scored.jsonl"
PARTS = "samples.*.part"
_DIGEST = "digest"


class SampleStore:
    """The completions in a folder.

    Args:
        folder: Made where it is not there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def conditions(self) -> dict[str, Any] | None:
        """What the completions there depend on; None where there are none."""
        try:
            found = json.loads((self.folder / CONDITIONS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.folder / CONDITIONS_FILE} is not valid JSON: {error}. Start anew with `--overwrite true`."
            ) from None
        return found if isinstance(found, dict) else {}

    def begin(self, conditions: Mapping[str, Any]) -> None:
        """Starts a new evaluation: whatever was there is gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [self.folder / SAMPLES_FILE, *self.folder.glob(PARTS)]:
            path.unlink(missing_ok=True)
        write_atomically(self.folder / CONDITIONS_FILE, json.dumps(valid_json(dict(conditions)), indent=2) + "\n")

    def read(self) -> list[Sample]:
        """All completions, sorted by row and number; half a line at the end of a part, as a kill leaves it, is none.

        Raises:
            UserError: a line that is no completion.
        """
        found: dict[Item, Sample] = {}
        for path in [self.folder / SAMPLES_FILE, *sorted(self.folder.glob(PARTS))]:
            if path.exists():
                found |= {(sample.index, sample.generation): sample for sample in _read(path)}
        return [found[item] for item in sorted(found)]

    def texts(self) -> dict[Item, str]:
        """The completions' texts, sorted by row and number; nothing where no evaluation came to its end."""
        path = self.folder / SAMPLES_FILE
        if not path.exists():
            return {}
        lines = _lines(path)
        return {(line["index"], line["generation"]): line["completion"] for line in lines if "completion" in line}

    def take_up(self) -> list[Sample]:
        """All completions, what a stopped evaluation left in parts put into one file; by one process alone."""
        samples = self.read()
        if any(self.folder.glob(PARTS)):
            self.write(samples, {})
        return samples

    def write(self, samples: Iterable[Sample], texts: Mapping[Item, Mapping[str, Any]]) -> None:
        """Writes all completions into one file in place of the parts; by one process alone.

        Args:
            texts: What else a completion's line holds for reading.
        """
        lines = (_line(sample, texts.get((sample.index, sample.generation), {})) for sample in samples)
        write_atomically(self.folder / SAMPLES_FILE, "".join(lines))
        for path in self.folder.glob(PARTS):
            path.unlink()

    def add(self, samples: Iterable[Sample], process: int = 0) -> None:
        """Adds completions of one process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"samples.{process}.part").open("a", encoding="utf-8") as file:
            file.writelines(_line(sample, {}) for sample in samples)


def _line(sample: Sample, more: Mapping[str, Any]) -> str:
    values = {
        "index": sample.index,
        "generation": sample.generation,
        **more,
        "truncated": sample.truncated,
        "prompt_ids": sample.prompt_ids,
        "ids": sample.ids,
        **({} if sample.played is None else {"played": sample.played}),
    }
    values = valid_json(values)
    return json.dumps({**values, _DIGEST: _digest(values)}, ensure_ascii=False) + "\n"


def _digest(values: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values).encode())


def _read(path: Path) -> list[Sample]:
    return [
        Sample(
            line["index"],
            line["generation"],
            line["prompt_ids"],
            line["ids"],
            line["truncated"],
            line.get("played"),
        )
        for line in _lines(path)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without half a one at the end of a part.

    Raises:
        UserError: a line that is no completion, or not what was written.
    """
    found: list[dict[str, Any]] = []
    texts = lines_of(path, errors="replace")
    for number, text in enumerate(texts, start=1):
        line = _parsed(text)
        if line is not None:
            found.append(line)
        elif number < len(texts) or path.suffix != ".part":
            raise UserError(
                f"{path}, line {number}: this is no completion of an evaluation, or not what was written there. Remove "
                "the line, and what is missing is generated anew; or start anew with `--overwrite true`."
            )
    return found


def _parsed(text: str) -> dict[str, Any] | None:
    """A line whose contents are what was written; None where they are not."""
    try:
        line = parsed_json(text)
        whole = _DIGEST not in line or line.pop(_DIGEST) == _digest(line)
        return line if whole and {"index", "generation", "prompt_ids", "ids", "truncated"} <= line.keys() else None
    except (ValueError, TypeError, AttributeError):
        return None
