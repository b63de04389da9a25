"""GSM8K's calculator marks (`<<48/2=24>>`), left out of what is trained on.

A demonstration is not to teach calls of a calculator that is not there. A mark is a sum of numbers and its result,
closed on the same line: code with shifts, streams or heredocs has no such form.
"""

import logging
import re
from typing import Any

from datasets import Dataset

from hpt_trl.data.objects import column_values, with_column

logger = logging.getLogger(__name__)

_NUMBER = r"-?[ $]*+(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:/\d+)?"
# No two parts can share a run of spaces, and no mark looks farther than its own sum: texts may be long.
_MARK = re.compile(rf"(?<!<)<<(?=[ +\-*/().,%$]*\d)[\d +\-*/().,%$]+=[ $]*+{_NUMBER} *+%? *>>(?!>)")


def drop_calculator_marks(dataset: Dataset, columns: list[str], source: str) -> Dataset:
    """Return the dataset without calculator marks in texts and in messages of the assistant; rows are counted."""
    changed: set[int] = set()
    for column in columns:
        values = column_values(dataset, column)
        cleaned = [_without_marks(value) for value in values]
        places = [place for place, (old, new) in enumerate(zip(values, cleaned, strict=True)) if old != new]
        if places:
            changed.update(places)
            dataset = with_column(dataset.remove_columns(column), column, cleaned)
    if changed:
        logger.warning(
            "%s: calculator marks (GSM8K's <<48/2=24>>) are left out of %d of %d rows.",
            source,
            len(changed),
            len(dataset),
        )
    return dataset


def _without_marks(value: Any) -> Any:
    if isinstance(value, str):
        return _MARK.sub("", value)
    if isinstance(value, list):
        return [
            {**message, "content": _MARK.sub("", message["content"])}
            if isinstance(message, dict)
            and message.get("role") == "assistant"
            and isinstance(message.get("content"), str)
            else message
            for message in value
        ]
    return value
