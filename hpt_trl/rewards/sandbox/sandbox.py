"""Programs run in the sandbox of this machine, one or many."""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from hpt_trl.errors import UserError
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.probing import Isolation, find_isolation
from hpt_trl.rewards.sandbox.process import run_process
from hpt_trl.rewards.sandbox.program import Kept, Outcome, Program

logger = logging.getLogger(__name__)


class Sandbox:
    """Runs Python programs that nobody has read.

    Args:
        limits: of each program.
        unprotected: where no sandbox can be set up, run programs without one and warn of it each time.
        isolation: in place of the one that is found.

    Raises:
        UserError: no sandbox can be set up here (see `find_isolation`).
    """

    def __init__(
        self, limits: Limits | None = None, *, unprotected: bool = False, isolation: Isolation | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.isolation = isolation or find_isolation(unprotected=unprotected)

    def run(self, program: Program) -> Outcome:
        """Runs one program to its end."""
        self._warn(1)
        return self._run(program, None)

    def run_all(
        self,
        programs: Sequence[Program],
        workers: int | None = None,
        seconds: float | None = None,
        kept: Sequence[Kept] | None = None,
    ) -> list[Outcome]:
        """Runs programs, several at once; returns their outcomes in order.

        One that the wall clock ended while others ran is run once more, alone, as a busy machine makes correct
        programs late. A program that used up its processor time is not. For all such runs there is as much time as for
        ten programs, or as the first runs took; what does not come to its turn by then stays late, which is told.

        Args:
            workers: programs at a time; by default, and at most, the cores that this process may use, shared by the
                training's processes on this machine.
            seconds: for all of them together; what is not begun by then has the status `skipped`, and what runs then
                is finished within its own limits.
            kept: of each program, what is kept of its runs (see `run_process`).

        Raises:
            UserError: the sandbox works no longer.
        """
        if not programs:
            return []
        self._warn(len(programs))
        begun = time.monotonic()
        until = float("inf") if seconds is None else begun + seconds
        stop = threading.Event()

        def one(place: int, until: float) -> Outcome:
            if time.monotonic() > until or stop.is_set():
                return Outcome("skipped", 0.0, detail="there was no time left for it")
            return self._run(programs[place], stop, None if kept is None else kept[place])

        together = min(self.workers(workers), len(programs))
        with ThreadPoolExecutor(together, thread_name_prefix="sandbox") as threads:
            try:
                outcomes = list(threads.map(one, range(len(programs)), repeat(until)))
            except BaseException:
                stop.set()
                raise
        if together > 1:
            now = time.monotonic()
            until = min(until, now + max(now - begun, 10 * self.limits.wall_seconds))
            late = [place for place, outcome in enumerate(outcomes) if self._is_late(outcome)]
            again = {place: one(place, until) for place in late}
            for place, outcome in again.items():
                outcomes[place] = outcomes[place] if outcome.status == "skipped" else outcome
            if left := sum(outcome.status == "skipped" for outcome in again.values()):
                logger.warning(
                    "%d of %d programs that the wall clock ended were not run once more, as there was no time for it; "
                    "they count as too slow.",
                    left,
                    len(late),
                )
        self._check(outcomes)
        return outcomes

    @staticmethod
    def workers(wanted: int | None = None) -> int:
        """How many programs run at a time."""
        cores = len(os.sched_getaffinity(0))
        share = max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        return share if wanted is None else max(1, min(wanted, share))

    def _run(self, program: Program, stop: threading.Event | None, kept: Kept | None = None) -> Outcome:
        return run_process(self.isolation.backend, self.isolation.interpreter, program, self.limits, stop, kept)

    def _is_late(self, outcome: Outcome) -> bool:
        """Whether the wall clock ended it before its processor time was used up."""
        if outcome.status != "timeout":
            return False
        used_up = [
            run.returncode == -signal.SIGXCPU or run.cpu_seconds >= 0.9 * self.limits.cpu_seconds
            for run in outcome.runs
            if run.status == "timeout"
        ]
        return not used_up or not all(used_up)

    def _check(self, outcomes: Sequence[Outcome]) -> None:
        """Tells programs that kill their harness from a sandbox that works no longer, on a full disk for example."""
        silent = [outcome for outcome in outcomes if outcome.status == "killed" and not outcome.runs]
        if silent and self._run(Program("print(1)"), None).status != "ended":
            raise UserError(
                f"the sandbox {self.isolation} works no longer: of {len(outcomes)} programs {len(silent)} ended "
                f"without a report, and so does one that only prints: {silent[0].detail}"
            )

    def _warn(self, count: int) -> None:
        if not self.isolation.protects:
            logger.warning(
                "%d programs of a model are run WITHOUT a sandbox (`run_untrusted_code_without_a_sandbox`): they can "
                "read, write and send whatever this user can.",
                count,
            )
