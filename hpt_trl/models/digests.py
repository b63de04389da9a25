"""Digests of a model's files, by which results that depend on its weights are told from those of other weights."""

import hashlib
import json
from pathlib import Path

from hpt_trl.errors import UserError
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.whole_models import resolve_model

# What `from_pretrained` reads of a folder, code that comes with the model among it; a run leaves other files beside.
_MODEL_FILES = ("config.json", "model*.safetensors", "pytorch_model*.bin", "*.py")
_ADAPTER_FILES = ("adapter_model.*",)


def model_digest(name: str, *, revision: str | None = None) -> str:
    """Return a digest of the files of a whole model; on the Hub its commit is one.

    Args:
        name: Hub id, local folder or built-in name.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: there is no such model, or it has no commit.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    if name in BUILT_IN or Path(name).is_dir():
        return digest_of_files(Path(resolve_model(name)), _MODEL_FILES)
    commit = extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
    if commit is None:
        raise UserError(f"{name} has no commit to tell its versions apart; download it and name the folder.")
    return f"commit {commit}"


def adapter_digest(folder: str | Path) -> str:
    """Return a digest of an adapter's weights and settings; where its base lies does not matter."""
    folder = Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    said = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()
    return f"{digest_of_files(folder, _ADAPTER_FILES)} with settings {said}"


def digest_of_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return a digest of names and contents of the files in a folder that match a pattern."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        total.update(path.name.encode() + b"\0" + content)
    return total.hexdigest()
