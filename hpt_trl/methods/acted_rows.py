"""Rows in an environment, before weights are loaded: all are looked at, the first are begun and played."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.image_utils import load_image

from hpt_trl.data.forms.pictures import undecoded
from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import IMAGES, images_of, text_of
from hpt_trl.data.reading.places import where
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.row_images import with_images
from hpt_trl.data.row_lengths import examples
from hpt_trl.environments.acting import Acting, goes_on, prompt_of
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.faults import columns, named, placed
from hpt_trl.environments.protocol import Turn
from hpt_trl.errors import UserError
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.references import check_boxes, check_references

logger = logging.getLogger(__name__)

# Rows whose rollout is begun, and whose trajectory is played.
PROBED = 16


def check_acted_rows(splits: Splits, acting: Acting, column: str | None) -> None:
    """Look at all rows, begin a rollout of the first ones, and play the trajectories of these.

    Args:
        column: of the trajectories; None where nothing reads them.

    Raises:
        UserError: the first row that does not do.
    """
    for rows, source in splits.named:
        environment = acting.environments.make()
        search = environment if isinstance(environment, PageSearch) else None
        check_references(rows, source, None if search is None else search.engine)
        written = column if column in rows.column_names else None
        _look_at(rows, source, acting, written, search)
        _play(rows, source, acting, written, search)


def _look_at(rows: Dataset, source: str, acting: Acting, column: str | None, search: PageSearch | None) -> None:
    """Refuses what is wrong with a row whatever the environment shows."""
    images = [name for name in IMAGES if name in rows.column_names]
    read = ["prompt", *([] if column is None else [column]), *images]
    shortest: tuple[int, int] | None = None
    for number, values in iterate_rows(undecoded(rows), read):
        row = dict(zip(read, values, strict=True))
        try:
            _check_images(row, acting)
            if column is None or not row[column]:
                continue
            for length in _lengths(row, acting, column, search):
                shortest = min(shortest or (length, number), (length, number))
        except UserError as error:
            raise UserError(f"{where(source, number)}: {error}") from error
    if shortest is not None and shortest[0] > acting.limits.turn:
        logger.warning(
            "%s: no turn of a trajectory is as short as a rollout's must be: the shortest has %d tokens, a rollout's "
            "at most %d (`max_turn_length`, `max_completion_length`), in which no action may fit.",
            where(source, shortest[1]),
            *(shortest[0], acting.limits.turn),
        )


def _lengths(row: dict[str, Any], acting: Acting, column: str, search: PageSearch | None) -> Iterator[int]:
    """Tokens of the turns of a trajectory."""
    if any(message["role"] == "assistant" for message in prompt_of(row)):
        raise UserError(
            f"the prompt holds a turn of the assistant, and `{column}` what follows it. The turns of a trajectory "
            f"stand in `{column}` together, without those of the user between them; write the columns `prompt` and "
            f"`{column}`."
        )
    for piece in acting.written(row, column):
        yield len(piece.ids)
    for place, message in enumerate(row[column][:-1], start=1):
        if search is not None and search.ends_on(Turn(text_of([message]), message)):
            raise goes_on(column, place, "answer", row[column][place])


def _check_images(row: dict[str, Any], acting: Acting) -> None:
    images = images_of(row) or []
    if acting.encoder.encoder.is_processor:
        with_images(prompt_of(row), images)
    for image in images:
        # What a dataset holds itself is there.
        if not isinstance(image, str) or image.startswith(("http://", "https://")) or Path(image).is_file():
            continue
        try:
            load_image(image)
        except ValueError as error:
            raise UserError(f"the image {image[:200]} is no file, no address and no base64 of an image.") from error


def _play(rows: Dataset, source: str, acting: Acting, column: str | None, search: PageSearch | None) -> None:
    """Begins rollouts, plays trajectories, and says what is odd with these."""
    begun: list[Episode] = []
    played: list[tuple[int, Episode]] = []
    for number, row in examples(rows.select(range(min(PROBED, len(rows)))), tuple(rows.column_names)):
        try:
            begun.append(_begun(row, acting))
            if search is not None:
                check_boxes(row, search.engine)
            if column is not None and row[column]:
                played.append((number, _played(row, acting, column)))
        except UserError as error:
            raise placed(named(error, row), [source]) from error
    episodes = [*begun, *(episode for _, episode in played)]
    try:
        columns([episode.facts() for episode in episodes], "facts")
        columns([episode.measures() for episode in episodes], "measures")
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    for odd, what in (
        (lambda one: one.ended == "context", "have no room for all of their turns (`max_context_length`), and are cut"),
        (lambda one: one.facts().get("invalid_actions"), "hold turns that are no valid actions, and are trained on"),
        (lambda one: one.pending, "have no turn that ends the rollout, and are trained on"),
        (
            lambda one: one.measures().get("vrag/recall", 1.0) < 1.0,
            "do not find all of their `reference_pages` with this search, and are trained on",
        ),
    ):
        if found := [number for number, episode in played if odd(episode)]:
            logger.warning(
                "%s, row %d: %d of the first %d trajectories %s.", source, found[0], len(found), PROBED, what
            )


def _begun(row: dict[str, Any], acting: Acting) -> Episode:
    episode = acting.episode(row)
    if names := sorted(episode.facts().keys() & row.keys()):
        raise UserError(
            f"the column `{names[0]}` has the name of something that the environment tells rewards; rename it with "
            "`column_mapping`."
        )
    episode.measures()
    if not episode.pending:
        raise UserError(
            f"the prompt has {len(episode.prompt.ids)} tokens, which leaves no room for a turn (`max_context_length` "
            f"{acting.limits.context})."
        )
    return episode


def _played(row: dict[str, Any], acting: Acting, column: str) -> Episode:
    episode = acting.demonstration(row, column)
    if not episode.turns:
        raise UserError(
            f"`{column}` has no room for its first turn behind a prompt of {len(episode.prompt.ids)} tokens "
            f"(`max_context_length` {acting.limits.context}); raise the limit, or shorten it."
        )
    return episode
