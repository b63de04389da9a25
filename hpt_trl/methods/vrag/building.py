"""The environments `vrag` of a run: one engine, asked by all rollouts."""

from collections.abc import Sequence
from typing import Any

from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.protocol import Turn
from hpt_trl.errors import UserError
from hpt_trl.methods.vrag.actions import Search, read_action
from hpt_trl.methods.vrag.environment import BEYOND, PageSearch
from hpt_trl.methods.vrag.settings import VragOptions, vrag_options
from hpt_trl.retrieval.engine import open_engine, reranked


def check_vrag(values: dict[str, Any], index: str | None) -> VragOptions:
    """Checks the options of a recipe, before anything is opened.

    Args:
        values: `environment_options`, fields of `VragOptions` but for `index`.
        index: `search_index`.

    Raises:
        UserError: the first that is not allowed, with the key of the recipe.
    """
    if index is None or not index.strip():
        raise UserError(
            "search_index: `environment: vrag` needs it; write the folder of an index (`hpt-trl index PAGES INDEX`) or "
            "the address of a search service."
        )
    if "index" in values:
        raise UserError("environment_options: `index`: write it as the key `search_index` of the recipe.")
    try:
        return vrag_options(values, index)
    except UserError as error:
        raise UserError(f"environment_options: {error}") from error


def vrag_environments(options: VragOptions, **limits: Any) -> TurnEnvironments:
    """Environments that search pages.

    Args:
        limits: fields of `TurnEnvironments`.

    Raises:
        UserError: the index cannot be opened; with the key of the recipe.
    """
    try:
        engine = open_engine(options.index, timeout=options.timeout, retries=options.retries, images=options.images)
    except UserError as error:
        raise UserError(f"search_index: {error}") from error
    if options.reranker is not None:
        try:
            engine = reranked(engine, options.reranker, options.rerank_depth)
        except UserError as error:
            raise UserError(f"environment_options: {error}") from error
    turns, images = limits.get("max_turns", TurnEnvironments.max_turns), limits.get("max_images")

    def ask(taken: Sequence[Turn]) -> None:
        """Asks for all that a batch searches; the engine keeps the rankings, which are as long as any that follows."""
        actions = [read_action(turn, options.vocabulary) for turn in taken if not (turn.cut or turn.last)]
        if queries := [action.query for action in actions if isinstance(action, Search)]:
            engine.search(queries, turns + BEYOND)

    return TurnEnvironments(lambda: PageSearch(engine, options, turns=turns, images=images), ahead=ask, **limits)
