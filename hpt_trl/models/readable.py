"""Settings and tokenizers that can be parsed and not used: what libraries say of them, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig


@contextmanager
def readable(what: str, folder: str | Path) -> Iterator[None]:
    """Loads something of a user's files.

    Args:
        what: what is loaded.
        folder: from where.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        yield
    except UserError:
        raise
    # Of values that are of a wrong kind each library says it in its own way; tokenizers raises plain exceptions.
    except Exception as error:
        said = str(error).strip().splitlines() or ["no reason is given"]
        raise UserError(f"the {what} of {folder} cannot be loaded: {type(error).__name__}: {said[0][:300]}") from error


def adapter_config(folder: str | Path) -> "PeftConfig":
    """The config of a PEFT adapter in a folder.

    Raises:
        UserError: it cannot be loaded.
    """
    from peft import PeftConfig

    with readable("adapter_config.json", folder):
        return PeftConfig.from_pretrained(str(folder))
