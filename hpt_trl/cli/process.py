"""A command as a process: its exit code, mistakes in a line, interrupts, readers that are gone."""

import atexit
import io
import os
import select
import signal
import sys
import time
from typing import NoReturn

from hpt_trl.cli.commands import run_command
from hpt_trl.errors import UserError
from hpt_trl.runs.collecting import collect_seldom
from hpt_trl.runs.quiet import quiet_libraries
from hpt_trl.settings.masking import masked_text, masked_words
from hpt_trl.signals import INTERRUPTED, Interrupted

# Seconds that a process other than the first waits before it prints an error. Where the error is everyone's, the
# launcher ends the process within that time; where it is its own (a reward failed on its row), it must be heard.
GRACE = 5.0


def main(words: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 after an interrupt, and that of the processes where the
        command starts some. Any other failure is a traceback.
    """
    quiet_libraries()
    said = os.environ.get("RANK", "0")
    rank = int(said) if said.isdecimal() else 0
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        # torchrun starts each process in a session of its own: killed, it would leave them all behind.
        from hpt_trl.launching.processes import end_with_parent

        end_with_parent()
    given = sys.argv[1:] if words is None else words
    if words is None:
        # Trackers note the words of the process.
        sys.argv[1:] = masked_words(given)
    try:
        _refuse_gone_folder()
        _refuse_odd_counts()
        return run_command(given)
    except UserError as error:
        if rank > 0:
            time.sleep(GRACE)
        sys.stdout.flush()
        said = masked_text(str(error))
        if "--json" in given:
            # A reader of JSON gets one line.
            said = " ".join(said.split())
        print(f"error: {said}" if rank == 0 else f"error in process {rank}: {said}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as end:
        said = f". {end}" if str(end) else ""
        if rank == 0 and (said or not isinstance(end, Interrupted)):
            print(f"\ninterrupted{said}", file=sys.stderr, flush=True)
        return INTERRUPTED


def _refuse_gone_folder() -> None:
    """Refuses to work in a folder that was removed meanwhile, from which no path leads anywhere.

    Raises:
        UserError: it was.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was removed; change into one that is there.") from error


def _refuse_odd_counts() -> None:
    """Refuses a number of processes, or of this one among them, that is none: a shell may have left it behind.

    Raises:
        UserError: the variable, its value and what to do.
    """
    for variable, least in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        value = os.environ.get(variable)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise UserError(
                f"the environment variable {variable} is `{value:.80}`; allowed: a whole number of {least} or more, as "
                f"launchers set it. Without a launcher: `unset {variable}`."
            )


def command() -> NoReturn:
    """Runs one command as the process that it is, and ends the process with the exit code.

    Where what it prints has no reader any more, that is quiet and 141, as of a process that SIGPIPE ends.
    """
    collect_seldom()
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What its encoding lacks (LC_ALL=C, a terminal of another one) is written as stderr writes it.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 1  # A traceback's.

    def leave() -> None:
        # A gloo thread lets go of a collective's tensors only after the collective has returned. Where Python is being
        # taken apart by then, it aborts the process (torch 2.13): a finished run would end with SIGABRT, and the other
        # machines would wait for it.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Registered before those of a run, it is called after them, and after the threads that a process waits for.
        atexit.register(leave)
    try:
        try:
            code = main()
            if code == INTERRUPTED:
                # Another one would interrupt Python while it takes itself apart.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                # One that came within an `exec` of text, by which dataclasses are made, `python -m` remembers, and ends
                # by a signal in place of the exit code; the next `exec` makes it forget.
                exec("")
        except SystemExit as end:
            # Of the parser: help, or words that are no command.
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout.fileno()):
            raise
        _drop_output()
        code = 128 + signal.SIGPIPE
    except OSError:
        if (fault := _output_fault()) is None:
            raise
        _drop_output()
        print(f"error: what the command prints cannot be written: {fault}.", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Opens those of the three standard files that are closed (`>&-`): else files of ours would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _output_fault() -> str | None:
    """Why what is printed cannot be written, as on a full disk; None where it can."""
    try:
        # What failed before may be dropped already.
        print(flush=True)
    except OSError as error:
        return error.strerror
    return None


def _drop_output() -> None:
    # Python would tell of what is left when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread(file: int) -> bool:
    """Whether a file is a pipe that has no reader any more, as behind `| head`."""
    poll = select.poll()
    poll.register(file, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
