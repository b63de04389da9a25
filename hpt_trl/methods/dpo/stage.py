"""The stage `dpo`: recipes that train on comparisons with TRL's own DPOTrainer.

The reference model is the one that the recipe names, before the training; under LoRA it is the base model with the
adapter off.
"""

from typing import Any

from transformers import Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.reading.places import where
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError
from hpt_trl.methods.comparisons import comparison_rows
from hpt_trl.methods.dpo.trainer import MeasuredDPOTrainer
from hpt_trl.methods.padding_free import PaddingFreeDPOConfig
from hpt_trl.methods.streamed import refuse_streamed_images
from hpt_trl.models.moving_reference import refuse_lost_reference
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import at_least, one_of, share

# What DPOTrainer reads of a row.
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", *IMAGES)

LOSSES = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
)


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    try:
        refuse_lost_reference(recipe.config, spread=recipe.profile.spreads_weights)
    except ValueError as error:
        raise recipe.place(error) from None


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse answers that are more than the assistant's, and a stream of images.

    Raises:
        UserError: the first such row.
    """
    refuse_streamed_images(recipe, splits, encoder)
    for rows, source in splits.named:
        for row, answers in iterate_rows(rows, list(splits.answers)):
            try:
                check_answers(dict(zip(splits.answers, answers, strict=True)))
            except UserError as error:
                raise UserError(f"{where(source, row)}: {error}") from None


def check_answers(row: dict[str, Any]) -> None:
    """Refuse answers of several speakers, or with turns of weight 0: DPOTrainer trains on all that follows the prompt.

    Args:
        row: a comparison, or its answers alone.
    """
    for name in ("chosen", "rejected"):
        messages = row[name] if isinstance(row[name], list) else []
        if others := [message["role"] for message in messages if message["role"] != "assistant"]:
            raise UserError(
                f"`{name}` holds a message of the {others[0]}, on which DPOTrainer would train as on the answer. Write "
                "the turns that both answers share into `prompt`, and the assistant's alone into `chosen` and "
                "`rejected`."
            )
        if any(message.get("weight") == 0 for message in messages):
            raise UserError(
                f"`{name}` holds a message of weight 0, which DPOTrainer would train on all the same. Write it into "
                "`prompt`, or drop the weight."
            )


def build(inputs: StageInputs) -> Trainer:
    return MeasuredDPOTrainer(**inputs.trainer_arguments() | comparison_rows(inputs, *COLUMNS, check=check_answers))


STAGE = Stage(
    name="dpo",
    config_class=PaddingFreeDPOConfig,
    check=check,
    check_rows=check_rows,
    build=build,
    reference=lambda trainer: trainer.ref_model,
    rules=(
        one_of("f_divergence_type", "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        at_least(0, "beta", "label_smoothing", "discopop_tau"),
        at_least(1, "precompute_ref_batch_size", "ref_model_sync_steps"),
        share("ref_model_mixup_alpha", "ld_alpha"),
        one_of("truncation_mode", "keep_start", "keep_end"),
        one_of("loss_type", *LOSSES),
    ),
    layouts=("comparisons",),
    rewards="optional",
    measures_held_out=True,
)
