"""One rollout in an environment: its context grows turn by turn, older pictures are folded away, budgets are kept."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hpt_trl.environments.encoding import PieceEncoder
from hpt_trl.environments.faults import ask, named
from hpt_trl.environments.pieces import Context, Flat, Piece, Segment
from hpt_trl.environments.protocol import Environment, Messages, Observation, Turn
from hpt_trl.errors import UserError

# A turn is not begun with fewer tokens than these, where its own limit allows more: it could not come to an end.
LEAST_TURN = 16


@dataclass(frozen=True)
class Limits:
    """What bounds a rollout.

    Attributes:
        turns: turns of the model.
        drawn: tokens that the model draws in all turns together.
        turn: tokens of one turn.
        context: tokens that it reads and draws at a time, images included; None without a limit.
        images: pictures that it sees at a time; older ones are folded away. None without a limit.
        positions: tokens that the model takes, whatever they are; None without a limit.
    """

    turns: int
    drawn: int
    turn: int
    context: int | None = None
    images: int | None = None
    positions: int | None = None


@dataclass(eq=False)
class _Held:
    """A piece of the context."""

    piece: Piece
    drawn: bool = False  # in the context as it is now
    observation: Observation | None = None


@dataclass
class Episode:
    """One rollout.

    Attributes:
        environment: its own, started with the row.
        encoder: encodes prompts and observations.
        limits: see `Limits`.
        row: of the data.
        messages: the prompt, as text.
        prompt: the same, encoded.
        ended: why it is over; an empty text while it is not: what the environment said, `turns`, `tokens` (drawn), or
            `context`.
        turns: turns drawn.
        drawn: tokens drawn.
        record: the turns of both sides, for rewards and pages.
    """

    environment: Environment
    encoder: PieceEncoder
    limits: Limits
    row: dict[str, Any]
    messages: Messages
    prompt: Piece
    ended: str = ""
    turns: int = 0
    drawn: int = 0
    record: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._held = [_Held(self.prompt)]
        self._segments: list[Segment] = []
        self._logps: list[list[float | None]] = []
        if self.budget < self._least:
            self.ended = "context"

    @property
    def pending(self) -> bool:
        return not self.ended

    @property
    def budget(self) -> int:
        """Tokens that the next turn may draw."""
        return self._budget([held.piece for held in self._held])

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return sum(len(held.piece.ids) for held in self._held)

    def context(self) -> Context:
        """What the model reads before its next turn."""
        return Context.of([held.piece for held in self._held])

    def turn(self, ids: Sequence[int]) -> Turn:
        """What a turn says that was drawn, as the environment gets it."""
        from trl.chat_template_utils import parse_response

        drawn = self._own(ids)
        cut = not drawn or drawn[-1] not in self.encoder.encoder.end_ids
        tokenizer = self.encoder.encoder.tokenizer
        text = tokenizer.decode(drawn, skip_special_tokens=True)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if tokenizer.response_template is not None:
            # Of a call that is no JSON TRL takes the text; brackets without an end are beyond the JSON parser's depth.
            with suppress(RecursionError):
                before = [token for held in self._held for token in held.piece.ids]
                message = parse_response(tokenizer, drawn, prefix=before, tools=[*self.encoder.tools])
        return Turn(text, message, cut=cut, last=self.turns + 1 >= self.limits.turns)

    def take(self, ids: Sequence[int], logps: Sequence[float | None] | None = None, turn: Turn | None = None) -> None:
        """Goes on with a turn that was drawn: the environment acts, and what it shows is added.

        Args:
            ids: tokens, with the one that ends the turn where it came to an end; cut here to the budget.
            logps: of each token when it was drawn.
            turn: what `turn` says of them, where it was asked before.
        """
        drawn, turn = self._own(ids), turn or self.turn(ids)
        if logps is not None:
            self._logps.append(list(logps[: len(drawn)]))
        self._held.append(_Held(Piece(drawn, {}), drawn=True))
        self.turns += 1
        self.drawn += len(drawn)
        self.record.append({"role": "assistant", "text": turn.text})
        answer = ask(self.environment, "act", self.row, turn)
        if turn.cut:
            self.ended = "tokens"
        elif isinstance(answer, str):
            self.ended = answer
        elif turn.last:
            self.ended = "turns"
        else:
            self._show(answer)

    @property
    def segments(self) -> list[Segment]:
        """The contexts with what was drawn in each; a short one of nothing where the prompt left no room for a turn."""
        if not self.turns:
            return [Segment.empty(self.encoder.encoder.end_ids[0])]
        current = self._segment()
        return [*self._segments, current] if current.drawn.any() or not self._segments else list(self._segments)

    @property
    def flat(self) -> Flat:
        return Flat.of(self.segments, len(self.prompt.ids), self.encoder.encoder.end_ids[0])

    @property
    def logps(self) -> list[float | None]:
        """Log-probability of each token of the completion (see `Flat`) when it was drawn; 0 for those shown."""
        drawn = iter([value for turn in self._logps for value in turn])
        return [next(drawn) if own else 0.0 for own in self.flat.drawn]

    def facts(self) -> dict[str, Any]:
        """What rewards get beside the row."""
        return {**ask(self.environment, "facts", self.row), "turns": self.turns, "ended": self.ended}

    def measures(self) -> dict[str, float]:
        """Numbers whose means are logged."""
        return ask(self.environment, "measures", self.row)

    def completion(self) -> Messages:
        """The turns of both sides as messages of text."""
        roles = {"assistant": "assistant", "environment": "user"}
        return [{"role": roles[turn["role"]], "content": turn["text"]} for turn in self.record]

    def _own(self, ids: Sequence[int]) -> list[int]:
        """A turn within its budget, up to a token that stands for an image: what follows was drawn on nothing."""
        ids = list(ids[: self.budget])
        place = next((place for place, token in enumerate(ids) if token in self.encoder.image_ids), None)
        return ids if place is None else ids[:place]

    def _show(self, observation: Observation) -> None:
        """Adds an observation, with older pictures folded away; ends the rollout where there is no room for it."""
        pictures = observation.pictures
        try:
            added = _Held(self.encoder.observation(observation), observation=observation)
        except UserError as error:
            raise named(error, self.row) from error
        held = self._folded([*self._held, added])
        budget = self._budget([one.piece for one in held])
        if budget < self._least:
            room = self.limits.drawn - self.drawn
            self.ended = "tokens" if room < self._least else "context"
            ask(self.environment, "unseen", self.row)
            return
        if any(one is not other for one, other in zip(held, self._held, strict=False)):
            self._segments.append(self._segment())
            for one in held:
                one.drawn = False
        self._held = held
        self.record.append({"role": "environment", "text": observation.text, "pictures": pictures})

    def _folded(self, held: list[_Held]) -> list[_Held]:
        """The context with its oldest pictures folded away, as far as the limit asks for, and never its newest."""
        limit = self.limits.images
        over = 0 if limit is None else sum(one.piece.images for one in held) - limit
        folded = []
        for one in held:
            observation = one.observation
            if over > 0 and one is not held[-1] and one.piece.images and observation and observation.folded is not None:
                over -= one.piece.images
                text = replace(observation, parts=(observation.folded,))
                one = _Held(self.encoder.observation(text), observation=text)
            folded.append(one)
        return folded

    def _segment(self) -> Segment:
        held = self._held
        if not held[-1].drawn:
            held = held[:-1]
        return Segment.of([one.piece for one in held], [one.drawn for one in held])

    def _budget(self, pieces: list[Piece]) -> int:
        limits = self.limits
        budget = min(limits.turn, limits.drawn - self.drawn)
        if limits.context is not None:
            budget = min(budget, limits.context - sum(len(piece.ids) for piece in pieces))
        return budget

    @property
    def _least(self) -> int:
        return min(LEAST_TURN, self.limits.turn, self.limits.drawn)
