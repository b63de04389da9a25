"""What weights an adapter was trained over: with others in their place it is another model."""

import functools
from pathlib import Path

from hpt_trl.digests import digest_of_weights
from hpt_trl.files import parsed_json

# As in `hpt_trl.models.folders`.
_ADAPTER_FILE = "adapter_config.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def base_folder(adapter: Path) -> Path | None:
    """The folder of the model that an adapter lies over; None of a Hub id, or where it is not there."""
    try:
        base = parsed_json((adapter / _ADAPTER_FILE).read_bytes())["base_model_name_or_path"]
        return Path(base) if base and Path(base).is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_of(base: Path) -> str | None:
    """Digest of a model's weights as they are now; None where there are none."""
    files = sorted(path for pattern in _WEIGHTS for path in base.glob(pattern))
    known = [(path, path.stat()) for path in files]
    return _digest(tuple((path, now.st_size, now.st_mtime_ns, now.st_ino) for path, now in known)) if known else None


@functools.cache
def weights_as_loaded(base: Path) -> str | None:
    """Digest of a model's weights as they were when this process first asked, which a run does as it loads them."""
    return weights_of(base)


def noted_with(adapter: Path) -> str | None:
    """What is to be noted beside a new adapter of the weights that it was trained over; None of a whole model."""
    base = base_folder(adapter)
    return None if base is None else weights_as_loaded(base)


# Whatever loads an adapter asks.
@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    return digest_of_weights(path for path, *_ in files)
