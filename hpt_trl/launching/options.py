"""The options of the command line that say how a run's processes are started, not what they do."""

import os
from dataclasses import dataclass, fields

from hpt_trl.errors import Collector, UserError
from hpt_trl.settings.values import did_you_mean

LAUNCHERS = ("accelerate", "ray")
# Numbers and the least that each may be.
_NUMBERS = {
    "num_processes": 1,
    "num_machines": 1,
    "machine_rank": 0,
    "main_process_port": 0,
    "num_workers": 1,
    "max_failures": 0,
}
_OF_RAY = ("num_workers", "max_failures")
_OF_ACCELERATE = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")


@dataclass(frozen=True)
class LaunchOptions:
    """How a run's processes are started; None for what is not given.

    Attributes:
        accelerate: a profile: the name of one of accelerate_configs/, or a file of `accelerate config`.
        num_processes: processes of all machines together.
        num_machines: machines.
        machine_rank: number of this machine, from 0.
        main_process_ip: address of the first machine.
        main_process_port: a free port of the first machine; 0 lets accelerate choose one, on one machine.
        launcher: `accelerate` or `ray`.
        num_workers: Ray's workers.
        max_failures: how often Ray starts the run again after a failure.
    """

    accelerate: str | None = None
    num_processes: int | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None
    launcher: str | None = None
    num_workers: int | None = None
    max_failures: int | None = None

    @property
    def given(self) -> dict[str, str | int]:
        """Options that are given, in the order above."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def words(self) -> list[str]:
        """The options as they are written on a command line."""
        return [word for name, value in self.given.items() for word in (f"--{name}", str(value))]


_NAMES = {field.name for field in fields(LaunchOptions)}


def split_launch_options(words: list[str], mistakes: Collector | None = None) -> tuple[LaunchOptions, list[str]]:
    """Takes the launch options out of the words that follow a recipe.

    Args:
        mistakes: takes those of the options, which are then left out. By default they are raised.

    Returns:
        The options, and the other words in their order.

    Raises:
        UserError: options without a value, with one that they do not take, or without the one that they belong to.
    """
    noted = Collector() if mistakes is None else mistakes
    found: dict[str, str | int] = {}
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        key, equals, value = word[2:].partition("=")
        name = key.replace("-", "_")
        position += 1
        if not word.startswith("--") or name not in _NAMES:
            rest.append(word)
            continue
        if not equals:
            if position == len(words) or words[position].startswith("--"):
                noted.note(UserError(f"--{name}: there is no value; {_allowed(name)}."))
                continue
            value = words[position]
            position += 1
        with noted.noted():
            found[name] = _value(name, value)
    options = LaunchOptions(**found)  # type: ignore[arg-type]
    if not noted.errors:
        with noted.noted():
            _check_together(options)
    if mistakes is None:
        noted.settle()
    return options, rest


def refuse_inside_a_launcher(options: LaunchOptions) -> None:
    """Refuses launch options in a process that a launcher started: each of them would start its own processes.

    Raises:
        UserError: such an option is given in such a process.
    """
    if options.given and "RANK" in os.environ:
        raise UserError(
            f"--{next(iter(options.given))}: this process was started by a launcher (RANK is set), which has settled "
            "how many there are. Drop the option, or run `hpt-trl` plainly: it starts the launcher by itself."
        )


def _allowed(name: str) -> str:
    if name in _NUMBERS:
        most = " to 65535" if name == "main_process_port" else " on"
        return f"write a whole number from {_NUMBERS[name]}{most}"
    return {
        "accelerate": "write a name of accelerate_configs/, e.g. multi_gpu, or a file of `accelerate config`",
        "launcher": f"write {' or '.join(LAUNCHERS)}",
        "main_process_ip": "write the address of the first machine",
    }[name]


def _value(name: str, text: str) -> str | int:
    if name in _NUMBERS:
        number = int(text) if text.lstrip("-").isdecimal() else None
        if number is None or number < _NUMBERS[name] or (name == "main_process_port" and number > 65535):
            raise UserError(f"--{name}: {text} is not allowed; {_allowed(name)}.")
        return number
    if name == "launcher" and text not in LAUNCHERS:
        raise UserError(f"--{name}: {text} is not allowed; {_allowed(name)}.{did_you_mean(text, LAUNCHERS)}")
    return text


def _check_together(options: LaunchOptions) -> None:
    """Refuses an option that nothing would look at, and one without what it needs."""
    given = options.given
    if options.launcher == "ray":
        for name in _OF_ACCELERATE:
            if name in given:
                more = " --num_workers says how many processes there are." if name == "num_processes" else ""
                raise UserError(f"--{name}: it is accelerate's, and Ray starts the processes here; drop it.{more}")
        if options.num_workers is None:
            raise UserError("--launcher ray: add `--num_workers N`, one for each GPU that the run is to use.")
        return
    for name in _OF_RAY:
        if name in given:
            raise UserError(f"--{name}: it is Ray's; add `--launcher ray`, or drop it.")
    if options.accelerate is None and given:
        raise UserError(
            f"--{next(iter(given))}: it needs a profile that says how the processes are started, e.g. `--accelerate "
            "multi_gpu`."
        )


def pipeline_words(words: list[str]) -> list[str]:
    """Turns the launch options among a pipeline's words into the pipeline's own keys.

    Raises:
        UserError: an option that a pipeline does not take.
    """
    found = []
    for word in words:
        key, equals, value = word[2:].partition("=")
        name = key.replace("-", "_")
        if word.startswith("--") and name == "accelerate":
            word = "--accelerate_config" + equals + value
        elif word.startswith("--") and name in _NAMES and name != "num_processes":
            raise UserError(
                f"--{name}: a pipeline starts its stages on this machine by accelerate; allowed here: --accelerate and "
                "--num_processes. Otherwise run the stages' recipes one by one."
            )
        found.append(word)
    return found
