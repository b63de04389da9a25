"""A stage around WeightedTrainer, so that what recipes with a value model do is tried by the commands themselves."""

from hpt_trl.errors import UserError
from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.token_scores.weighting_checks import check_weighting
from hpt_trl.token_scores.weighting_config import TokenWeightingConfig
from tests.helpers.weighted import WeightedTrainer


def check_tokenizer(recipe: Recipe, tokenizer) -> None:
    try:
        check_weighting(recipe.config, tokenizer, model=recipe.model_args.model_name_or_path)
    except UserError as error:
        message = str(error).removeprefix("value_model_name_or_path: ")
        raise recipe.error("value_model_name_or_path", message) from error


def build(inputs: StageInputs) -> WeightedTrainer:
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    return WeightedTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())


STAGE = Stage(
    name="weighted",
    config_class=TokenWeightingConfig,
    check_tokenizer=check_tokenizer,
    build=build,
    layout=lambda arguments: "demonstrations",
    needs_demonstration=lambda config: True,
    measures_held_out=True,
)
