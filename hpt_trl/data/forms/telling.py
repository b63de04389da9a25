"""As what rows are read, told to who did not say it."""

import logging

from datasets import Dataset, Value

from hpt_trl.data.forms.form import Found
from hpt_trl.data.forms.recognising import Wanted
from hpt_trl.data.reading.places import ROW

logger = logging.getLogger(__name__)


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
    if named is None and form.convert is not None and form.name not in ("messages", "whole-conversations"):
        logger.warning(
            "%s is read as %s: `dataset_layout: %s`. Where that is not meant, name another, or the columns by "
            "`column_mapping`.",
            source,
            form.said,
            form.name,
        )
