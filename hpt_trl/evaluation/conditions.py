"""Digests of what completions answer, by which those of other rows or other prompts are told apart."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoder
from hpt_trl.evaluation.generating import encode_prompts


def rows_digest(texts: Iterable[Any]) -> str:
    """Of rows as the data has them, prompts or documents, whatever a model's template makes of them."""
    total = hashlib.blake2b(digest_size=16)
    for text in texts:
        total.update(as_text(text).encode() + b"\0")
    return total.hexdigest()


def prompts_digest(rows: Dataset, encoder: Encoder) -> str:
    """Of the prompts' tokens."""
    total = hashlib.blake2b(digest_size=16)
    for start in range(0, len(rows), 100):
        batch = [rows[index] for index in range(start, min(start + 100, len(rows)))]
        for ids in encode_prompts(encoder, batch, return_tensors=None)["input_ids"]:
            total.update(json.dumps(list(ids)).encode())
    return total.hexdigest()
