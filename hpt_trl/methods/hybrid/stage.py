"""The stage `hpt`: recipes that train with HybridPostTrainer."""

import logging
from typing import Any

from transformers import Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import Asked, Length
from hpt_trl.environments.arguments import ENVIRONMENT_RULES
from hpt_trl.methods.environments import ActingArguments, acting_arguments, check_environment
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.demonstrations import check_demonstrations, demonstration_asked, demonstration_length
from hpt_trl.methods.hybrid.routing import refuse_what_cannot_work
from hpt_trl.methods.hybrid.trainer import HybridPostTrainer
from hpt_trl.models.moving_reference import refuse_lost_reference
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling

logger = logging.getLogger(__name__)


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    check_environment(recipe)
    try:
        refuse_what_cannot_work(recipe.config, {"environment": acting_arguments(recipe).environment})
        check_sampling(recipe.config)
        refuse_lost_reference(recipe.config, spread=recipe.profile.spreads_weights)
    except ValueError as error:
        raise recipe.place(error) from None


def try_row(recipe: Recipe, row: dict[str, Any], encoder: Encoder, column: str) -> dict[Asked, Length]:
    """Encode a row's prompt as rollouts get it, and its demonstration where one is trained on.

    Raises:
        UserError: it would be trained otherwise than it is written.
    """
    found = {Asked(("prompt",)): Length(len(encoder.prompt(row)))}
    if not recipe.config.uses_demonstrations or not row.get(column):
        return found
    limit = recipe.config.max_demonstration_length
    return found | {demonstration_asked(column, limit): demonstration_length(row, column, encoder, limit)}


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse a demonstration that would be trained otherwise than it is written.

    Raises:
        UserError: the first such row.
    """
    # In an environment they are played (`hpt_trl.methods.acted_rows`).
    if recipe.config.uses_demonstrations and acting_arguments(recipe).environment is None:
        longest = recipe.config.max_demonstration_length
        cut = check_demonstrations(
            splits.train,
            splits.source,
            splits.demonstration_column,
            encoder,
            max_length=longest,
            positions=positions,
        )
        if cut:
            logger.warning(
                "%s: %d of %d demonstrations have more than %d tokens (`max_demonstration_length`) and are cut.",
                splits.source,
                cut,
                len(splits.train),
                longest,
            )


def build(inputs: StageInputs) -> Trainer:
    return HybridPostTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="hpt",
    config_class=HybridPostConfig,
    argument_class=ActingArguments,
    environment=lambda arguments: arguments.environment,
    build=build,
    reference=lambda trainer: trainer.ref_model,
    check=check,
    check_rows=check_rows,
    try_row=try_row,
    rules=(*ROLLOUT_RULES, *ENVIRONMENT_RULES),
    needs_demonstration=lambda config: config.uses_demonstrations and config.on_missing_demonstration == "error",
    uses_demonstrations=lambda config: config.uses_demonstrations,
    demonstration_column=lambda config: config.demonstration_column,
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
    success_threshold=lambda config: config.success_threshold,
)
