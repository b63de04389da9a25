"""Accelerate configs as profiles: how many processes a run has, and what they share out.

A profile is a file of `accelerate config`; those of `accelerate_configs/` go by their names. The module reads them
without accelerate, so that a mistake in one is told at once.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json, path_fault
from hpt_trl.settings.file import shown
from hpt_trl.settings.values import did_you_mean
from hpt_trl.settings.yaml_text import check_yaml

# Accelerate's own names of what it can start here; each device has a `MULTI_...` of its own.
_ONE, _FSDP, _DEEPSPEED = "NO", "FSDP", "DEEPSPEED"
_DEVICES = ("GPU", "XPU", "NPU", "MLU", "SDAA", "MUSA", "HPU", "NEURON")
_TYPES = (_ONE, *(f"MULTI_{device}" for device in _DEVICES), _FSDP, _DEEPSPEED)
# FSDP1's names, by the numbers that stand for them as well, and whether each shards the weights too.
_STRATEGIES = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD", "5": "HYBRID_SHARD_ZERO2"}
_SHARD_WEIGHTS = ("FULL_SHARD", "HYBRID_SHARD")
Number = TypeVar("Number", int, float)
_NO_DEVICE = ("none", "None", "", None)
_PRECISIONS = ("no", "bf16", "fp16", "fp8")
# Variable by which a launched process knows them: the command that its results state is the one that was given.
LAUNCH_OPTIONS = "HPT_TRL_LAUNCH_OPTIONS"
# What accelerate sets for its processes stands for the file there.
_ENVIRONMENT = Path("environment of accelerate")


@dataclass(frozen=True)
class Profile:
    """What an accelerate config says of the processes of a run.

    Attributes:
        name: the file's stem; empty where there is no file.
        path: the file.
        distributed_type: accelerate's own value: `NO`, `MULTI_GPU`, `FSDP`, `DEEPSPEED`, ...
        num_processes: of all machines together.
        num_machines: machines.
        zero_stage: DeepSpeed's, None for others.
        fsdp_version: 1 or 2, None for others.
        reshard: FSDP: weights are sharded as well; False: gradients and optimizer states only.
        strategy: FSDP1's name of what is sharded, None for others.
        offload_optimizer: optimizer states lie in the CPU's memory.
        offload_params: weights too.
        mixed_precision: what the file says; the recipe's `bf16` stands above it.
        use_cpu: the processes use no GPU.
        gradient_accumulation_steps: DeepSpeed's, where its section has a number; the recipe's must be the same.
        gradient_clipping: likewise, the recipe's `max_grad_norm`.
        machine_rank: number of this machine, from 0; None where the file does not say.
        main_process_ip: address of the first machine.
        main_process_port: port of the first machine.
    """

    name: str
    path: Path | None
    distributed_type: str
    num_processes: int
    num_machines: int = 1
    zero_stage: int | None = None
    fsdp_version: int | None = None
    reshard: bool = True
    strategy: str | None = None
    offload_optimizer: bool = False
    offload_params: bool = False
    mixed_precision: str = "no"
    use_cpu: bool = False
    gradient_accumulation_steps: int | None = None
    gradient_clipping: float | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None

    @property
    def spreads_weights(self) -> bool:
        return self.fsdp_version is not None or self.zero_stage == 3

    @property
    def sharded_over(self) -> int:
        """Processes that FSDP shards over: those of a machine where it is hybrid, one where it does not shard."""
        if self.strategy == "NO_SHARD":
            return 1
        hybrid = self.strategy is not None and self.strategy.startswith("HYBRID")
        return self.processes_per_machine if hybrid else self.num_processes

    @property
    def processes_per_machine(self) -> int:
        return self.num_processes // self.num_machines


def profiles_folder() -> Path:
    """Returns the folder of the profiles that come with the package: of the wheel, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_accelerate_configs"
    return shipped if shipped.is_dir() else package.parent / "accelerate_configs"


def find_profile(name: str, beside: Path | None = None) -> Path:
    """Returns the accelerate config of a name: a path, or the name of a profile that comes with the package.

    Args:
        beside: folder that a relative path is looked for in first; the working directory comes after it.

    Raises:
        UserError: there is no such file; the message gives the nearest name.
    """
    if fault := path_fault(name):
        raise UserError(f"{name[:200]!r} {fault}; name an accelerate config, or a profile.")
    shipped = profiles_folder()
    folders = [] if beside is None else [beside / name]
    for candidate in [*folders, Path(name), shipped / f"{name.removesuffix('.yaml')}.yaml"]:
        if not path_fault(candidate) and candidate.is_file():
            return candidate
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    known = f" Names: {', '.join(names)}." if names else ""
    raise UserError(f"there is no file {name[:200]}.{did_you_mean(name, names)}{known}")


def read_profile(path: Path, num_processes: int | None = None, num_machines: int | None = None) -> Profile:
    """Reads an accelerate config.

    Args:
        num_processes: instead of the number in the file, of all machines together.
        num_machines: instead of the number in the file.

    Raises:
        UserError: the file is no accelerate config, or the numbers do not fit it.
    """
    values = _read(path)
    kind = values.get("distributed_type")
    # YAML 1.1 reads an unquoted NO as false.
    kind = _ONE if kind is False else str(kind)
    if kind == "MULTI_CPU":
        raise _error(
            path,
            "distributed_type",
            "accelerate would silently start one process for MULTI_CPU; write MULTI_GPU and `use_cpu: true`, as "
            "accelerate_configs/cpu.yaml has it.",
        )
    if kind not in _TYPES:
        raise _error(
            path,
            "distributed_type",
            f"{values.get('distributed_type', 'there is none')}; allowed: {', '.join(_TYPES)}."
            + did_you_mean(kind, _TYPES),
        )
    machines = _count(path, values, "num_machines", num_machines, 1)
    processes = _count(path, values, "num_processes", num_processes, 1 if kind == _ONE else None)
    if kind == _ONE and processes > 1:
        raise UserError(
            f"{processes} processes with {shown(path)}: its `distributed_type` is NO, with which accelerate starts "
            "one. Name another profile, e.g. multi_gpu."
        )
    if processes % machines:
        raise UserError(
            f"{processes} processes ({shown(path)}) do not divide among {machines} machines; `num_processes` counts "
            f"those of all machines, so write a multiple of {machines}."
        )
    if values.get("use_cpu") is True and kind in (_FSDP, _DEEPSPEED):
        raise _error(
            path,
            "use_cpu",
            f"with it {kind} would not shard; write false (where there is no GPU, the CPU is used anyway).",
        )
    deepspeed = _deepspeed(path, values) if kind == _DEEPSPEED else {}
    fsdp = _fsdp(path, values) if kind == _FSDP else {}
    address = values.get("main_process_ip")
    if not isinstance(address, str | None):
        raise _error(path, "main_process_ip", f"{address} is not allowed; allowed: an address, as text.")
    return Profile(
        name=path.stem,
        path=path,
        distributed_type=kind,
        num_processes=processes,
        num_machines=machines,
        mixed_precision=_precision(path, values),
        use_cpu=values.get("use_cpu") is True,
        machine_rank=_number(path, values, "machine_rank", int),
        main_process_ip=address,
        main_process_port=_number(path, values, "main_process_port", int, most=65535),
        **deepspeed,
        **fsdp,
    )


def launched_profile(world_size: int) -> Profile:
    """Returns the profile of the processes that this one belongs to, from what `accelerate launch` sets for each."""
    environment = os.environ
    shared: dict[str, Any] = {
        "name": "",
        "path": None,
        "num_processes": world_size,
        # torchrun's count of its agents, one on each machine.
        "num_machines": int(environment.get("GROUP_WORLD_SIZE", "1")),
        "mixed_precision": environment.get("ACCELERATE_MIXED_PRECISION", "no"),
        "use_cpu": _is_true(environment.get("ACCELERATE_USE_CPU")),
    }
    if _is_true(environment.get("ACCELERATE_USE_DEEPSPEED")):
        prefix = "ACCELERATE_DEEPSPEED_"
        named = ("ZERO_STAGE", "OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE")
        settings: dict[str, Any] = {name.lower(): environment.get(prefix + name) for name in named}
        for name in ("GRADIENT_ACCUMULATION_STEPS", "GRADIENT_CLIPPING"):
            settings[name.lower()] = environment.get(f"ACCELERATE_{name}")
        if (file := environment.get(prefix + "CONFIG_FILE")) not in _NO_DEVICE:
            settings["deepspeed_config_file"] = file
        return Profile(
            distributed_type=_DEEPSPEED, **shared, **_deepspeed(_ENVIRONMENT, {"deepspeed_config": settings})
        )
    if _is_true(environment.get("ACCELERATE_USE_FSDP")):
        settings = {name.lower(): value for name, value in environment.items() if name.startswith("FSDP_")}
        return Profile(distributed_type=_FSDP, **shared, **_fsdp(_ENVIRONMENT, {"fsdp_config": settings}))
    return Profile(distributed_type="MULTI_GPU" if world_size > 1 else _ONE, **shared)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            check_yaml(text)
        values = parsed_json(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or error
        raise UserError(f"{shown(path)}{where}: the accelerate config cannot be read: {said}.") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{shown(path)}: an accelerate config is a mapping of `key: value` lines, as `accelerate config` writes it."
        )
    return values


def _error(path: Path, key: str, message: str) -> UserError:
    return UserError(f"{shown(path)}, `{key}`: {message}")


def _count(path: Path, values: Mapping[str, Any], key: str, given: int | None, default: int | None) -> int:
    count = values.get(key, default) if given is None else given
    # Accelerate writes -1 where the number is to be given at each start.
    if count is None or (given is None and count == -1):
        raise _error(path, key, f"it is not set, and --{key} is not given; write one of the two.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(
            f"--{key}: {count} is not allowed; allowed: 1 or more."
            if given is not None
            else f"{shown(path)}, `{key}`: {count} is not allowed; allowed: a whole number from 1 on."
        )
    return count


def _mapping(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key; an empty one where the key is not set."""
    found = values.get(key)
    if not isinstance(found, Mapping | None):
        raise _error(path, key, f"{found} is not allowed; allowed: a mapping of `key: value` lines.")
    return dict(found or {})


def _number(
    path: Path,
    values: Mapping[str, Any],
    key: str,
    kind: type[Number],
    *,
    most: int | None = None,
    unset: tuple = (None, "None", ""),
) -> Number | None:
    """The number under a key, which may stand there as text too; None where the key is not set."""
    value = values.get(key)
    if value in unset:
        return None
    try:
        number = kind(str(value))
    except ValueError:
        number = kind(-1)
    if not 0 <= number < (math.inf if most is None else most + 1):
        whole = "a whole number" if kind is int else "a number"
        to = "on" if most is None else f"to {most}"
        raise _error(path, key, f"{value} is not allowed; allowed: {whole} from 0 {to}.")
    return number


def _precision(path: Path, values: Mapping[str, Any]) -> str:
    precision = values.get("mixed_precision", "no")
    if precision is False:
        raise _error(
            path, "mixed_precision", 'YAML reads a bare no as false, which accelerate does not take: write "no".'
        )
    precision = str(precision or "no").lower()
    if precision not in _PRECISIONS:
        raise _error(path, "mixed_precision", f"{precision} is not allowed; allowed: {', '.join(_PRECISIONS)}.")
    return precision


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes", "on")


def _deepspeed(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a profile that its DeepSpeed section sets, or the file that the section names."""
    section = _mapping(path, values, "deepspeed_config")
    if (file := section.get("deepspeed_config_file")) not in _NO_DEVICE:
        path = Path(str(file))
        whole = _read(path)
        zero = _mapping(path, whole, "zero_optimization")
        section = {
            **{name: whole.get(name) for name in ("gradient_accumulation_steps", "gradient_clipping")},
            "zero_stage": zero.get("stage"),
            "offload_optimizer_device": _mapping(path, zero, "offload_optimizer").get("device"),
            "offload_param_device": _mapping(path, zero, "offload_param").get("device"),
        }
    stage = _number(path, section, "zero_stage", int, most=3)
    unset = (None, "auto")
    return {
        # 2 is DeepSpeedPlugin's own default.
        "zero_stage": 2 if stage is None else stage,
        "gradient_accumulation_steps": _number(path, section, "gradient_accumulation_steps", int, unset=unset),
        "gradient_clipping": _number(path, section, "gradient_clipping", float, unset=unset),
        "offload_optimizer": section.get("offload_optimizer_device") not in _NO_DEVICE,
        "offload_params": section.get("offload_param_device") not in _NO_DEVICE,
    }


def _fsdp(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a profile that its FSDP section sets; accelerate takes keys with and without their prefix."""
    section = {
        str(key).lower().removeprefix("fsdp_"): value for key, value in _mapping(path, values, "fsdp_config").items()
    }
    version = _number(path, {"fsdp_version": section.get("version")}, "fsdp_version", int, most=2) or 1
    strategy = None
    if version == 1:
        strategy = str(section.get("sharding_strategy") or "FULL_SHARD").upper()
        strategy = _STRATEGIES.get(strategy, strategy)
        reshard = strategy in _SHARD_WEIGHTS
    else:
        reshard = _is_true(section.get("reshard_after_forward", True))
    offload = _is_true(section.get("offload_params"))
    # FSDP keeps an optimizer's states where the weights are.
    return {
        "fsdp_version": version,
        "reshard": reshard,
        "strategy": strategy,
        "offload_optimizer": offload,
        "offload_params": offload,
    }
