"""`hpt-trl run RECIPE --launcher ray --num_workers N`: a recipe under Ray Train, for those who have a Ray cluster.

Ray Train's TorchTrainer starts one process per GPU (per CPU core where there is none), makes their process group and
starts all of them again when one fails; each runs the recipe as a process of `accelerate launch` would. Checkpoints are
the trainer's own, in `output_dir`: Ray stores nothing.
"""

import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hpt_trl.errors import UserError
from hpt_trl.launching.accelerate import check_file, check_installed, chosen_profile, launch_words
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import LAUNCH_OPTIONS, Profile
from hpt_trl.run_files import LAUNCH_ID
from hpt_trl.settings.file import Sources, read_recipe_file, split_overrides
from hpt_trl.signals import ending_on_signals

if TYPE_CHECKING:
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.util.queue import Queue

# Failures after which Ray starts the run again, where the user says nothing.
MAX_FAILURES = 3
# Ray waits a minute for the GPUs of all workers, then asks again, this often in all: a node may come back, a job end.
PLACING_ATTEMPTS = 10
# Of a Ray that serves this one run, in bytes; by itself it would take a third of the memory.
_OBJECT_STORE = 200 * 1024**2
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Prints and logs stay what they are, and relative paths the user's.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's default, without the announcement that it will change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


def launch(recipe: str, overrides: list[str], options: LaunchOptions) -> int:
    """Runs a recipe in Ray's workers and shows what the first of them prints.

    Args:
        recipe: path of a recipe, or the name of a bundled one.
        overrides: words of the command line after it.
        options: of them `num_workers`, `accelerate` and `max_failures`.

    Returns:
        The exit code: 0, or 1 after more failures than are allowed.

    Raises:
        UserError: Ray is missing or has no room, the profile cannot be used, or a worker found a mistake.
    """
    workers = options.num_workers
    assert workers is not None, "split_launch_options refuses Ray without a number"
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UserError("--launcher ray: Ray is not installed here: pip install 'hpt-trl[ray]'")
    sources = Sources(read_recipe_file(find_recipe(recipe)), split_overrides(overrides))
    profile = None if options.accelerate is None else chosen_profile(options)
    environment = {} if profile is None else accelerate_environment(profile)
    environment[LAUNCH_OPTIONS] = shlex.join(options.words())
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    import ray

    storage = None
    try:
        place = _connect()
        with ending_on_signals():
            on_cpu = profile is not None and profile.use_cpu
            on_cpu = on_cpu or sources.given("use_cpu").lower() == "true" or sources.overrides.get("use_cpu") == []
            resource = "CPU" if on_cpu or not ray.cluster_resources().get("GPU") else "GPU"
            _check_room(workers, resource)
            storage = _make_storage(sources.given("output_dir"))
            terminal, trainer = _trainer(
                recipe,
                overrides,
                output_dir=sources.given("output_dir"),
                storage=storage,
                environment=environment,
                workers=workers,
                resource=resource,
                max_failures=MAX_FAILURES if options.max_failures is None else options.max_failures,
            )
            print(f"Ray ({place}): {workers} workers, one {_UNITS[resource]} each.", flush=True)
            return _exit_code(_fit(trainer, terminal), workers)
    finally:
        # Ends what this run has started in a cluster, and a Ray of its own altogether.
        ray.shutdown()
        if storage is not None:
            shutil.rmtree(storage, ignore_errors=True)


def accelerate_environment(profile: Profile) -> dict[str, str]:
    """Returns the variables that `accelerate launch` sets for a profile, apart from those that place the processes.

    Raises:
        UserError: accelerate refuses the profile, or DeepSpeed is missing.
    """
    check_installed(profile)
    check_file(profile)

    from accelerate.commands import launch
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    words = launch_words(profile, [])
    try:
        # What `accelerate launch` does before it starts processes.
        settings, config, precision = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
        if settings.use_deepspeed:
            fields = [*config.deepspeed_config, *(["mixed_precision"] if precision else [])]
            settings.deepspeed_fields_from_accelerate_config = ",".join(fields)
            variables = prepare_deepspeed_cmd_env(settings)[1]
        elif settings.use_fsdp or settings.multi_gpu:
            variables = prepare_multi_gpu_env(settings)
        else:
            variables = prepare_simple_launcher_cmd_env(settings)[1]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{profile.path}: accelerate does not take this config: {error}") from error
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if profile.use_cpu else {}
    return {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_", "FSDP_"))} | on_cpu


def _connect() -> str:
    """Connects to the cluster that RAY_ADDRESS names or `ray start` has made here, else starts Ray on this machine.

    Returns:
        Which of them, for reading.

    Raises:
        UserError: the cluster does not answer.
    """
    import ray
    from ray._private.utils import read_ray_address

    given = os.environ.get("RAY_ADDRESS", "")
    if given.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={given}: Ray's client does not share the run's files. Start the run on a node of the "
            "cluster, or by `ray job submit`."
        )
    # Here it is the workers who have something to say, and they do so through the run's own queue.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = given or read_ray_address()
    if address is None or address == "local":
        local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        ray.init(address="local", _node_ip_address="127.0.0.1", **local, **quiet)
        return "started on this machine"
    try:
        if address != "auto":
            # Ray itself would knock for many minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}, {'as RAY_ADDRESS says' if given else 'where `ray start` made one'}: "
            f"{error}. RAY_ADDRESS=local starts Ray on this machine for the run."
        ) from error
    return f"cluster at {address}"


_UNITS = {"CPU": "CPU core", "GPU": "GPU"}


def _check_room(workers: int, resource: str) -> None:
    """Refuses more workers than the cluster has GPUs or CPU cores, for which Ray would wait without end."""
    import ray

    there = int(ray.cluster_resources().get(resource, 0))
    if workers > there:
        raise UserError(
            f"--num_workers {workers}: each takes a {_UNITS[resource]}, and the Ray cluster has {there} of them. "
            "Allowed: at most that. A cluster that grows by itself has to grow first; `ray status` shows what it has."
        )


def _make_storage(output_dir: str) -> Path:
    """Makes a folder beside the output folder: Ray asks for one, and by it a worker sees that it shares the storage."""
    folder = Path(output_dir).absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        return Path(tempfile.mkdtemp(prefix=".hpt-trl-ray-", dir=folder))
    except OSError as error:
        raise UserError(f"`output_dir` {output_dir}: nothing can be written to {folder}: {error.strerror}.") from error


def _trainer(
    recipe: str,
    overrides: list[str],
    *,
    output_dir: str,
    storage: Path,
    environment: dict[str, str],
    workers: int,
    resource: str,
    max_failures: int,
) -> "tuple[Queue, TorchTrainer]":
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from hpt_trl.launching.ray_worker import Failures, Task, left_in, work

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    terminal = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    # The next attempt may run on another machine while the note of a dead one is fresh.
    environment = environment | {LAUNCH_ID: uuid4().hex}
    task = Task(recipe, overrides, os.getcwd(), str(storage), output_dir, left_in(output_dir), environment, terminal)
    on_gpu = resource == "GPU"
    trainer = TorchTrainer(
        work,
        train_loop_config={"task": task},
        # Accelerate gathers sharded weights on the CPU.
        torch_config=TorchConfig(backend="cuda:nccl,cpu:gloo" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker={resource: 1}),
        run_config=RunConfig(
            name="run",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=PLACING_ATTEMPTS - 1),
            callbacks=[Failures(terminal, max_failures)],
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    return terminal, trainer


class _Background(Thread):
    """A thread that keeps what its function fails with, and does not hold up the end of the process."""

    def __init__(self, function: Callable[[], object]):
        super().__init__(daemon=True)
        self.function = function
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.function()
        except BaseException as error:
            self.failure = error


def _fit(trainer: "TorchTrainer", terminal: "Queue") -> BaseException | None:
    """Runs the trainer and prints what the workers say meanwhile.

    Both in threads: what Ctrl-C or SIGTERM raises can get lost inside of Ray's calls, but not in this waiting.

    Returns:
        What ended the run; None after a success.
    """
    ended = Event()
    fit, show = _Background(trainer.fit), _Background(partial(_show, terminal, ended))
    fit.start()
    show.start()
    while fit.is_alive() and show.is_alive():
        fit.join(0.2)
    ended.set()
    show.join()
    if show.failure is not None:
        raise show.failure
    return fit.failure


def _show(terminal: "Queue", ended: Event) -> None:
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    while True:
        nothing_follows = ended.is_set()
        try:
            while True:
                name, text = terminal.get(timeout=0.2)
                streams[name].write(text)
                streams[name].flush()
        except Empty:
            if nothing_follows:
                return


def _exit_code(failure: BaseException | None, workers: int) -> int:
    """Turns what ended the run into an exit code and a message.

    Raises:
        UserError: a mistake of the user, or the workers could not be placed.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from hpt_trl.launching.ray_worker import dead_workers

    if failure is None:
        return 0
    if isinstance(failure, ControllerError):
        cause = failure.controller_failure
        if isinstance(cause, UserError):
            raise cause
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            raise UserError(
                f"Ray could not place {workers} workers within {PLACING_ATTEMPTS} minutes: others use the cluster, or "
                "it has lost a node (`ray status`). Checkpoints are kept: go on with `--resume_from_checkpoint true`."
            )
    if not isinstance(failure, WorkerGroupError):
        raise failure
    # A traceback tells nothing of a worker that was killed.
    happened = dead_workers(failure.worker_failures) or str(failure).rstrip()
    print(
        f"\n{happened}\nerror: the run has failed more often than --max_failures allows. Its checkpoints are kept: go "
        "on with `--resume_from_checkpoint true`. What each worker has printed is in Ray's logs on its node.",
        file=sys.stderr,
    )
    return 1
