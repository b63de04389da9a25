"""What a recipe needs of a machine: packages, models, data and devices, found without loading any of them.

`hpt-trl doctor` prints it. Only the recipe's file is read: its keys, and of its header the line `# Hardware: ...` and
the profile that its command names. Whether keys and rows are right is `hpt-trl check`'s part.
"""

from pathlib import Path
from typing import Any

from hpt_trl.data.entries import every_name
from hpt_trl.data.generated import is_generated
from hpt_trl.data.names import is_there, looks_local
from hpt_trl.errors import UserError
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.folders import check_model_folder
from hpt_trl.models.loading import model_exists
from hpt_trl.pipeline.reading import is_pipeline, read_plan
from hpt_trl.planning.hub_needs import Hub, hub_need
from hpt_trl.planning.machines import Machine, hardware_need
from hpt_trl.planning.need import Need, package_need
from hpt_trl.planning.package_needs import OF_VECTORS, OF_WORDS, package_needs, sandbox_need
from hpt_trl.recipes.anchoring import anchored_value
from hpt_trl.recipes.bundled import comes_from, profile_of_command
from hpt_trl.recipes.pipeline_keys import PIPELINE
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.retrieval.index import kind_of_index
from hpt_trl.retrieval.rankers import LEXICAL
from hpt_trl.settings.file import read_recipe_file
from hpt_trl.settings.values import did_you_mean

MODEL_KEYS = tuple(f"{kind}model_name_or_path" for kind in ("", "reward_", "reference_", "value_"))


def needs_of(path: Path, machine: Machine, hub: Hub) -> list[Need]:
    """Everything that a recipe, or each stage of a pipeline, needs beyond the package's own dependencies.

    Raises:
        UserError: the file is not a recipe.
    """
    needs = [hardware_need(path, machine)]
    if not is_pipeline(path):
        given = read_recipe_file(path).values
        values = {key: anchored_value(key, value, path.parent) for key, value in given.items()}
        needs += [*_stage(values), *needs_of_values(values, path, hub)]
    else:
        plan = read_plan(path, [])
        names = [stage.name for stage in plan.stages]
        made = {str(folder(name)) for name in names for folder in (plan.folder, plan.merged_folder)}
        if plan.profile is not None and plan.profile.zero_stage is not None:
            needs.append(package_need(f"profile {plan.profile.name}", "deepspeed"))
        for stage in plan.stages:
            # What an earlier stage leaves is there when it is asked for.
            values = {key: _without(value, made) for key, value in plan.resolved(stage).items()}
            needs += needs_of_values(values, path, hub)
    profile, _ = profile_of_command(path)
    if profile.startswith("zero"):
        needs.append(package_need("profile " + profile, "deepspeed"))
    return list(dict.fromkeys(need for need in needs if need.what))


def _stage(values: dict[str, Any]) -> list[Need]:
    """What is wrong with the stage that a recipe names; nothing where it is one."""
    name, known = values.get("stage"), sorted([*STAGE_MODULES, PIPELINE])
    if name in known:
        return []
    said = (
        "the key is missing" if name is None else f"there is no such stage.{did_you_mean(str(name), known)}".strip(".")
    )
    return [Need("stage" if name is None else f"stage {name}", False, said, f"write one of: {', '.join(known)}")]


def _without(value: Any, made: set[str]) -> Any:
    if isinstance(value, list):
        return [item for item in value if item not in made]
    return None if isinstance(value, str) and value in made else value


def needs_of_values(values: dict[str, Any], path: Path, hub: Hub) -> list[Need]:
    """What the values of a recipe's keys need.

    Args:
        path: its file, in whose header it may stand how something is made.
    """
    needs = []
    for key in MODEL_KEYS:
        names = values.get(key) or []
        needs += [_model(str(name), key, values, path, hub) for name in (names if isinstance(names, list) else [names])]
    if values.get("tokenizer_name_or_path"):
        name = str(values["tokenizer_name_or_path"])
        here = Path(name).is_dir()
        found = (True, "a local folder") if here else hub.tokenizer(name)
        needs.append(hub_need(f"tokenizer {name}", found, f"with the network: hf download {name}"))
    needs += [_data(name, path, hub) for name in every_name(values.get("dataset_name"), values.get("datasets"))]
    if values.get("search_index"):
        needs += [_search_index(str(values["search_index"]), path), *_searching(Path(values["search_index"]))]
    needs = [need._replace(is_read=True) for need in needs]
    needs += [*package_needs(values), *sandbox_need(values)]
    return needs


def _model(name: str, key: str, values: dict[str, Any], path: Path, hub: Hub) -> Need:
    what = f"{'model' if key == MODEL_KEYS[0] else key.removesuffix('_name_or_path').replace('_', ' ')} {name}"
    if name in BUILT_IN:
        try:
            model_exists(name)
        except UserError as error:
            said, _, remedy = str(error).removeprefix("model_name_or_path: ").partition(" Run: ")
            return Need(what, False, said, remedy)
        return Need(what, True, "built in")
    if Path(name).expanduser().exists():
        try:
            check_model_folder(name, key=key, adapters=key != MODEL_KEYS[0])
        except UserError as error:
            return Need(what, False, str(error).removeprefix(f"{key}: "))
        return Need(what, True, "a local folder")
    if remedy := comes_from(name, path):
        return Need(what, False, "not there yet", remedy)
    if name.startswith((".", "~", "/", "outputs/")) or name.count("/") > 1:
        return Need(what, False, "there is no such folder")
    return hub_need(what, hub.model(name, values.get("model_revision")), f"with the network: hf download {name}")


def _data(name: str, path: Path, hub: Hub) -> Need:
    what = f"data {name}"
    if name.startswith("reasoning_gym:"):
        return package_need(what, "reasoning-gym")
    if is_generated(name):
        return Need(what, True, "generated")
    if is_there(name):
        return Need(what, True, "local")
    if looks_local(name):
        remedy = comes_from(name, path)
        return Need(what, False, "not there yet" if remedy else "there is no such file or folder", remedy)
    remedy = "with the network the run downloads it; without: --dataset_name path/to/file.jsonl"
    return hub_need(what, hub.dataset(name), remedy)


def _search_index(name: str, path: Path) -> Need:
    what = f"search index {name}"
    if Path(name).is_dir():
        return Need(what, True, "a local folder")
    return Need(what, False, "not there yet", comes_from(name, path))


def _searching(folder: Path) -> list[Need]:
    """What pages are shown with, and what an index that is here was made with."""
    needs = [package_need("search pages as images", "pillow")]
    kind = kind_of_index(folder)
    if kind is not None:
        packages = OF_WORDS if kind == LEXICAL else OF_VECTORS
        needs += [package_need(f"search by {kind}", name) for name in packages]
    return needs
