"""Runs that are killed, once or twice, and go on."""

import random
from dataclasses import dataclass, replace
from typing import Any

from tests.faults.events import CLOSING, OPENING, ROTATING, SAVING, TRAINING, Kill
from tests.faults.stages import RUNS
from tests.faults.verdicts import MISSED, RESUME, Verdict, after_kill, done_again, logged_steps
from tests.faults.workshop import Reference, Workshop

# Where the kills fall: a third each inside saves, around them and at any time.
WITHIN = {"save": (SAVING,), "end": (ROTATING, CLOSING), "other": (OPENING, TRAINING)}
CLOCK = "clock"
# Share of the runs that are killed a second time, and of a run's time in which a clock kills it: few end before.
_AGAIN = 0.2
_OF_THE_TIME = 0.9
# How often a run is begun that a clock did not meet.
_TRIES = 3


@dataclass(frozen=True)
class Killed:
    """A run that is killed.

    Attributes:
        id: its name, which says all that is drawn.
        run: name of the run, see `tests.faults.stages`.
        profile: of accelerate, in two processes; None for one.
        where: a key of `WITHIN`, or `clock`.
    """

    id: str
    run: str
    where: str
    profile: str | None = None
    kind: str = "kill"

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Kills, goes on and judges; returns also what is noted of where it was."""
        whole = shop.reference(self.run, self.profile)
        draw = shop.draw(self.id)
        kills = [drawn(draw, self.where, whole, self.profile is not None)]
        if draw.random() < _AGAIN:
            kills.append(drawn(draw, draw.choice([*WITHIN, CLOCK]), whole, self.profile is not None))
        for _ in range(_TRIES):
            folder = shop.place(self.run, self.profile)
            ended = shop.server(self.profile).killed(["run", str(folder / "recipe.yaml")], folder, kills[0])
            if ended.code < 0 or kills[0].event is not None:
                break
            # A clock is no measure on a machine that has other work.
            kills[0] = replace(kills[0], after=kills[0].after / 2)
        noted = {"at": [described(kill, whole) for kill in kills], "phase": phase_of(kills[0], whole)}
        if ended.code >= 0:
            return Verdict(MISSED), noted
        for kill in kills[1:]:
            words = ["run", str(folder / "recipe.yaml"), *first_words(self.run)]
            shop.server(self.profile).killed(words, folder, kill)
        steps = logged_steps(folder / "out")
        run = shop.going_on(self.run, folder, self.profile)
        verdict = after_kill(run, folder, whole.outcome, first=first_words(self.run))
        return verdict, noted | ({"lost": done_again(steps, verdict)} if self.run in RUNS else {})


def first_words(run: str) -> tuple[str, ...]:
    """What a user tries first; an evaluation and an index go on by the same command."""
    return () if run in ("evaluate", "index") else RESUME


def drawn(draw: random.Random, where: str, whole: Reference, several: bool) -> Kill:
    """A kill within a part of a run; in several processes now and then of one alone."""
    rank, everyone = (draw.randrange(2), draw.random() < 0.5) if several else (0, True)
    within = [place for place, phase in enumerate(whole.phases) if phase in WITHIN.get(where, ())]
    if not within:
        return Kill(after=draw.uniform(0.0, _OF_THE_TIME * whole.seconds), rank=rank, everyone=everyone)
    event, way = draw.choice(within), draw.random()
    if rank > 0:
        # It writes little: the clock alone finds it at its other work.
        return Kill(after=draw.uniform(0.0, _OF_THE_TIME * whole.seconds), rank=rank, everyone=everyone)
    delay = draw.uniform(0.0, 0.02) if way > 0.7 else 0.0
    return Kill(event, torn=way < 0.3, delay=delay, everyone=everyone)


def phase_of(kill: Kill, whole: Reference) -> str:
    """What the run did when it was killed; by the clock that is not known."""
    return CLOCK if kill.event is None else whole.phases[kill.event]


def described(kill: Kill, whole: Reference) -> str:
    """Where a kill was, for a reader."""
    who = "" if kill.everyone else f", process {kill.rank} alone"
    if kill.event is None:
        return f"after {kill.after:.2f} s{who}"
    name, path = whole.events[kill.event]
    how = " (emptied)" if kill.torn and name == "open" else f" + {1000 * kill.delay:.0f} ms" if kill.delay else ""
    return f"event {kill.event} of {len(whole.events)}: {name} {path}{how}{who}"
