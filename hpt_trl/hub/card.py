"""The card of a run, README.md: what the model is, of what and how it was made, what it measured, how it is loaded.

Everything is read from the run's own files; what they do not say is not said.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.data.entries import every_name
from hpt_trl.data.generated import is_generated
from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.hub.card_text import card_text
from hpt_trl.hub.citations import method_of
from hpt_trl.hub.figures import eval_results, measures_of
from hpt_trl.hub.files import CARD_FILE
from hpt_trl.hub.licence import licence_of
from hpt_trl.hub.public import shown_data
from hpt_trl.hub.run_folder import RunFolder
from hpt_trl.models.folders import is_local

# The last line of a card that this package wrote, with a digest of what stands above it.
_SEAL = re.compile(r"\n<!-- Written by hpt-trl, and anew at each push unless it was edited: ([0-9a-f]{32}) -->\n*$")
_DATA_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(run: RunFolder, name: str, revision: str | None = None) -> Path:
    """Write a run's card into its folder, in place of the one that its trainer wrote.

    Args:
        name: of the repository, where it is known, else of the folder.
    """
    file = run.folder / CARD_FILE
    write_atomically(file, new_card(run, name, revision, ask=False))
    return file


def card_for(run: RunFolder, name: str, revision: str | None, *, ask: bool) -> str:
    """The card that goes up: a new one, or that in the folder where somebody has edited it.

    Args:
        ask: whether the Hub is asked for the licence of the base model.

    Raises:
        UserError: the edited card's metadata cannot be read.
    """
    file = run.folder / CARD_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not is_edited(text):
        return new_card(run, name, revision, ask=ask)
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file} was edited, and its metadata cannot be read: {reason}") from error
    return text


def is_edited(text: str) -> bool:
    """Whether a card is one of this package's that somebody has changed since."""
    if "Written by hpt-trl" not in text:
        # Of TRL, PEFT or nobody.
        return False
    sealed = _SEAL.search(text)
    return sealed is None or sealed[1] != _digest(text[: sealed.start()])


def new_card(run: RunFolder, name: str, revision: str | None, *, ask: bool) -> str:
    """The text of a card, with its metadata.

    Args:
        name: of the repository or the folder, by which it is loaded.
        revision: branch; None for the newest of `main`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    results = run.results or {}
    measures = measures_of(results)
    local = run.recipe.get("model_name_or_path")
    folder = Path(str(local)) if run.root is None and local is not None and is_local(str(local)) else None
    licence = licence_of(run.root, folder, ask=ask)
    tags = ["hpt-trl", "trl", run.stage, *_kinds(run)]
    papers = method_of(run.recipe)[1]
    data = shown_data(run.recipe)
    metadata: dict[str, Any] = {
        **licence,
        "library_name": "transformers" if run.adapter is None else "peft",
        "pipeline_tag": _task(run),
        "datasets": _data_ids(run),
        "tags": [*dict.fromkeys(tags), *(f"arxiv:{paper.arxiv}" for paper in papers)],
        "base_model": None if run.root is None else run.root.name,
        "base_model_relation": None if run.root is None else "finetune" if run.adapter is None else "adapter",
    }
    if measures:
        task = _task(run) or "other"
        split = run.recipe.get("dataset_test_split")
        metadata |= {"model_name": name, "eval_results": eval_results(measures, task=task, data=data, split=split)}
    card = ModelCardData(**{key: value for key, value in metadata.items() if value})
    text = card_text(run, name, revision, measures, licence)
    written = str(ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}"))
    return f"{written.rstrip()}\n\n<!-- Written by hpt-trl, and anew at each push unless it was edited: " + (
        f"{_digest(written.rstrip() + chr(10))} -->\n"
    )


def _kinds(run: RunFolder) -> list[str]:
    kinds = []
    if run.adapter is not None:
        kinds.append("lora" if run.adapter.get("peft_type") == "LORA" else "peft")
    if run.is_value_model:
        kinds.append("value-model")
    elif run.stage == "reward":
        kinds.append("reward-model")
    if run.has_value_head:
        kinds.append("value-head")
    if run.has_future_heads:
        kinds.append("multi-token-prediction")
    return kinds


def _task(run: RunFolder) -> str | None:
    """The Hub's name for what the model does; none for a value model."""
    if run.is_value_model:
        return None
    if run.stage == "reward":
        return "text-classification"
    return "image-text-to-text" if run.is_vision_model else "text-generation"


def _data_ids(run: RunFolder) -> list[str]:
    """The data as far as it is on the Hub."""
    names = every_name(run.recipe.get("dataset_name"), run.recipe.get("datasets"))
    return [name for name in names if not is_generated(name) and not is_local(name) and _DATA_ID.fullmatch(name)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
