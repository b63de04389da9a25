"""The stage `critic`: recipes that train a value model on correct and incorrect solutions with ValueTrainer."""

from typing import Any, cast

from transformers import Trainer

from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import columns_for
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.solutions import SAMPLING_RULES
from hpt_trl.errors import Collector
from hpt_trl.methods.critic.config import CriticArguments, ValueConfig
from hpt_trl.methods.critic.held_out import held_out_results
from hpt_trl.methods.critic.rows import candidate_rows, paired_rows
from hpt_trl.methods.critic.trainer import SIDES, ValueTrainer, encoded_pairs
from hpt_trl.methods.solution_rows import check_sampling
from hpt_trl.methods.text_models import refuse_processor
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import at_least

_COLUMNS = ("prompt", *SIDES, "margin", "tools", "chat_template_kwargs")


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the data is read.

    Raises:
        UserError: every such setting.
    """
    mistakes = Collector()
    with mistakes.noted():
        check_sampling(recipe)
    if recipe.config.train_sampling_strategy == "group_by_length":
        said = "group_by_length also sorts the held-out pairs, whose scores are kept in their order; drop the key."
        mistakes.note(recipe.error("train_sampling_strategy", said))
    if recipe.config.activation_offloading:
        said = "true: the value head's activations are not offloaded; drop it."
        mistakes.note(recipe.error("activation_offloading", said))
    mistakes.settle()


def sample(recipe: Recipe, splits: Splits) -> Splits:
    """The solutions that pairs may be made of; comparisons are pairs already."""
    return candidate_rows(recipe, splits) if splits.layout == "solutions" else splits


def fit(recipe: Recipe, splits: Splits, encoder: Encoder) -> Splits:
    """Draw the pairs, whose lengths are known only now."""
    return paired_rows(recipe, splits, encoder) if splits.layout == "demonstrations" else splits


def build(inputs: StageInputs) -> Trainer:
    rows = [columns_for(rows, *_COLUMNS) for rows in (inputs.splits.train, inputs.splits.test)]
    train, test = (encoded_pairs(part, inputs.encoder, inputs.config) for part in rows)
    return ValueTrainer(train_dataset=train, eval_dataset=test, **inputs.trainer_arguments())


def finish(trainer: Trainer) -> dict[str, Any] | None:
    """Leave the values of some held-out solutions; return how the critic and the baselines tell right from wrong."""
    return held_out_results(cast(ValueTrainer, trainer))


STAGE = Stage(
    name="critic",
    config_class=ValueConfig,
    argument_class=CriticArguments,
    check=check,
    check_tokenizer=refuse_processor,
    build=build,
    finish=finish,
    rules=(
        *SAMPLING_RULES,
        at_least(0, "center_rewards_coefficient"),
        at_least(1, "max_test_pairs_per_problem"),
    ),
    layouts=("solutions", "comparisons"),
    sample=sample,
    fit=fit,
    measures_held_out=True,
    scores=True,
)
