"""What the benchmarks share: their flags, what they say of the machine, and the file of their figures."""

import argparse
import json
import platform
import statistics
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "bitsandbytes", "deepspeed")


def parser_of(description: str | None, *, output: str = "write the figures as JSON here") -> argparse.ArgumentParser:
    """Returns a parser with the flag `--output`.

    Args:
        description: the module's own, which begins with its command.
        output: the flag's help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help=output)
    return parser


def write_report(report: dict[str, Any], output: str | Path | None) -> None:
    """Writes the figures; nothing where no file is named."""
    if output is not None:
        Path(output).write_text(json.dumps(report, indent=2) + "\n")


def versions() -> dict[str, str]:
    """The packages that figures depend on, where they are installed."""
    return {name: version(name) for name in _PACKAGES if find_spec(name)}


def process_bytes(field: str) -> int:
    """What the system says of this process's memory: `VmRSS` is what it holds, `VmHWM` the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) * 1024


def processors() -> list[str]:
    """The name of each CPU core."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names or [platform.processor() or platform.machine()]


def hardware() -> dict[str, Any]:
    """The CPU, and the packages."""
    import torch

    names = processors()
    return {
        "machine": f"{len(names)} x {names[0]}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation, of several seeds."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
