"""When two rows are the same: what is held out may not be trained on, nor be measured as new."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from hpt_trl.data.forms.pictures import undecoded
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendering import WHOLE
from hpt_trl.data.row_checks import iterate_rows


def identity(train: Dataset, test: Dataset, layout: Layout, answers: tuple[str, ...]) -> list[str]:
    """Columns that make two rows the same; the first one names it.

    The prompt with its pictures, the document, or the problem. Where all training rows have one prompt, it is the
    answers that differ.

    Args:
        answers: the columns of what follows a prompt.
    """
    if layout in ("documents", "solutions"):
        return ["text" if layout == "documents" else "instruction"]
    shared = set(train.column_names) & set(test.column_names)
    columns = ["prompt", *(name for name in IMAGES if name in shared)]
    several = set()
    for _, digest in digests(train, columns):
        several.add(digest)
        if len(several) > 1:
            return columns
    return [*columns, *(name for name in answers if name in shared)]


def digests(dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each row (as messages name it) with a digest of its columns, apart from white space.

    Of a row that came as one conversation, all of whose turns are trained, the prompt is what stands before the first.
    """
    dataset = undecoded(dataset)
    whole = [WHOLE] if WHOLE in dataset.column_names and "prompt" in columns else []
    for row, values in iterate_rows(dataset, [*columns, *whole]):
        named = dict(zip(columns, values, strict=False))
        if whole and values[-1]:
            named["prompt"] = _opening(named["prompt"])
        text = json.dumps([_plain(value) for value in named.values()], sort_keys=True, default=repr)
        yield row, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _opening(prompt: Any) -> Any:
    """The messages before the first answer; a greeting of the assistant's answers nothing."""
    asked = False
    for place, message in enumerate(prompt):
        if asked and message["role"] == "assistant":
            return prompt[:place]
        asked = asked or message["role"] == "user"
    return prompt


def _plain(value: Any) -> Any:
    """A value for comparing: white space does not count, nor does what a message leaves empty."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else value
