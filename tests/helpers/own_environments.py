"""Environments that recipes name by their dotted paths: sound ones, and broken in many ways."""

import sys
from typing import Any

from hpt_trl.environments.protocol import Observation, Turn
from hpt_trl.errors import UserError
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.engine import SearchEngine, open_engine
from tests.helpers.searching import AS_THEY_ARE


class Sound:
    """Says how often it was spoken to.

    Args:
        words: what it says.
        limit: after so many turns it ends.
    """

    tools: list[dict[str, Any]] = []

    def __init__(self, words: str = "heard", limit: int = 2):
        self.words, self.limit, self.heard = words, limit, 0

    def prompt(self, messages):
        return messages

    def start(self, row):
        self.heard = 0

    def act(self, turn: Turn):
        self.heard += 1
        return "enough" if self.heard >= self.limit else Observation((f"{self.words} {self.heard}",))

    def unseen(self):
        pass

    def facts(self):
        return {"heard": self.heard}

    def measures(self):
        return {"sound/heard": float(self.heard)}


class Needy(Sound):
    def __init__(self, shelf: str):
        super().__init__()
        self.shelf = shelf


class Any_(Sound):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__()


class WithoutUnseen(Sound):
    unseen = None  # type: ignore[assignment]


class WithoutTools(Sound):
    tools = None  # type: ignore[assignment]


class NotMade(Sound):
    def __init__(self):
        raise OSError("the shelf is locked")


class NotMadeSaid(Sound):
    def __init__(self):
        raise UserError("environment: the shelf is locked; unlock it.")


class FailsToBegin(Sound):
    def start(self, row):
        if row.get("answer") == "3":
            raise KeyError("shelf")
        super().start(row)


class NeedsItsStart(Sound):
    def start(self, row):
        self.place = row["answer"]

    def facts(self):
        return {"place": self.place}


class FailsLater(Sound):
    def act(self, turn):
        raise RuntimeError("the shelf fell down")


class LeavesAtOnce(Sound):
    def __init__(self):
        sys.exit(0)


class MeasuresWords(Sound):
    def measures(self):
        return {"sound/word": "loud"}


class Moody(Sound):
    """Each other one measures something else."""

    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.mood = "good" if self.made % 2 else "bad"

    def measures(self):
        return {f"moody/{self.mood}": 1.0}


NO_ENVIRONMENT = 3


class Eager(PageSearch):
    """A model that knows nothing searches all the same: each turn asks for what its row asks, whatever it says.

    A turn that says nothing stays what it is: with such the rewards are tried before a run.
    """

    def start(self, row: dict[str, Any]) -> None:
        super().start(row)
        self._query = row["query"] if row else ""

    def act(self, turn: Turn) -> Observation | str:
        if not turn.text:
            return super().act(turn)
        if turn.cut or turn.last:
            number = len(turn.text) % 4
            answer = f"<answer>{number}</answer>" if number else "I do not know."
            return super().act(Turn(answer, {"role": "assistant", "content": answer}, last=turn.last))
        search = f"<search>{self._query}</search>"
        return super().act(Turn(search, {"role": "assistant", "content": search}))


ENGINES: dict[str, SearchEngine] = {}


def eager(index: str, turns: int = 4, **options: Any) -> Eager:
    """`Eager` over an index that is opened once, or over a service."""
    settings = VragOptions(index, **{**AS_THEY_ARE, **options})
    if index not in ENGINES:
        ENGINES[index] = open_engine(index, timeout=settings.timeout, retries=settings.retries, images=settings.images)
    return Eager(ENGINES[index], settings, turns=turns)
