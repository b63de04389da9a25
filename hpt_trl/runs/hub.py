"""A run and the Hub: asked before weights are loaded, written to after everything else is done."""

import os
from pathlib import Path
from typing import Any

from transformers import Trainer

from hpt_trl.errors import UserError
from hpt_trl.hub.card import write_card
from hpt_trl.hub.checks import check_destination
from hpt_trl.hub.destination import Destination, destination, refuse_pushing_midway
from hpt_trl.hub.files import check_base
from hpt_trl.hub.origin import origin_of
from hpt_trl.hub.pushing import not_pushed, push, told
from hpt_trl.hub.run_folder import read_run_folder
from hpt_trl.recipes.recipe import Recipe


def settle_hub(recipe: Recipe, *, model_is_there: bool = True) -> None:
    """Refuse a recipe whose run could not be pushed, and leave the push to `finish_on_hub`.

    The trainer itself would make the repository as it is built, and push a model that is not evaluated. The Hub is
    asked by the first process alone.

    Args:
        model_is_there: whether the model exists that the recipe names, or another run is yet to make it.

    Raises:
        UserError: no network, login or right, or a name that is another's; or an adapter whose base is on no Hub.
    """
    if not recipe.raw.get("push_to_hub"):
        return
    if recipe.stage.build is None:
        raise recipe.error("push_to_hub", f"the stage `{recipe.stage.name}` leaves no model; drop the line.")
    try:
        refuse_pushing_midway(recipe.raw)
        if recipe.model_args.use_peft and model_is_there:
            _check_base(recipe)
        if int(os.environ.get("RANK", "0")) == 0:
            check_destination(_destination(recipe))
    except UserError as error:
        key, _, message = str(error).partition(": ")
        raise recipe.error(key, message) from None
    recipe.config.push_to_hub = False


def destination_line(recipe: Recipe) -> str | None:
    """Where `check` says that the run will go; None where it is not pushed."""
    if not recipe.raw.get("push_to_hub"):
        return None
    wanted = _destination(recipe)
    private = {True: ", private", False: ", public", None: ""}[wanted.private]
    branch = f", branch {wanted.revision}" if wanted.revision else ""
    return f"pushed to {wanted.name} after the results{private}{branch}"


def write_no_card(trainer: Any) -> None:
    """Let a trainer write no card, which would stand in the output folder until the run has its own."""
    trainer.create_model_card = lambda *arguments, **settings: None


def finish_on_hub(recipe: Recipe, trainer: Trainer) -> None:
    """Push a run that is finished, where its recipe asks for it; in the first process.

    Raises:
        UserError: it was not pushed; in one line, with the command that pushes it.
    """
    if not trainer.is_world_process_zero() or not recipe.raw.get("push_to_hub"):
        return
    folder, wanted = recipe.config.output_dir, _destination(recipe)
    try:
        print(told(push(folder, wanted)), flush=True)
    except UserError as error:
        raise UserError(not_pushed(folder, wanted, error)) from None


def write_run_card(recipe: Recipe) -> None:
    """Write the card of a run whose results are written."""
    folder, wanted = recipe.config.output_dir, _destination(recipe)
    known = recipe.raw.get("push_to_hub") or "/" in wanted.name
    try:
        run = read_run_folder(folder)
    except UserError as error:  # of sharded weights, which have to be put together first
        print(f"Card: none, {error}")
        return
    write_card(run, wanted.name if known else Path(folder).name, wanted.revision if known else None)


def _destination(recipe: Recipe) -> Destination:
    return destination(recipe.raw, recipe.config.output_dir)


def _check_base(recipe: Recipe) -> None:
    name = recipe.model_args.model_name_or_path
    if name is not None and origin_of(name, recipe.model_args.model_revision) is None:
        try:
            check_base(recipe.config.output_dir, name)
        except UserError as error:
            raise UserError(f"push_to_hub: {error}") from None
