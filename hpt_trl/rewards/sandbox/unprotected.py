"""No isolation at all: limits, time-outs and an end for what is left over, nothing else.

For containers that are thrown away after, and only by the key `run_untrusted_code_without_a_sandbox`. A program reads
what this process's user may read (as root: what anyone may read), reaches the network and signals other processes.
"""

from dataclasses import dataclass

from hpt_trl.rewards.sandbox.interpreters import Interpreter
from hpt_trl.rewards.sandbox.launch import Launch
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.supervised import supervised, working_folder


@dataclass(frozen=True)
class Unprotected:
    """The backend that isolates nothing."""

    name: str = "no sandbox"

    def refusal(self) -> str | None:
        return None

    def launch(self, interpreter: Interpreter, limits: Limits) -> Launch:
        folder, user = working_folder()
        job: dict[str, object] = {"filter": "", "hidden": True, "counts_processes": user is not None}
        return supervised(interpreter, folder, user, None, job)
