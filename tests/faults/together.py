"""Two commands at once in one folder: the first is held at a file event, the second comes and goes, then it goes on."""

from dataclasses import dataclass
from typing import Any

from tests.faults.outcomes import differing, outcome
from tests.faults.stages import RUNS
from tests.faults.verdicts import DIVERGED, IDENTICAL, REFUSED, Verdict, error_of, fault_of, last_words
from tests.faults.workshop import Workshop

# What the second one says beside the recipe.
SECOND = {
    "the same": (),
    "overwriting": ("--overwrite", "true"),
    "resuming": ("--resume_from_checkpoint", "true"),
}


@dataclass(frozen=True)
class Together:
    """A second command in the folder of a run.

    Attributes:
        run: see `tests.faults.stages`.
        second: a key of `SECOND`.
        number: by which the event is drawn at which it comes.
    """

    run: str
    second: str
    number: int
    kind: str = "two at once"

    @property
    def id(self) -> str:
        return f"together/{self.run}/{self.second}/{self.number}".replace(" ", "-")

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Runs both; one of them is to be told, and the other to come to what it comes to alone."""
        whole = shop.reference(self.run)
        event = shop.draw(self.id).randrange(len(whole.events))
        folder = shop.place(self.run)
        words, server = ["run", str(folder / "recipe.yaml")], shop.server()
        first = server.held(words, folder, event)
        second = server.run([*words, *SECOND[self.second]], folder, control=shop.control)
        ended = server.go_on(first)
        name, path = whole.events[event]
        noted = {"at": [f"event {event} of {len(whole.events)}: {name} {path}"], "phase": whole.phases[event]}
        codes = [ended.code, second.code]
        verdict = Verdict("", tried=[f"exit codes {codes}"])
        for one in (ended, second):
            if one.code:
                verdict.said = error_of(one.said)
            if (wrong := fault_of(one)) is not None:
                verdict.word, verdict.said = wrong, last_words(one.said)
                return verdict, noted
        verdict.differs = differing(outcome(folder / "out"), whole.outcome)
        if 0 not in codes or verdict.differs:
            verdict.word = DIVERGED
        else:
            verdict.word = REFUSED if 2 in codes else IDENTICAL
        if codes == [0, 0] and self.run in RUNS:
            # An evaluation or an index that is done may be done again: it comes to the same.
            verdict.word, verdict.said = DIVERGED, "both ran to their end in one folder"
        return verdict, noted


def pairs() -> list[Together]:
    """All pairs, each once."""
    found = [Together("sft", second, number) for second in SECOND for number in range(4)]
    found += [Together(run, "the same", 0) for run in ("ppo", "evaluate", "index", "ref_tuning-kept")]
    return found
