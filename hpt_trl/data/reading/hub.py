"""Data sets of the Hub."""

from typing import Any

from hpt_trl.data.generated import NAMES
from hpt_trl.errors import UserError
from hpt_trl.settings.values import did_you_mean


def read_hub(name: str, config: str | None, *, streaming: bool = False) -> Any:
    """Load a data set by its Hub id, all its splits, a `DatasetDict`; of streams an `IterableDatasetDict`.

    Raises:
        UserError: it cannot be loaded.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        return load_dataset(name, config, streaming=streaming)
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"dataset_name: `{name}` is not a local file or folder, and as a Hub dataset it cannot be loaded: "
            f"{reason}{did_you_mean(name, NAMES)}\n"
            "Check the name (owner/name) and `dataset_config`, or give a local copy: "
            "--dataset_name path/to/file.jsonl (also .jsonl.gz, .json, .parquet, or a folder written by save_to_disk)."
        ) from error
