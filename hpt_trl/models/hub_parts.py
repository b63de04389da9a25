"""Parts of a model that `from_pretrained` does not know, such as a value head: of a local folder, or of the Hub.

Adapters on the Hub are among them: here they become folders, and all else knows adapters in folders alone.
"""

import logging
from functools import cache
from pathlib import Path

from hpt_trl.errors import UserError
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.folders import ADAPTER_FILE, CONFIG_FILE, VALUE_CONFIG_FILE, is_adapter, is_local

logger = logging.getLogger(__name__)


def value_model_folder(name: str, *, revision: str | None = None) -> str:
    """Return the folder of a value model; of one on the Hub that of its files, which are downloaded. Others pass."""
    if folder_with(name, (VALUE_CONFIG_FILE,), revision=revision) == name:
        return name
    return downloaded(name, revision=revision)


def adapter_folder(name: str, *, revision: str | None = None) -> str:
    """Return the folder of an adapter; of one on the Hub that of its files, which are downloaded. Others pass.

    A repository that has the config of a whole model as well is no adapter's.

    Args:
        name: local folder, built-in name or Hub id. Of the first two nothing is asked.
        revision: of a Hub id.

    Raises:
        UserError: the files of an adapter that is there cannot be downloaded.
    """
    if folder_with(name, (CONFIG_FILE,), revision=revision, told=False) != name:
        return name
    # Where the Hub cannot be asked, whoever loads the model says so.
    folder = folder_with(name, (ADAPTER_FILE,), revision=revision, told=False)
    return name if folder == name else _whole(name, folder)


def found_adapter(name: str, *, revision: str | None = None) -> str:
    """Return the folder of an adapter, as `adapter_folder` does.

    Raises:
        UserError: the name leads to none.
    """
    folder = adapter_folder(name, revision=revision)
    if not is_adapter(folder):
        raise UserError(
            f"{name}: there is no such folder, and no adapter of that name on the Hub, or none that can be read from "
            "here (network, login); name the folder of a run with `use_peft`, or the Hub id of one."
        )
    return folder


@cache
def _whole(name: str, snapshot: str) -> str:
    """The folder of a commit in the Hub's cache with all its files; that they come is shown once."""
    return downloaded(name, revision=Path(snapshot).name)


def downloaded(name: str, *, revision: str | None = None, files: tuple[str, ...] | None = None) -> str:
    """Return the folder of the files of a Hub id.

    Args:
        revision: branch, tag or commit.
        files: patterns of those that are wanted; all by default.

    Raises:
        UserError: there is no such repository, or it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=None if files is None else list(files))
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name} cannot be downloaded from the Hub: {reason[0]}") from error


def folder_with(name: str, files: tuple[str, ...], *, revision: str | None = None, told: bool = True) -> str:
    """Return a folder in which a part of a model lies, if it has it.

    Args:
        name: local folder, built-in name or Hub id.
        files: of the part.
        revision: of a Hub id.
        told: whether it is said where the Hub cannot be asked.

    Returns:
        A local folder or a built-in name as it is; of a Hub id the folder that the files were downloaded into, or the
        id where it has them not.
    """
    if not name or name in BUILT_IN or is_local(name):
        return name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError

    found = Path()
    for file in files:
        try:
            found = Path(hf_hub_download(name, file, revision=revision))
        except (LocalEntryNotFoundError, ConnectionError):
            level = logging.WARNING if told else logging.DEBUG
            logger.log(
                level,
                "The Hub could not be asked whether %s has a file %s, and none is in the cache: it goes on without. "
                "`hf download %s` brings all files of the model.",
                name,
                file,
                name,
            )
            return name
        except (EntryNotFoundError, HTTPError, HFValidationError):
            return name
    depth = len(Path(files[-1]).parts)
    return str(found.parents[depth - 1])
