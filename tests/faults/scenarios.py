"""All scenarios of the campaign, in an order that mixes their kinds: any first part of it is a sample of the whole."""

import random
from typing import Any, Protocol

from tests.faults.changing import changes
from tests.faults.commanding import commands
from tests.faults.damaging import damages
from tests.faults.keeping import keeps
from tests.faults.killing import CLOCK, WITHIN, Killed
from tests.faults.readers import reads
from tests.faults.stages import NAMES, RUNS
from tests.faults.together import pairs
from tests.faults.verdicts import Verdict
from tests.faults.workshop import Workshop

PROFILES = ("cpu", "fsdp2", "zero2")
# Kills of each run in one process: within saves, while old ones are removed and at the end, elsewhere, by the clock.
_ONE_PROCESS = {"save": 5, "end": 5, "other": 2, CLOCK: 3}
_TWO_PROCESSES = {"save": 2, "end": 1, CLOCK: 1}
_IN_TWO = ("sft", "critic", "hpt", "ppo", "mtp")


class Scenario(Protocol):
    """A fault and what is to come of it."""

    @property
    def id(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]: ...


def all_scenarios(seed: int = 0) -> list[Scenario]:
    """Every scenario once; the order is drawn from the seed, as is what each does, with its id."""
    found = sorted(
        [*_kills(), *commands(), *damages(), *reads(), *keeps(), *pairs(), *changes()], key=lambda scenario: scenario.id
    )
    random.Random(seed).shuffle(found)
    return found


def _kills() -> list[Scenario]:
    found: list[Scenario] = []
    for name in NAMES:
        counts = _ONE_PROCESS if name in RUNS else {"other": 5, CLOCK: 3}
        for where, count in counts.items():
            found += [Killed(f"kill/{name}/{where}/{number}", name, where) for number in range(count)]
    for profile in PROFILES:
        for name in _IN_TWO:
            for where, count in _TWO_PROCESSES.items():
                named = f"kill/{name}-{profile}/{where}"
                found += [Killed(f"{named}/{number}", name, where, profile) for number in range(count)]
    assert {scenario.where for scenario in found if isinstance(scenario, Killed)} <= {*WITHIN, CLOCK}
    return found
