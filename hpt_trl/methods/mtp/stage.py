"""The stage `mtp`: recipes that train several tokens ahead with WeightedMTPTrainer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import count_tokens
from hpt_trl.data.solutions import SAMPLING_RULES, SolutionArguments
from hpt_trl.errors import Collector, UserError
from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.methods.mtp.frozen_models import check_frozen_models
from hpt_trl.methods.mtp.own_heads import check_own_heads
from hpt_trl.methods.mtp.trainer import WeightedMTPTrainer
from hpt_trl.methods.sft.rows import refuse_turns_of_documents, training_splits, try_row
from hpt_trl.methods.sft.turns import TurnArguments, check_turns
from hpt_trl.methods.solution_rows import check_sampling, drawn_demonstrations, without_long_ones
from hpt_trl.methods.text_models import refuse_processor
from hpt_trl.models.future_heads.chained import SHIPPED
from hpt_trl.models.future_heads.shipped import DROP, TRAIN
from hpt_trl.models.future_heads.storage import HEADS_FOLDER, folder_with_heads, has_heads
from hpt_trl.models.future_heads.trunk import check_architecture
from hpt_trl.models.loading import load_config
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import one_of


@dataclass
class MtpArguments(TurnArguments, SolutionArguments, RecipeArguments):
    """Which turns and which solutions are trained on."""


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the data is read.

    Raises:
        UserError: every such setting.
    """
    mistakes = Collector()
    with mistakes.noted():
        check_turns(recipe)
    config, arguments = recipe.config, recipe.arguments
    config.begins_anew = arguments.shipped_heads == DROP
    if config.head_init == SHIPPED:
        said = "shipped: in a recipe it is asked for by `shipped_heads: train`."
        mistakes.note(recipe.error("head_init", said))
    if recipe.layout == "solutions":
        with mistakes.noted():
            check_sampling(recipe)
        if arguments.conversational is None:
            # Alpaca's prompt is a text.
            arguments.conversational = False
    if config.dataset_text_field != "text":
        said = f"{config.dataset_text_field}: write `column_mapping: {{text: {config.dataset_text_field}}}` instead."
        mistakes.note(recipe.error("dataset_text_field", said))
    mistakes.settle()


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that cannot have heads; the recipe's model is known to exist by now.

    Raises:
        UserError: what it is.
    """
    refuse_processor(recipe, tokenizer)
    try:
        check_frozen_models(recipe.config, tokenizer, model=recipe.model_args.model_name_or_path)
    except UserError as error:
        key, _, message = str(error).partition(": ")
        raise recipe.error(key, message) from error
    if not recipe.config.looks_ahead:
        return
    name = str(recipe.model_args.model_name_or_path)
    folder = folder_with_heads(name, revision=recipe.model_args.model_revision)
    if recipe.arguments.shipped_heads == TRAIN and has_heads(folder):
        raise recipe.error(
            "shipped_heads",
            f"train, but {name} has heads of its own (`{HEADS_FOLDER}`), "
            "which are trained on without the key; drop it.",
        )
    try:
        check_own_heads(recipe.config, folder)
    except UserError as error:
        key, _, message = str(error).partition(": ")
        raise recipe.error(key, message) from error
    settings = {"revision": recipe.model_args.model_revision, "trust_remote_code": recipe.config.trust_remote_code}
    model_config = load_config(name, **settings)
    layers = getattr(model_config.get_text_config(), "num_mtp_layers", None) or 0
    if recipe.arguments.shipped_heads == TRAIN and layers != recipe.config.n_future_tokens - 1:
        raise recipe.error(
            "n_future_tokens",
            f"{recipe.config.n_future_tokens}, but the checkpoint of {name} ships {layers} layers for the tokens after "
            f"the next one; write {layers + 1}."
            if layers
            else f"`shipped_heads: train`, but the config of {name} announces no layers for future tokens.",
        )
    try:
        check_architecture(model_config)
    except UserError as error:
        message = str(error).removeprefix("model_name_or_path: ")
        raise recipe.error("model_name_or_path", message) from error


def sample(recipe: Recipe, splits: Splits) -> Splits:
    """Draw from solutions; other rows stay.

    Raises:
        UserError: the rows are solutions, and the recipe does not say so: its other keys and `hpt-trl chat` go by it.
    """
    if splits.layout != "solutions":
        return splits
    if recipe.layout != "solutions":
        raise UserError(
            f"{splits.source} holds solutions, correct or not (`is_correct`); write `dataset_layout: solutions`, in a "
            "mixture in its entries."
        )
    return drawn_demonstrations(recipe, splits)


def fit(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """Leave out solutions that would be cut; other rows stay."""
    return without_long_ones(recipe, splits, encoder) if recipe.layout == "solutions" else splits


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse rows that are all too short for the last head, and a loss on turns where there are none.

    Raises:
        UserError: their longest.
    """
    refuse_turns_of_documents(recipe, splits)
    wanted, longest = recipe.config.n_future_tokens, 0
    columns = ("text",) if splits.layout == "documents" else ("prompt", "completion")
    for _, tokens in count_tokens(splits.train, splits.source, encoder, columns):
        longest = max(longest, tokens)
        if longest > wanted:
            return
    raise recipe.error(
        "n_future_tokens",
        f"{wanted}, but the longest row of {splits.source} has {longest} tokens, so that the last head has nothing to "
        "predict; allowed: less than that.",
    )


def build(inputs: StageInputs) -> Trainer:
    if inputs.arguments.shipped_heads == TRAIN:
        inputs.config.head_init = SHIPPED
    train, test = training_splits(inputs.splits, inputs.encoder, inputs.config, inputs.arguments)
    return WeightedMTPTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())


STAGE = Stage(
    name="mtp",
    config_class=WeightedMTPConfig,
    argument_class=MtpArguments,
    check=check,
    check_tokenizer=check_tokenizer,
    check_rows=check_rows,
    try_row=try_row,
    build=build,
    rules=(
        *SAMPLING_RULES,
        one_of("truncation_mode", "keep_start", "keep_end"),
    ),
    layouts=("demonstrations", "documents", "solutions"),
    sample=sample,
    fit=fit,
    needs_demonstration=lambda config: True,
    rewards="optional",
    measures_held_out=True,
)
