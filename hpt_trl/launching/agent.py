"""`python -m hpt_trl.launching.agent WORDS`: `accelerate launch WORDS`, which says in one line what ended a process.

Accelerate and torchrun end with a long traceback of their own after any failure, a mistake in a recipe included, and
with exit code 1.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from hpt_trl.errors import UserError
from hpt_trl.launching.accelerate import check_devices, check_file
from hpt_trl.recipes.profiles import read_profile
from hpt_trl.runs.collecting import collect_seldom
from hpt_trl.runs.quiet import quiet_libraries
from hpt_trl.signals import INTERRUPTED

_USER_ERROR = 2


def main(words: list[str]) -> int:
    """Runs `accelerate launch` with the words.

    Returns:
        0; 2 where a process found a mistake of the user (its message is printed already); 128 + n where signal n ended
        a process or this one; else the exit code of the process that failed first.
    """
    quiet_libraries()
    collect_seldom()
    try:
        return _launch(words)
    except KeyboardInterrupt:
        # Before there were processes to pass it on to.
        print("\ninterrupted", file=sys.stderr, flush=True)
        return INTERRUPTED


def _launch(words: list[str]) -> int:
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.agent.server.api import logger as agent_logger
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.api import logger as process_logger
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(words)
    for logger in (agent_logger, process_logger):
        logger.setLevel(logging.CRITICAL)
    # Torchrun would kill the processes half a minute after Ctrl-C, in the middle of a step.
    arguments.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"
    signal.signal(signal.SIGINT, _pass_on)
    try:
        profile = read_profile(Path(arguments.config_file), arguments.num_processes, arguments.num_machines)
        check_file(profile)
        check_devices(profile, torch.accelerator.device_count())
        if profile.use_cpu:
            # Accelerate says so to a single process only.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        try:
            launch_command(arguments)
        except (ValueError, TypeError, AttributeError) as error:
            # It starts processes and computes nothing: what it stumbles over is the file.
            raise UserError(f"{profile.path}: accelerate does not take this config: {error}") from error
    except UserError as error:
        return _say(str(error), _USER_ERROR)
    except ChildFailedError as error:
        return _after(error.failures)
    except subprocess.CalledProcessError as error:
        return _ended("the process", error.returncode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _pass_on(number: int, frame: object) -> None:
    """Passes Ctrl-C on to the processes of the run, which know what to save."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _after(failures: dict) -> int:
    """Says which process failed first, and how; what followed from it (lost connections, SIGTERM) is left out."""
    by_time = sorted(failures.items(), key=lambda item: item[1].timestamp)
    killed = [item for item in by_time if item[1].exitcode < 0 and -item[1].exitcode != signal.SIGTERM]
    told = [item for item in by_time if item[1].exitcode in (_USER_ERROR, INTERRUPTED)]
    rank, failure = (killed or told or by_time)[0]
    return _ended(f"process {rank} (pid {failure.pid})", failure.exitcode)


def _ended(which: str, code: int) -> int:
    if code in (_USER_ERROR, INTERRUPTED):
        return code
    if code > 0:
        return _say(f"{which} failed with exit code {code}; its own message stands above.", code)
    name = signal.Signals(-code).name
    reason = ", as a system out of memory does" if name == "SIGKILL" else ""
    return _say(f"{which} was ended by {name} from outside{reason}; the others were ended as well.", 128 - code)


def _say(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
