"""The stage `rho1`: recipes that train on selected tokens with Rho1Trainer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import Collector, UserError
from hpt_trl.methods.rho1.checks import check_selection
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.methods.rho1.trainer import IMAGES_REFUSED, Rho1Trainer
from hpt_trl.methods.sft.rows import refuse_turns_of_documents, training_splits, try_row
from hpt_trl.methods.sft.turns import TurnArguments, check_turns
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import one_of


@dataclass
class Rho1Arguments(TurnArguments, RecipeArguments):
    """Which turns Rho-1 trains on."""


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the data is read.

    Raises:
        UserError: every such setting.
    """
    mistakes = Collector()
    with mistakes.noted():
        check_turns(recipe)
    config = recipe.config
    if config.dataset_text_field != "text":
        said = f"{config.dataset_text_field}: write `column_mapping: {{text: {config.dataset_text_field}}}` instead."
        mistakes.note(recipe.error("dataset_text_field", said))
    mistakes.settle()


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a reference that is missing, or that reads other tokens.

    Raises:
        UserError: what differs.
    """
    if not recipe.config.needs_reference:
        return
    try:
        check_selection(recipe.config, tokenizer, model=recipe.model_args.model_name_or_path)
    except UserError as error:
        message = str(error).removeprefix("reference_model_name_or_path: ")
        raise recipe.error("reference_model_name_or_path", message) from error


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse rows with images, and a loss on turns where there are none.

    Raises:
        UserError: there are some.
    """
    refuse_turns_of_documents(recipe, splits)
    for rows, source in splits.named:
        if encoder.reads_images(rows.column_names):
            raise UserError(f"{source}: {IMAGES_REFUSED}")


def build(inputs: StageInputs) -> Trainer:
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    inputs.config.is_as_trl = False
    return Rho1Trainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())


STAGE = Stage(
    name="rho1",
    config_class=Rho1Config,
    argument_class=Rho1Arguments,
    check=check,
    check_tokenizer=check_tokenizer,
    check_rows=check_rows,
    try_row=try_row,
    build=build,
    rules=(one_of("truncation_mode", "keep_start", "keep_end"),),
    layouts=("documents", "demonstrations"),
    needs_demonstration=lambda config: True,
    rewards="optional",
    measures_held_out=True,
)
