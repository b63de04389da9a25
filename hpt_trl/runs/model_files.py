"""A run's model files where transformers loses something: what the checkpoint shipped, and experts on the way back."""

from typing import Any

from peft import PeftModel
from transformers import PretrainedConfig, Trainer

from hpt_trl.errors import UserError
from hpt_trl.models.converted_weights import load_converted
from hpt_trl.models.future_heads.shipped import (
    DROP,
    KEEP,
    TRAIN,
    ShippedHeads,
    announce_nothing,
    check_keepable,
    find_shipped_heads,
    keep_heads,
)
from hpt_trl.recipes.recipe import Recipe

# A reward model writes no text, nor does a critic.
_WITHOUT_TEXT = ("reward", "critic")


def shipped_by(recipe: Recipe, config: PretrainedConfig) -> ShippedHeads:
    """What the recipe's checkpoint ships, as far as it is on this machine.

    Raises:
        UserError: it cannot be kept, or trained, as the recipe asks.
    """
    model_args, choice = recipe.model_args, recipe.arguments.shipped_heads
    if model_args.model_name_or_path is None:
        return ShippedHeads()
    found = find_shipped_heads(model_args.model_name_or_path, config, revision=model_args.model_revision)
    if choice == TRAIN and recipe.stage.name != "mtp":
        raise recipe.error(
            "shipped_heads",
            f"train, but `stage: {recipe.stage.name}` has no loss for them; write `stage: mtp`, which trains the next "
            "token as `sft` does and the heads beside it, or `shipped_heads: keep`.",
        )
    if choice == TRAIN and model_args.use_peft:
        raise recipe.error(
            "shipped_heads",
            "train with `use_peft`: an adapter's folder has no place for them; write `use_peft: false`, or keep.",
        )
    if choice == KEEP and found.tensors and not model_args.use_peft:
        try:
            check_keepable(found)
        except UserError as error:
            raise recipe.error("shipped_heads", str(error)) from error
    return found


def complete_model_files(trainer: Trainer, recipe: Recipe, config: PretrainedConfig) -> None:
    """Let whatever the trainer saves hold what its checkpoint shipped, and what it loads hold all weights.

    To be called once the model is loaded: the files of a Hub id are there by then.
    """
    _convert_on_loading(trainer)
    shipped, choice = shipped_by(recipe, config), recipe.arguments.shipped_heads
    if recipe.stage.name in _WITHOUT_TEXT:
        choice = DROP
    if choice == TRAIN or not shipped:
        return
    if trainer.is_world_process_zero():
        print(_told(shipped, choice, recipe.stage.name, isinstance(trainer.model, PeftModel)), flush=True)
    save: Any = trainer._save

    def complete(output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save(output_dir, state_dict)
        if not trainer.args.should_save:
            return
        folder = str(output_dir or trainer.args.output_dir)
        if choice == KEEP:
            keep_heads(shipped, folder)
        else:
            announce_nothing(folder)

    trainer._save = complete  # type: ignore[method-assign]


def _told(shipped: ShippedHeads, choice: str, stage: str, adapter: bool) -> str:
    if choice == DROP:
        return f"Left out: {shipped}; the saved config no longer announces them."
    if stage == "mtp" and shipped.folder is not None and not shipped.tensors:
        return f"Trained on: {shipped}."
    if adapter and shipped.folder is None:
        return f"Kept in the base model: {shipped}; `hpt-trl merge` takes them along."
    return (
        f"Kept as they are: {shipped}. The trained model moves away from them, so that their drafts are accepted less "
        "often (`shipped_heads`)."
    )


def _convert_on_loading(trainer: Any) -> None:
    """Load experts by their names in memory, too, where a run goes on or takes its best model."""
    load = trainer._load_from_checkpoint
    best = trainer._load_best_model

    def whole() -> bool:
        spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        return not spread and not isinstance(trainer.model, PeftModel)

    def from_checkpoint(resume_from_checkpoint: str, model: Any = None) -> None:
        load(resume_from_checkpoint, model)
        if whole():
            load_converted(trainer.model, resume_from_checkpoint)

    def best_model() -> None:
        best()
        if whole():
            load_converted(trainer.model, str(trainer.state.best_model_checkpoint))

    trainer._load_from_checkpoint, trainer._load_best_model = from_checkpoint, best_model
