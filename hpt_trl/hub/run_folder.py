"""What a run has left in its output folder, as far as others may want it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.errors import UserError
from hpt_trl.hub.origin import Origin, origin_of
from hpt_trl.models.folders import HEAD_FILES, VALUE_CONFIG_FILE, VALUE_HEAD_FILE, has_processor
from hpt_trl.reading import read_results
from hpt_trl.run_files import MARK, PIPELINE_FILE, RECIPE_FILE, RESULTS_FILE

_DEEPEST = 20


@dataclass(frozen=True)
class RunFolder:
    """A run's output folder.

    Attributes:
        recipe: key -> value of the resolved recipe.
        results: what it measured; None of a run that did not finish.
        adapter: the adapter's config; None of a whole model.
        model: the whole model's config; None of an adapter.
        base: where the model that the run began with is on the Hub; None where it is on this machine alone, or the run
            made its own.
        root: the nearest model on the Hub that it stands on, over runs in between; their stages are `chain`.
        chain: stages of the runs between `root` and this one, the first one first.
    """

    folder: Path
    recipe: dict[str, Any]
    results: dict[str, Any] | None
    adapter: dict[str, Any] | None
    model: dict[str, Any] | None
    base: Origin | None
    root: Origin | None
    chain: tuple[str, ...]

    @property
    def stage(self) -> str:
        """Of the run's recipe."""
        return str(self.recipe["stage"])

    @property
    def is_merged(self) -> bool:
        """Whether it holds the adapter of its run merged into the base model."""
        return self.adapter is None and bool(self.recipe.get("use_peft"))

    @property
    def is_value_model(self) -> bool:
        """Whether it is a critic."""
        return (self.folder / VALUE_CONFIG_FILE).is_file()

    @property
    def has_value_head(self) -> bool:
        """Whether PPO left its critic beside the policy."""
        return (self.folder / VALUE_HEAD_FILE).is_file() and not self.is_value_model

    @property
    def has_future_heads(self) -> bool:
        """Whether heads for future tokens lie beside the model."""
        return (self.folder / HEAD_FILES[0]).is_file()

    @property
    def is_vision_model(self) -> bool:
        """Whether it takes images."""
        return has_processor(self.folder)

    @property
    def has_chat_template(self) -> bool:
        """Whether its tokenizer words chats."""
        return (self.folder / "chat_template.jinja").is_file() or "chat_template" in _json(
            self.folder / "tokenizer_config.json"
        )


def read_run_folder(folder: str | Path) -> RunFolder:
    """Read what a run has left; nothing heavy is imported or loaded.

    Raises:
        UserError: the folder is no run's, or holds no model.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; name the output folder of a run.")
    recipe = _recipe(place)
    if recipe is None and (place / PIPELINE_FILE).is_file():
        stages = sorted(path.parent.name for path in place.glob(f"*/{RECIPE_FILE}"))
        raise UserError(f"{place} holds a pipeline; name the folder of one of its stages: {', '.join(stages)}.")
    if recipe is None:
        raise UserError(f"{place} holds no run of hpt-trl ({RECIPE_FILE}); name the output folder of a run.")
    adapter, model = _json(place / "adapter_config.json") or None, _json(place / "config.json") or None
    weights = [path for path in place.glob("*.safetensors") if path.is_file()]
    if (adapter is None and model is None) or not weights:
        raise UserError(
            f"{place} holds no model: neither a config with weights nor an adapter. Its run (`stage: "
            f"{recipe.get('stage')}`) leaves none, or was stopped before its end."
        )
    name, revision = recipe.get("model_name_or_path"), recipe.get("model_revision")
    base = None if name is None else origin_of(str(name), revision)
    root, chain = (base, ()) if name is None or base is not None else _ancestor(Path(str(name)))
    return RunFolder(
        folder=place,
        recipe=recipe,
        results=read_results(place),
        adapter=adapter,
        model=None if adapter is not None else model,
        base=base,
        root=root,
        chain=chain,
    )


def has_recipe(folder: Path) -> bool:
    """Whether a folder is the output folder of a run."""
    return _recipe(folder) is not None


def without_results_refused(run: RunFolder) -> RunFolder:
    """Return the run.

    Raises:
        UserError: it did not finish, or trained nothing.
    """
    if run.results is None:
        raise UserError(
            f"{run.folder} holds a run that did not finish ({RESULTS_FILE} is missing), so nothing is known of its "
            "model. Finish it (`--resume_from_checkpoint true`), then push it."
        )
    if not run.results.get("trained", True):
        raise UserError(f"{run.folder} holds a model that was not trained: {run.results.get('why_untrained')}")
    return run


def _ancestor(folder: Path) -> tuple[Origin | None, tuple[str, ...]]:
    """The nearest model on the Hub that a run's folder stands on, and the stages from there to that run's."""
    stages: list[str] = []
    # A folder may be named by what stands on it.
    for _ in range(_DEEPEST):
        recipe = _recipe(folder.expanduser())
        if recipe is None:
            return None, tuple(stages)
        stages.insert(0, str(recipe.get("stage")))
        name = recipe.get("model_name_or_path")
        if name is None:
            return None, tuple(stages)
        if (origin := origin_of(str(name), recipe.get("model_revision"))) is not None:
            return origin, tuple(stages)
        folder = Path(str(name))
    return None, tuple(stages)


def _recipe(folder: Path) -> dict[str, Any] | None:
    file = folder / RECIPE_FILE
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return values if text.startswith(MARK) and isinstance(values, dict) and "stage" in values else None


def _json(file: Path) -> dict[str, Any]:
    """A config; empty where there is none, or one that is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
