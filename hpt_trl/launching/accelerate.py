"""`hpt-trl run RECIPE --accelerate PROFILE`: the run's processes, started by `accelerate launch`."""

import errno
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.launching.processes import call
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import LAUNCH_OPTIONS, Profile, find_profile, read_profile
from hpt_trl.settings.file import read_recipe_file, split_overrides
from hpt_trl.settings.masking import masked_command
from hpt_trl.signals import INTERRUPTED, ending_on_signals


def launch(command: str, recipe: str, overrides: list[str], options: LaunchOptions) -> int:
    """Runs a command of `hpt-trl` in the processes of a profile, and says first what it starts.

    Args:
        command: `run` or `score-reference`.
        recipe: a file, or the name of a bundled recipe.
        overrides: the words for the recipe.

    Returns:
        The exit code: 2 after a mistake of the user, 128 + n where signal n ended a process, else that of the process
        that failed first.

    Raises:
        UserError: the profile cannot be started here, or lies where the run writes.
    """
    profile = chosen_profile(options)
    words = launch_words(profile, [command, recipe, *overrides])
    folder = _output_dir(recipe, overrides)
    if profile.path is not None and profile.path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--accelerate: {profile.path} lies in the `output_dir` of this run, {folder}, where files are replaced "
            "and removed. Put it elsewhere."
        )
    check_startable(profile)
    with ending_on_signals():
        code = start(words, {LAUNCH_OPTIONS: shlex.join(options.words())})
    if code not in (0, 2, INTERRUPTED):
        again = [command, recipe, *overrides, *options.words()]
        print(f"error: the run ended with exit code {code}. {_how_to_go_on(recipe, overrides, again)}", file=sys.stderr)
    return code


def chosen_profile(options: LaunchOptions) -> Profile:
    """Returns the profile that the options name, with their numbers and address in place of the file's.

    Raises:
        UserError: there is none of that name, or its file or the numbers are wrong.
    """
    try:
        path = find_profile(str(options.accelerate))
    except UserError as error:
        raise UserError(f"--accelerate: {error}") from error
    if options.launcher == "ray":
        # Ray decides on which machines the processes are.
        return read_profile(path, options.num_workers, 1)
    profile = read_profile(path, options.num_processes, options.num_machines)
    names = ("machine_rank", "main_process_ip", "main_process_port")
    places: dict[str, Any] = {name: value for name, value in options.given.items() if name in names}
    for name in ("machine_rank", "main_process_ip"):
        if name in places and profile.num_machines == 1 and options.num_machines is None:
            raise UserError(f"--{name}: it is for several machines; add `--num_machines N`, or drop it.")
    return replace(profile, **places)


def planned_profile(options: LaunchOptions) -> Profile | None:
    """Returns the profile of processes that are not started, to check a recipe for it; None without options.

    Raises:
        UserError: as `chosen_profile`, or accelerate does not take the file.
    """
    if options.accelerate is not None:
        profile = chosen_profile(options)
        check_file(profile)
        return profile
    workers = options.num_workers or 1
    # Ray's workers train a copy each.
    return Profile("", None, "MULTI_GPU" if workers > 1 else "NO", workers) if options.given else None


def launch_words(profile: Profile, words: list[str], *, module: str = "hpt_trl") -> list[str]:
    """Returns the words of `accelerate launch` that start a module with the given words in every process.

    Raises:
        UserError: with several machines, a number or address that each of them needs is missing.
    """
    port = profile.main_process_port
    places: dict[str, str | int | None] = {
        "machine_rank": profile.machine_rank,
        "main_process_ip": profile.main_process_ip,
        "main_process_port": port,
    }
    if profile.num_machines == 1:
        # 0: any free one.
        places = {"main_process_port": port or 0}
    for name, value in places.items():
        if value is None:
            raise UserError(
                f"--{name}: {profile.num_machines} machines need it: the number of this machine from 0 "
                "(--machine_rank), and the address and a free port of machine 0 (--main_process_ip, "
                "--main_process_port), the same on all of them."
            )
    if profile.num_machines > 1 and (profile.machine_rank or 0) >= profile.num_machines:
        raise UserError(
            f"--machine_rank: allowed: 0 to {profile.num_machines - 1} for {profile.num_machines} machines."
        )
    if profile.num_machines > 1 and port == 0:
        raise UserError("--main_process_port: 0 chooses a port on one machine; several need one that all know.")
    numbers = {"num_processes": profile.num_processes, "num_machines": profile.num_machines, **places}
    stated = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return ["--config_file", str(profile.path), *stated, "-m", module, *words]


def check_installed(profile: Profile) -> None:
    """Refuses a profile whose package is missing.

    Raises:
        UserError: with what to install or take instead.
    """
    if profile.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(
            f"the profile {profile.name} needs DeepSpeed, which is not installed here: pip install "
            "'hpt-trl[deepspeed]', or take a profile without it, e.g. --accelerate fsdp2."
        )


def check_startable(profile: Profile) -> None:
    """Refuses what would fail once it is started: a package that is missing, a port that cannot be opened.

    Raises:
        UserError: with what to write or install instead.
    """
    check_installed(profile)
    port = profile.main_process_port
    if not port or (profile.num_machines > 1 and profile.machine_rank):
        return
    problem = {
        errno.EADDRINUSE: f"another process on this machine holds port {port}",
        errno.EACCES: f"this user may not open port {port}",
    }.get(_binding(port))
    if problem:
        which = "one, the same on all machines" if profile.num_machines > 1 else "one, or leave it out for a free one"
        raise UserError(f"--main_process_port: {problem}; name another {which}.")


def check_devices(profile: Profile, gpus: int) -> None:
    """Refuses more processes than GPUs on a machine that has some.

    Raises:
        UserError: with the number that fits.
    """
    wanted = profile.processes_per_machine
    if gpus and not profile.use_cpu and wanted > gpus:
        raise UserError(
            f"the profile {profile.name} starts {wanted} processes on this machine, which has {gpus} "
            f"GPU{'s' if gpus > 1 else ''}, and each process needs one: write --num_processes "
            f"{gpus * profile.num_machines}."
        )


def check_file(profile: Profile) -> None:
    """Reads a profile's file as accelerate itself will: keys that it does not know are refused.

    Raises:
        UserError: with accelerate's complaint.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        load_config_from_file(str(profile.path))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{profile.path}: accelerate does not take this config: {error}") from error


def start(words: list[str], variables: Mapping[str, str]) -> int:
    """Prints the command of a launch, runs it to its end, and returns its exit code (128 + n after signal n).

    Args:
        words: those of `accelerate launch`.
        variables: variables of the environment that its processes have beside those of this one.
    """
    print(f"starting: {masked_command(shlex.join(['accelerate', 'launch', *words]))}", flush=True)
    # The same words, to the same function of accelerate.
    code, _ = call([sys.executable, "-m", "hpt_trl.launching.agent", *words], variables=variables)
    return code if code >= 0 else 128 - code


def _binding(port: int) -> int:
    """Opens a port for a moment; returns the system's number of what prevents it, 0 for nothing."""
    with socket.socket() as probe:
        # As torchrun's own store binds it: a port that a connection has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno or 0
    return 0


def _output_dir(recipe: str, overrides: list[str]) -> Path:
    stated = read_recipe_file(find_recipe(recipe)).values.get("output_dir")
    return Path(split_overrides(overrides).get("output_dir", [str(stated)])[0])


def _how_to_go_on(recipe: str, overrides: list[str], words: list[str]) -> str:
    from hpt_trl.runs.checkpoints import complete_checkpoints, numbered_checkpoints
    from hpt_trl.runs.going_on import resuming

    if words[0] != "run":
        return "What was scored is kept: the same command goes on from there."
    checkpoints = complete_checkpoints(_output_dir(recipe, overrides))
    if not checkpoints:
        # Models alone, or damaged ones: a run does not begin over them unasked.
        over = " with `--overwrite true`" if numbered_checkpoints(_output_dir(recipe, overrides)) else ""
        return f"It left no complete checkpoint: the same command{over} starts it anew."
    again = ["hpt-trl", *resuming(words)]
    return f"Go on from its last complete checkpoint, {checkpoints[-1]}, with:\n  {masked_command(shlex.join(again))}"
