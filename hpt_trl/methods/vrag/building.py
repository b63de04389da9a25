"""The environments `vrag` of a run: one engine, asked by all rollouts."""

from typing import Any

from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.errors import UserError
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import vrag_options
from hpt_trl.retrieval.engine import open_engine


def vrag_environments(values: dict[str, Any], **limits: Any) -> TurnEnvironments:
    """Environments that search pages.

    Args:
        values: fields of `VragOptions`.
        limits: fields of `TurnEnvironments`.

    Raises:
        UserError: an option that is not allowed, or an index that cannot be opened; with the key of the recipe.
    """
    try:
        options = vrag_options(values)
    except UserError as error:
        raise UserError(f"environment_options: {error}") from error
    try:
        engine = open_engine(
            options.index,
            reranker=options.reranker,
            rerank_depth=options.rerank_depth,
            timeout=options.timeout,
            retries=options.retries,
            images=options.images,
        )
    except UserError as error:
        raise UserError(f"search_index: {error}") from error
    turns, images = limits.get("max_turns", TurnEnvironments.max_turns), limits.get("max_images")
    return TurnEnvironments(lambda: PageSearch(engine, options, turns=turns, images=images), **limits)
