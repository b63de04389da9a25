"""As what rows are read, told to who did not say it."""

import logging

from datasets import Dataset, Value

from hpt_trl.data.forms.form import Found
from hpt_trl.data.forms.recognising import Wanted
from hpt_trl.data.reading.places import ROW
from hpt_trl.files import parsed_json

logger = logging.getLogger(__name__)

# Documents by which it shows that all of them are objects in JSON.
_LOOKED_AT = 3


def tell_form(source: str, rows: Dataset, found: Found, wanted: Wanted) -> None:
    """Warn of what was recognised who did not say it; conversations that end with their answer are no news."""
    form, named = found.form, wanted.named
    if named is None and form.layout == "documents" and wanted.layouts[0] != "documents":
        texts = [
            f"`{name}`"
            for name, kind in rows.features.items()
            if isinstance(kind, Value) and kind.dtype in ("string", "large_string") and name not in ("text", ROW)
        ]
        if texts:
            logger.warning(
                "%s is read as documents: `text` is trained whole, and nothing of %s. Where that is meant, write "
                "`dataset_layout: documents`; else name prompt and completion by `column_mapping`.",
                source,
                ", ".join(texts[:10]),
            )
    if named is None and form.layout == "documents" and _are_objects(rows[:_LOOKED_AT]["text"]):
        logger.warning(
            "%s: the documents are objects in JSON and are trained as they are written. Where their keys are meant, "
            "name the file .jsonl; else write `dataset_layout: documents`.",
            source,
        )
    if named is None and form.convert is not None and form.name not in ("messages", "whole-conversations"):
        logger.warning(
            "%s is read as %s: `dataset_layout: %s`. Where that is not meant, name another, or the columns by "
            "`column_mapping`.",
            source,
            form.said,
            form.name,
        )


def _are_objects(texts: list[str]) -> bool:
    """Whether all of some texts are objects in JSON."""
    try:
        return all(isinstance(parsed_json(text), dict) for text in texts)
    except ValueError:
        return False
