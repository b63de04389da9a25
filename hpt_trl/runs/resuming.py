"""Which checkpoint a run goes on from, and whether it may: its files, its recipe, its inputs and its processes.

A checkpoint that is damaged is set aside, and the one before it taken; so are those that are newer than the one that a
run goes on from, which another attempt has made. Nothing is removed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hpt_trl.digests import DIGESTS_FILE, damage_of, has_digests
from hpt_trl.files import parsed_json
from hpt_trl.recipes.batches import processes
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.run_files import ABANDONED, DAMAGED
from hpt_trl.runs.best import best_named, best_of
from hpt_trl.runs.changes import (
    BEST_KEYS,
    LENGTH_KEYS,
    STARTING_KEYS,
    Change,
    changed_variables,
    changes_between,
    defaults_of,
)
from hpt_trl.runs.checkpoints import (
    RUN_FILE,
    TRAINER_STATE,
    is_model_alone,
    is_unpickled,
    numbered_checkpoints,
    step_of,
    why_incomplete,
)
from hpt_trl.runs.inputs import digests_of_inputs, inputs_changed, same_files
from hpt_trl.runs.record import versions
from hpt_trl.runs.starting import stored_recipe
from hpt_trl.settings.masking import is_secret_variable, masked

_KEY = "resume_from_checkpoint"
# Inputs that have changed and are named.
_TOLD = 5
# Stages that come to the same weights in any number of processes, as long as nothing is drawn within a step.
_SHARED_OUT = ("pretrain", "sft", "ref_tuning", "dpo", "reward", "critic", "rho1", "mtp")


def note_of(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of the run that made it: recipe and defaults, inputs, processes and versions."""
    return {
        "processes": recipe.world_size,
        "profile": kind_of(recipe.profile),
        "rows_per_step": _rows_per_step(recipe),
        "recipe": masked(_resolved(recipe)),
        "defaults": masked(defaults_of(recipe.keys)),
        "env": masked(_variables(recipe)),
        "inputs": digests_of_inputs(recipe.raw),
        "versions": versions(),
    }


def kind_of(profile: Profile) -> str:
    """How a run's processes share its states out; files of one kind are not those of another."""
    if profile.fsdp_version is not None:
        return f"FSDP{profile.fsdp_version}"
    if profile.distributed_type == "DEEPSPEED":
        return f"ZeRO-{profile.zero_stage}"
    return "whole states in each process"


def refuse_other_run(recipe: Recipe, checkpoint: Path, *, said: bool = False) -> None:
    """Refuses a checkpoint that this recipe cannot go on from.

    Args:
        recipe: Of the run that is to go on.
        checkpoint: Where it is to go on.
        said: Print what differs and may.

    Raises:
        UserError: all keys that differ and may not, or inputs whose contents have changed.
    """
    note = _note(checkpoint)
    if note is None:
        return
    found = changes_since(recipe, checkpoint)
    decides = BEST_KEYS if recipe.config.load_best_model_at_end else frozenset()
    changed = [change for change in found if not change.safe or change.key in decides]
    if changed:
        raise recipe.error(
            _KEY,
            f"{checkpoint} is of another recipe: {'; '.join(map(str, changed))}. {_instead(checkpoint)}",
        )
    # Each process would read them; one that is refused ends the others.
    known = note["inputs"] is not None and os.environ.get("RANK", "0") == "0"
    if known and (other := inputs_changed(note["inputs"], digests_of_inputs(recipe.raw))):
        more = f" and {len(other) - _TOLD} more" if len(other) > _TOLD else ""
        raise recipe.error(
            _KEY,
            f"{', '.join(other[:_TOLD])}{more} has changed since {checkpoint} was written: the steps to come would be "
            f"of other contents than those before. Put the former contents back. {_instead(checkpoint)}",
        )
    if said and found:
        longer = any(change.key in LENGTH_KEYS for change in found)
        schedule = " The schedule of the learning rate is that of the new length." if longer else ""
        print(f"Changed since {checkpoint.name}: {'; '.join(map(str, found))}.{schedule}", flush=True)
    if said and note["versions"] and (others := _other_versions(note["versions"])):
        print(f"{checkpoint.name} was written with {others}: figures may differ in their last digits.", flush=True)


def refuse_later(recipe: Recipe, checkpoint: Path) -> None:
    """Refuses a checkpoint that lies behind the end of the run: its model is not that of so few steps.

    Raises:
        UserError: with the key that says where the end is.
    """
    try:
        state = parsed_json((checkpoint / TRAINER_STATE).read_bytes())
        step, epoch = int(state["global_step"]), float(state["epoch"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        # Whoever reads the checkpoint is told.
        return
    steps, epochs = recipe.config.max_steps, recipe.config.num_train_epochs
    if steps > 0:
        key, end, beyond, at = "max_steps", steps, step > steps, f"step {step}"
    else:
        key, end, beyond, at = "num_train_epochs", epochs, epoch > epochs, f"epoch {epoch:g}"
    if beyond:
        raise recipe.error(
            key,
            f"{checkpoint} is of {at}, beyond {end:g}, where this run ends. Go on from an earlier one, or for longer.",
        )


def refuse_unpickled(recipe: Recipe, checkpoint: Path) -> None:
    """Refuses a checkpoint that would be run as it is read, and of which it is not known who wrote it.

    Raises:
        UserError: what to do with its weights instead.
    """
    if has_digests(checkpoint) or not is_unpickled(checkpoint):
        return
    shards = next(checkpoint.glob("*/.metadata")).parent
    raise recipe.error(
        _KEY,
        f"{checkpoint} has shards (SHARDED_STATE_DICT) and no {DIGESTS_FILE}: PyTorch would run what {shards.name} "
        "holds, and nothing says that a run of this package wrote it. Name another checkpoint. If you trust it, gather "
        f"its weights (`accelerate merge-weights {shards} MODEL`), put config.json and the tokenizer beside them, and "
        "begin a new run from there: --model_name_or_path MODEL with another --output_dir.",
    )


def changes_since(recipe: Recipe, checkpoint: Path) -> list[Change]:
    """What differs between the recipe of a checkpoint, as far as that is known, and the one that goes on from it.

    What another version has for a key that is not given is a difference like any other.
    """
    note = _note(checkpoint)
    if note is None:
        return []

    def same_contents(was: str, now: str) -> bool:
        return same_files(was, now, note["inputs"] or {}, digests_of_inputs(recipe.raw))

    defaults = masked(defaults_of(recipe.keys))
    found = changes_between(note["recipe"], _resolved(recipe), defaults, note["defaults"], same_contents)
    if note["env"] is not None and note["recipe"].get("stage") == recipe.stage.name:
        found += changed_variables(note["env"], _variables(recipe), same_contents)
    return found


def refuse_other_processes(recipe: Recipe, checkpoint: Path, config: PretrainedConfig) -> None:
    """Refuses another number or kind of processes than the checkpoint's, where the run would come to other weights.

    Args:
        recipe: Of the run that is to go on.
        checkpoint: Where it is to go on.
        config: Of the model.

    Raises:
        UserError: with the reason, and the number that the checkpoint is of.
    """
    note = _note(checkpoint)
    if note is None or not note["profile"]:
        return
    kind, count = kind_of(recipe.profile), recipe.world_size
    was = f"{checkpoint} is of {processes(note['processes'])} ({note['profile']})"
    back = f"Go on with {processes(note['processes'])}, or begin a new run from its model: --model_name_or_path"
    if note["profile"] != kind:
        raise recipe.error(
            _KEY, f"{was}, and cannot be read by {kind}. Go on with the same kind of profile. {back} {checkpoint}."
        )
    if note["processes"] == count:
        return
    if kind.startswith("ZeRO"):
        why = "DeepSpeed cannot share the optimizer's states out anew"
    elif recipe.stage.name not in _SHARED_OUT:
        why = f"in `stage: {recipe.stage.name}` each process draws from a stream and keeps rollouts of its own"
    elif dropout := _dropout(recipe, config):
        why = f"each process draws the units that {dropout} drops from a stream of its own"
    elif note["rows_per_step"] != _rows_per_step(recipe):
        why = f"a step had {note['rows_per_step']} rows and would have {_rows_per_step(recipe)}"
    else:
        return
    raise recipe.error(_KEY, f"{was}, and this would be {processes(count)}: {why}. {back} {checkpoint}.")


@dataclass(frozen=True)
class _Found:
    """What is known of the checkpoints of a folder: where the run goes on, and those that are not whole."""

    whole: Path
    damaged: dict[Path, str]


def settle_checkpoint(recipe: Recipe, checkpoint: Path, config: PretrainedConfig) -> Path:
    """Reads the checkpoint that a run is to go on from, and sets aside what is damaged or newer.

    Args:
        recipe: Of the run.
        checkpoint: As `check_output_folder` found it, by the sizes of its files.
        config: Of the model.

    Returns:
        The one whose contents are whole.

    Raises:
        UserError: it was named by its path and is damaged; or none is whole; or the one that is, is another run's.
    """
    folder = Path(recipe.config.output_dir)
    own = checkpoint.resolve().parent == folder.resolve()
    by_name = str(recipe.config.resume_from_checkpoint).lower() not in ("true", "yes")
    if by_name:
        if (damage := damage_of(checkpoint, contents=True)) is not None:
            raise recipe.error(_KEY, f"{damage}. {_last_whole_before(checkpoint)}")
        found = _Found(checkpoint, {})
    else:
        found = _last_whole(recipe, folder)
    if found.whole != checkpoint:
        refuse_unpickled(recipe, found.whole)
        refuse_other_run(recipe, found.whole)
        refuse_later(recipe, found.whole)
        refuse_other_processes(recipe, found.whole, config)
    _refuse_lost_best(recipe, found.whole)
    for path, damage in found.damaged.items():
        move_aside(path, folder / DAMAGED)
        print(f"{damage}: set aside in {folder / DAMAGED}; going on from {found.whole.name}.", flush=True)
    newer = [path for path in numbered_checkpoints(folder) if own and step_of(path) > step_of(found.whole)]
    for path in newer:
        if is_model_alone(path):
            print(f"{path} holds a model alone (`save_only_model`), none to go on from.", flush=True)
        move_aside(path, folder / ABANDONED)
    if newer:
        names = ", ".join(path.name for path in newer)
        print(f"Newer than {found.whole.name}, set aside in {folder / ABANDONED}: {names}", flush=True)
    if not has_digests(found.whole):
        print(f"{found.whole} has no digests (a former version's): it is not known whether its bytes are whole.")
    refuse_other_run(recipe, found.whole, said=True)
    return found.whole


def _refuse_lost_best(recipe: Recipe, checkpoint: Path) -> None:
    """Refuses to go on to the end without the best model so far, where that is the one to be kept."""
    folder = Path(recipe.config.output_dir)
    if not recipe.config.load_best_model_at_end or best_named(checkpoint) is None or best_of(checkpoint, folder):
        return
    raise recipe.error(
        _KEY,
        f"the best checkpoint before {checkpoint}, {best_named(checkpoint)}, is not there, and the run would end with "
        f"another model (`load_best_model_at_end`). Put it back into {folder}, or begin a new run from the model that "
        f"is there: --model_name_or_path {checkpoint} with another --output_dir.",
    )


def _last_whole(recipe: Recipe, folder: Path) -> _Found:
    damaged: dict[Path, str] = {}
    for path in reversed(numbered_checkpoints(folder)):
        damage = why_incomplete(path) or damage_of(path, contents=True)
        if damage is None:
            return _Found(path, damaged)
        if not is_model_alone(path):
            damaged[path] = damage
    said = "; ".join(list(damaged.values())[:3])
    raise recipe.error(
        _KEY, f"no checkpoint in {folder} is whole: {said}. Start anew with `--overwrite true`, without this key."
    )


def _last_whole_before(checkpoint: Path) -> str:
    before = [path for path in numbered_checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    for path in reversed(before):
        if why_incomplete(path) is None and damage_of(path, contents=True) is None:
            return f"The last whole one before it is {path}."
    return "There is no whole one before it; start anew in another `--output_dir`."


def move_aside(path: Path, place: Path) -> None:
    """Moves a file or folder; what has its name there stays as well."""
    place.mkdir(exist_ok=True)
    target, number = place / path.name, 1
    while target.exists():
        number += 1
        target = place / f"{path.name}.{number}"
    os.rename(path, target)


def _note(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its run; of one without a note the folder's recipe; None of another program's."""
    empty: dict[str, Any] = {"inputs": None, "versions": {}, "profile": "", "processes": 0, "rows_per_step": 0}
    empty |= {"defaults": {}, "env": None}
    try:
        note = empty | parsed_json((checkpoint / RUN_FILE).read_bytes())
        if isinstance(note.get("recipe"), dict):
            return note
    except (OSError, ValueError, TypeError):
        pass
    recipe = stored_recipe(checkpoint.parent)
    return None if recipe is None else empty | {"recipe": recipe}


def _resolved(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.raw.items() if key not in STARTING_KEYS}


def _variables(recipe: Recipe) -> dict[str, Any]:
    """Of its `env`, but for secrets."""
    variables = recipe.sources.file.values.get("env") or {}
    return {name: value for name, value in variables.items() if not is_secret_variable(str(name))}


def _rows_per_step(recipe: Recipe) -> int:
    config = recipe.config
    return int(config.per_device_train_batch_size * config.gradient_accumulation_steps * recipe.world_size)


def _dropout(recipe: Recipe, config: PretrainedConfig) -> str | None:
    """The first setting by which units are dropped at random; None where none are."""
    if recipe.setting("disable_dropout", False):
        return None
    own = {name: recipe.setting(name) for name in ("value_head_dropout",) if recipe.setting(name)}
    if recipe.model_args.use_peft and recipe.model_args.lora_dropout:
        own["lora_dropout"] = recipe.model_args.lora_dropout
    if recipe.setting("neftune_noise_alpha"):
        own["neftune_noise_alpha"] = recipe.setting("neftune_noise_alpha")
    of_model: Mapping[str, Any] = config.get_text_config().to_dict()
    names = ("dropout", "pdrop", "dropout_prob", "drop_rate")
    own |= {name: value for name, value in of_model.items() if name.endswith(names) and value}
    return next(iter(own), None)


def _other_versions(old: Mapping[str, str]) -> str:
    now = versions()
    return ", ".join(f"{name} {old[name]}" for name in old if name in now and old[name] != now[name])


def _instead(checkpoint: Path) -> str:
    return (
        f"Go on with what it was, or begin a new run from its model: --model_name_or_path {checkpoint} with another "
        "--output_dir."
    )
