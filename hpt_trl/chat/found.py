"""Which model of a folder can be talked to, and why another cannot; told by small files, without torch."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.models.folders import (
    VALUE_TASK,
    check_model_folder,
    has_processor,
    is_adapter,
    is_local,
    is_pushed_name,
    is_value_model,
)
from hpt_trl.models.hub_parts import adapter_folder, downloaded
from hpt_trl.pipeline.record import has_weights, read_record
from hpt_trl.run_files import PIPELINE_FILE, RECIPE_FILE
from hpt_trl.settings.file import read_recipe_file

# What lies in the folder of a search index, and of a run that builds one.
_INDEX_FILE, _INDEX_FOLDER = "index.json", "index"
_CHECKPOINT = "checkpoint-"
# What is downloaded of a whole model on the Hub, where its weights may lie in several forms.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.yaml", "*.py")


@dataclass(frozen=True)
class ChatModel:
    """A model that writes text.

    Attributes:
        name: the folder, as it was named; of a Hub id that of its files.
        recipe: the keys of the run's recipe; empty where there is none beside it.
        sees_images: whether it is a vision-language model.
    """

    name: str
    recipe: dict[str, Any]
    sees_images: bool


def find_chat_model(name: str) -> ChatModel:
    """Find the model of an output folder, a checkpoint, another folder that `save_pretrained` wrote, or a Hub id.

    Args:
        name: of the folder; or `owner/name` on the Hub, whose files are downloaded.

    Raises:
        UserError: there is no such folder, or it holds something else than a model that writes text.
    """
    if is_pushed_name(name):
        found = find_chat_model(_folder_of(name))
        # Code of others runs where its user asks for it, not where their recipe does.
        return replace(found, recipe=found.recipe | {"trust_remote_code": False})
    folder = Path(name)
    if not folder.exists():
        raise UserError(f"there is no folder {name}; name the output folder of a run.")
    if not folder.is_dir():
        raise UserError(f"{name} is a file; name the output folder of a run.")
    if (folder / PIPELINE_FILE).is_file():
        raise UserError(f"{name} holds a pipeline; name one of its stages: {_stages(folder)}.")
    recipe = _recipe_of(folder)
    _refuse_others(folder, recipe)
    if is_value_model(name):
        raise UserError(f"{name} holds a critic: it gives values to texts and writes none.")
    adapter = is_adapter(name)
    if not adapter and not (folder / "config.json").is_file():
        raise UserError(f"{name} holds no model{_reason(folder)}.")
    check_model_folder(name, key="chat", adapters=True)
    config = _read(folder / ("adapter_config.json" if adapter else "config.json"))
    if adapter:
        config = _base_config(name, config)
    _refuse_scores(name, config)
    return ChatModel(name, recipe, _sees_images(folder, config))


def _folder_of(name: str) -> str:
    """The folder of a Hub id's files."""
    found = adapter_folder(name)
    if found != name:
        return found
    try:
        return downloaded(name, files=_HUB_FILES)
    except UserError as error:
        raise UserError(f"there is no folder {name}; name the output folder of a run. As a Hub id: {error}") from error


def _refuse_others(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuses folders of runs that leave no model."""
    index = next((path for path in (folder, folder / _INDEX_FOLDER) if (path / _INDEX_FILE).is_file()), None)
    if index is not None and not (folder / "config.json").is_file():
        raise UserError(f'{folder} holds a search index; ask it with `hpt-trl search {index} "QUERY"`.')
    if recipe.get("stage") == "evaluate":
        raise UserError(
            f"{folder} holds an evaluation, no model; name what it measured: {recipe.get('model_name_or_path')}."
        )


def _stages(folder: Path) -> str:
    record = read_record(folder)
    writing = [name for name in record.order if has_weights(folder / name) and not _scores(folder / name)]
    return ", ".join(str(folder / name) for name in writing) or "none has left a model that writes text yet"


def _scores(folder: Path) -> bool:
    try:
        find_chat_model(str(folder))
    except UserError:
        return True
    return False


def _reason(folder: Path) -> str:
    checkpoints = sorted(
        (path for path in folder.glob(f"{_CHECKPOINT}*") if has_weights(path)),
        key=lambda path: path.stat().st_mtime,
    )
    if checkpoints:
        return f" yet; its newest checkpoint is {checkpoints[-1]}"
    return ": its run has not finished" if (folder / RECIPE_FILE).is_file() else " (neither config.json nor an adapter)"


def _recipe_of(folder: Path) -> dict[str, Any]:
    """Keys of the recipe that a folder's run was made by."""
    places = [folder, *([folder.resolve().parent] if folder.resolve().name.startswith(_CHECKPOINT) else [])]
    stored = next((path / RECIPE_FILE for path in places if (path / RECIPE_FILE).is_file()), None)
    return {} if stored is None else read_recipe_file(stored).values


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no settings of a model.")
    return found


def _base_config(name: str, adapter: dict[str, Any]) -> dict[str, Any]:
    """Config of an adapter's base as far as it lies on this machine, with the adapter's task."""
    base, task = str(adapter.get("base_model_name_or_path") or ""), adapter.get("task_type")
    found: dict[str, Any] = {"task_type": task}
    if not base:
        raise UserError(f"{name}: its adapter_config.json names no base model.")
    if is_local(base):
        try:
            check_model_folder(base)
        except UserError as error:
            said = str(error).partition(": ")[2]
            raise UserError(f"the base model of the adapter in {name} is missing: {said}") from error
        found = _read(Path(base) / "config.json") | found
    return found


def _refuse_scores(name: str, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if config.get("task_type") == "SEQ_CLS" or any("SequenceClassification" in kind for kind in architectures):
        raise UserError(f"{name} holds a reward model: it scores texts and writes none.")
    if config.get("task_type") == VALUE_TASK:
        raise UserError(f"{name} holds a critic: it gives values to texts and writes none.")


def _sees_images(folder: Path, config: dict[str, Any]) -> bool:
    return "vision_config" in config or has_processor(folder)
