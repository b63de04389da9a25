"""Rollouts of an environment from their rows: begun for a model to act in, or played from a written trajectory."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

from hpt_trl.data.messages import images_of
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.turns import shown
from hpt_trl.environments.encoding import PieceEncoder
from hpt_trl.environments.episode import Episode, Limits
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.faults import ask, named
from hpt_trl.environments.pieces import Piece
from hpt_trl.environments.protocol import Environment, Messages
from hpt_trl.errors import UserError

# More tokens than any trajectory has: a written one is bounded by its turns and by the context alone.
_UNBOUNDED = 1 << 40


class Acting:
    """Begins rollouts.

    Args:
        environments: makes their environments, with the limits of each.
        encoder: as the trainer encodes prompts.
        drawn: tokens that a rollout may draw in all.
        positions: tokens that the model takes, None without a limit.
    """

    def __init__(self, environments: TurnEnvironments, encoder: Encoder, *, drawn: int, positions: int | None = None):
        limits = [length for length in (environments.max_context_length, positions) if length is not None]
        self.environments = environments
        self.encoder = PieceEncoder(encoder, self._an_environment.tools)
        self.limits = Limits(
            turns=environments.max_turns,
            drawn=drawn,
            turn=min(environments.max_turn_length or drawn, drawn),
            context=min(limits, default=None),
            images=environments.max_images,
            positions=positions,
        )

    def drawing(self, drawn: int) -> "Acting":
        """The same with another number of tokens that a rollout may draw."""
        other = copy(self)
        turn = self.environments.max_turn_length or drawn
        other.limits = replace(self.limits, drawn=drawn, turn=min(turn, drawn))
        return other

    @cached_property
    def _an_environment(self) -> Environment:
        return self.environments.make()

    def take(
        self,
        episodes: Sequence[Episode],
        drawn: Sequence[Sequence[int]],
        logps: Sequence[Sequence[float | None]] | None = None,
    ) -> None:
        """Lets rollouts go on with the turns that were drawn in a batch.

        Args:
            drawn: tokens, of each rollout; what follows is left alone.
            logps: of each token when it was drawn.
        """
        turns = [episode.turn(ids) for episode, ids in zip(episodes, drawn, strict=False)]
        if self.environments.ahead is not None:
            self.environments.ahead(turns)
        for place, (episode, turn) in enumerate(zip(episodes, turns, strict=True)):
            episode.take(drawn[place], None if logps is None else logps[place], turn)

    def episode(self, row: dict[str, Any]) -> Episode:
        """A rollout of a row, at its first turn.

        Raises:
            UserError: the prompt is no list of messages, or the environment cannot begin with the row.
        """
        return self._begun(row, self.limits)

    def written(self, row: dict[str, Any], column: str) -> list[Piece]:
        """The turns of a row's trajectory, encoded; nothing is played.

        Raises:
            UserError: it is no list of the assistant's turns, has too many, or has a turn that the chat template does
                not write as it stands.
        """
        turns = row[column]
        if isinstance(turns, str) or any(message.get("role") != "assistant" for message in turns):
            raise UserError(
                f"`{column}` is no trajectory: write a list of messages of role `assistant` alone, one for each turn. "
                "What stands between them comes from the environment."
            )
        if len(turns) > self.limits.turns:
            raise UserError(
                f"`{column}` has {len(turns)} turns, a rollout {self.limits.turns} (`max_turns`); raise `max_turns` or "
                "shorten it."
            )
        return [self.encoder.turn(message) for message in turns]

    def demonstration(self, row: dict[str, Any], column: str) -> Episode:
        """A row's trajectory, played: the environment acts on its turns as it does on a model's.

        Raises:
            UserError: it cannot be `written`, or goes on after its end.
        """
        pieces = self.written(row, column)
        episode = self._begun(row, replace(self.limits, drawn=_UNBOUNDED, turn=_UNBOUNDED))
        for number, piece in enumerate(pieces):
            if not episode.pending:
                if episode.ended == "context":
                    break
                raise goes_on(column, number, episode.ended, row[column][number])
            if len(piece.ids) > episode.budget:
                episode.ended = "context"
                break
            episode.take(piece.ids)
        return episode

    def _begun(self, row: dict[str, Any], limits: Limits) -> Episode:
        environment = self.environments.make()
        messages = ask(environment, "prompt", row, prompt_of(row))
        ask(environment, "start", row, row)
        try:
            prompt = self.encoder.prompt(messages, images_of(row) or [])
        except UserError as error:
            raise named(error, row) from error
        return Episode(environment, self.encoder, limits, row, messages, prompt)


def prompt_of(row: dict[str, Any]) -> Messages:
    """A row's prompt.

    Raises:
        UserError: it is no list of messages.
    """
    if isinstance(row["prompt"], str):
        raise UserError(
            "an environment needs prompts that are messages: set `conversational: true`, or use a tokenizer with a "
            "chat template."
        )
    return row["prompt"]


def goes_on(column: str, turn: int, ended: str, following: dict[str, Any]) -> UserError:
    """A complaint about a trajectory that does not stop where its rollout does.

    Args:
        turn: number of the one that ends it, from 1.
        ended: see `Episode`.
        following: the message after it.
    """
    return UserError(
        f"`{column}` goes on after turn {turn}, which ends the rollout ({ended}): "
        f"{shown(str(following.get('content')))}. Drop what follows it."
    )


def play(episodes: Sequence[Episode], draw: Callable[[list[Episode]], None], any_of: Callable[[bool], bool]) -> None:
    """Plays rollouts to their ends, all that can be drawn at a time.

    Args:
        draw: of pending rollouts: lets each take a turn, all in one batch. It is called with none where other processes
            have some: with sharded weights every process has to generate as often as the others.
        any_of: whether a value is true on any process.
    """
    while any_of(any(episode.pending for episode in episodes)):
        draw(_at_once([episode for episode in episodes if episode.pending]))


def _at_once(episodes: list[Episode]) -> list[Episode]:
    """Those that can be drawn in one batch; the others wait for the next.

    A model goes on with all rollouts of a batch up to the end of the longest turn, and would leave its positions in one
    whose own turn must end before.
    """
    longest = max((episode.budget for episode in episodes), default=0)
    return [
        episode
        for episode in episodes
        if episode.limits.positions is None or episode.length + longest <= episode.limits.positions
    ]
