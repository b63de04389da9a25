"""What an environment is: it reads an action of the model and shows what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Messages = list[dict[str, Any]]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as the model is shown it.

    Attributes:
        image: RGB, in the size that the processor gets.
        name: what it is called in records, e.g. the page's name.
        kind: `page`, `crop`, or another word for records.
        raw_size: width and height of the page that it is of, in pixels.
        box: left, top, right and bottom of a crop in pixels of the raw page.
    """

    image: "Image"
    name: str
    kind: str = "page"
    raw_size: tuple[int, int] | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Observation:
    """What the environment shows after an action.

    Attributes:
        parts: texts and pictures in their order.
        folded: the text that stands for them once their pictures are folded away; None keeps them for ever.
        role: of the message, `user` or `tool`.
        name: of the tool, for `tool`.
    """

    parts: tuple[str | Picture, ...]
    folded: str | None = None
    role: str = "user"
    name: str | None = None

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """Its texts, for records and rewards."""
        return "".join(part if isinstance(part, str) else f"<{part.kind}>" for part in self.parts)


@dataclass(frozen=True)
class Turn:
    """A turn that the model has drawn.

    Attributes:
        text: without special tokens.
        message: as the tokenizer's response parser takes it apart, with `tool_calls` where there are some.
        cut: whether it was cut at a limit: the rollout ends, whatever it says.
        last: whether no other turn can follow.
    """

    text: str
    message: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    last: bool = False


class Environment(Protocol):
    """One rollout's environment: made for it, started with its row, asked turn by turn.

    Attributes:
        tools: JSON schemas of the tools that the chat template names in the prompt; empty where actions are tags.
    """

    tools: Sequence[dict[str, Any]]

    def prompt(self, messages: Messages) -> Messages:
        """The row's prompt with what the model must know of the environment; depends on the messages alone."""
        ...

    def start(self, row: dict[str, Any]) -> None:
        """Begins with a row of the data."""
        ...

    def act(self, turn: Turn) -> Observation | str:
        """What a turn's action comes to: what is shown next, or in a word why the rollout ends, e.g. `answer`."""
        ...

    def unseen(self) -> None:
        """What `act` has just returned is not shown: there is no room left for it, and the rollout ends."""
        ...

    def facts(self) -> dict[str, Any]:
        """What rewards get beside the columns of the row; the same names for every rollout, none of rewards' own."""
        ...

    def measures(self) -> dict[str, float]:
        """Numbers of the rollout whose means are logged, NaN where it has none.

        The same names for every rollout, each with a slash: those without are the trainers' own.
        """
        ...
