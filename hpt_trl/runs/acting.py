"""The environment of a run: made, and held against the rows; and where a row is whose rollout fails later."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.arguments import EnvironmentArguments
from hpt_trl.environments.faults import placed
from hpt_trl.errors import UserError
from hpt_trl.methods.acted_rows import check_acted_rows
from hpt_trl.methods.environments import acting_of, check_rewards
from hpt_trl.recipes.recipe import Recipe


def trains_on_answers(recipe: Recipe, splits: Splits) -> bool:
    """Whether the stage reads what follows a prompt: rollouts alone do not."""
    return splits.layout != "prompts" or recipe.stage.uses_demonstrations(recipe.config)


def acting_for(
    recipe: Recipe, splits: Splits, tokenizer: Any, end_ids: list[int] | None, positions: int | None
) -> Acting | None:
    """How rollouts are begun in the recipe's environment, tried on the first rows; None without one.

    Raises:
        UserError: it cannot be made, or the first row that does not do.
    """
    if not isinstance(recipe.arguments, EnvironmentArguments) or recipe.arguments.environment is None:
        check_rewards(recipe, splits.train.column_names)
        return None
    encoder = Encoder(tokenizer, recipe.setting("chat_template_kwargs"), reads_rows=False, end_ids=end_ids)
    drawn = recipe.stage.completion_length(recipe.config)
    acting = acting_of(recipe, encoder, drawn=drawn, positions=positions)
    assert acting is not None
    reads = trains_on_answers(recipe, splits)
    check_acted_rows(splits, acting, splits.demonstration_column if reads else None)
    return acting


@contextmanager
def rows_placed(splits: Splits) -> Iterator[None]:
    """Names the data in a complaint about a row, of which trainers know the number alone."""
    try:
        yield
    except UserError as error:
        told = placed(error, [source for _, source in splits.named])
        if told is error:
            raise
        raise told from error
