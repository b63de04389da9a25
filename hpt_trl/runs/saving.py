"""Checkpoints that are whole wherever one of the name is found: written under another name, digests last, and renamed.

transformers writes a checkpoint file by file under its final name, takes over one of the same name as it stands, and
removes old ones in place: whatever ends the process in between leaves a folder that looks like a checkpoint. TRL adds
files after the one that transformers writes last. So all of it is wrapped, and no body is copied.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from hpt_trl.digests import DIGESTS_FILE, files_below, note_digests
from hpt_trl.errors import UserError
from hpt_trl.files import valid_json, write_atomically
from hpt_trl.models.base_weights import noted_with, weights_as_loaded
from hpt_trl.models.whole_files import refuse_damaged_model
from hpt_trl.placing import clear_left, put_in_place, replace_files
from hpt_trl.run_files import REMOVING, SAVING
from hpt_trl.runs.checkpoints import RUN_FILE, TRAINER_STATE, checkpoint_name, numbered_checkpoints
from hpt_trl.runs.kept_records import keep_records


def save_whole(trainer: Any, note: Mapping[str, Any]) -> None:
    """Let a trainer's checkpoints come to their names as wholes; every process calls it once the trainer is built.

    Args:
        trainer: A `Trainer` of one process or many, its weights spread or not.
        note: What a checkpoint says of its run, beside its step.
    """
    stock, wait = trainer._save_checkpoint, trainer.accelerator.wait_for_everyone
    load_best = trainer._load_best_model
    folder = Path(trainer.args.output_dir)
    staging = folder / SAVING
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        # Others may lie in their place by the time that an adapter over them is saved.
        weights_as_loaded(Path(str(adapter.base_model_name_or_path)))

    def save(model: Any, trial: Any = None) -> None:
        writes, state = trainer.args.should_save, trainer.state
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
        wait()
        # What each process writes, and TRL after transformers, goes where the trainer says that its output is.
        trainer._get_output_dir = lambda trial: str(staging)
        try:
            stock(model, trial)
        except BaseException:
            if writes:
                # Where the disk is full, half a checkpoint takes the room that the next attempt needs.
                shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            del trainer._get_output_dir
        wait()
        new = staging / checkpoint_name(state.global_step)
        settled = _settle_best(state, staging, folder)
        if writes:
            if settled:
                state.save_to_json(str(new / TRAINER_STATE))
            said = json.dumps(valid_json({"step": state.global_step, **note}), indent=1, ensure_ascii=False)
            write_atomically(new / RUN_FILE, said + "\n")
            keep_records(folder, new)
            note_digests(new, base=noted_with(new))
            clear_left(folder / new.name)
            put_in_place(new, folder / new.name)
            staging.rmdir()
            _rotate(folder, trainer.args.save_total_limit, {new.name, Path(state.best_model_checkpoint or "").name})
        wait()

    def best() -> None:
        state = trainer.state
        damage = _damage_of(Path(state.best_model_checkpoint)) if trainer.args.process_index == 0 else None
        (damage,) = broadcast_object_list([damage])
        if damage is not None:
            if trainer.args.should_save:
                print(f"{damage} The best checkpoint is lost: the last model is saved in its place.", flush=True)
            state.best_model_checkpoint = None
            return
        if trainer.args.should_save and trainer.args.save_total_limit == 1:
            # The trainer would remove the others in place.
            _rotate(folder, 1, {Path(state.best_model_checkpoint).name})
        load_best()

    trainer._save_checkpoint, trainer._load_best_model = save, best


def _damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, read as wholes; None where nothing is."""
    try:
        refuse_damaged_model(checkpoint)
    except UserError as error:
        return str(error)
    return None


def save_final(trainer: Any) -> None:
    """Saves the model into the output folder: written under another name, digests last, then moved file by file.

    Without its digests a folder is none of a finished run; every process takes part.
    """
    folder, wait = Path(trainer.args.output_dir), trainer.accelerator.wait_for_everyone
    new, writes = folder / SAVING / "model", trainer.args.should_save
    if writes:
        shutil.rmtree(new.parent, ignore_errors=True)
    wait()
    try:
        trainer.save_model(str(new))
    except BaseException:
        if writes:
            shutil.rmtree(new.parent, ignore_errors=True)
        raise
    wait()
    if writes:
        # PEFT's card is not the one that stays.
        files = [path for path in files_below(new) if path.name != "README.md"]
        note_digests(new, files, base=noted_with(new))
        replace_files(new, folder, DIGESTS_FILE)
        new.parent.rmdir()
    wait()


def _settle_best(state: Any, staging: Path, folder: Path) -> bool:
    """Names the best checkpoint as it will be called; returns whether it is the one that is being saved."""
    best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)
    if best is None or best.parent != staging:
        return False
    state.best_model_checkpoint = str(folder / best.name)
    return True


def _rotate(folder: Path, limit: int | None, spared: set[str]) -> None:
    """Removes the oldest checkpoints beyond a number; one that is being removed no longer has the name of one."""
    if limit is None or limit <= 0:
        return
    there = numbered_checkpoints(folder)
    old = [path for path in there if path.name not in spared]
    excess = len(there) - max(limit, len(there) - len(old))
    for path in old[: max(excess, 0)]:
        removing = folder / REMOVING / path.name
        shutil.rmtree(removing, ignore_errors=True)
        removing.parent.mkdir(exist_ok=True)
        os.replace(path, removing)
    shutil.rmtree(folder / REMOVING, ignore_errors=True)
