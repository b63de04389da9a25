"""The licence of a base model: what its own card says, or nothing. It is never guessed."""

from pathlib import Path
from typing import Any

import yaml

from hpt_trl.hub.origin import Origin

# Keys of a card's metadata that belong together.
_KEYS = ("license", "license_name", "license_link")
_CARD = "README.md"


def licence_of(origin: Origin | None, folder: Path | None, *, ask: bool) -> dict[str, Any]:
    """What a base model's card says of its licence, as metadata of a card.

    Args:
        origin: the base model on the Hub, None without one.
        folder: of a base model on this machine, None without one.
        ask: whether the Hub is asked where the card is not in the cache.
    """
    file = _card_file(origin, folder, ask=ask)
    if file is None:
        return {}
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError):
        # A card that cannot be read says nothing.
        return {}
    return {key: data[key] for key in _KEYS if data.get(key)} if data.get("license") else {}


def _card_file(origin: Origin | None, folder: Path | None, *, ask: bool) -> Path | None:
    if folder is not None:
        return folder / _CARD if (folder / _CARD).is_file() else None
    if origin is None:
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    found = try_to_load_from_cache(origin.name, _CARD, revision=origin.revision)
    if isinstance(found, str):
        return Path(found)
    if not ask:
        return None
    try:
        return Path(hf_hub_download(origin.name, _CARD, revision=origin.revision))
    except (HTTPError, OSError, ValueError):
        # Without a card, or out of reach: nothing is known.
        return None
