"""What a machine has to compute with, and whether that is what a recipe asks for."""

import re
from dataclasses import dataclass
from pathlib import Path

from hpt_trl.planning.need import Need
from hpt_trl.recipes.bundled import hardware_of


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes, compute capability as NVIDIA writes it (empty for others)."""

    name: str
    memory: int
    capability: str
    bfloat16: bool


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes:
        gpus: those that torch can use.
        other: torch's name of an accelerator that is none (`mps`, `xpu`); empty for none.
        cores: of the CPU.
        memory: the machine's, in bytes.
        instructions: the CPU's for bfloat16.
    """

    gpus: list[Gpu]
    other: str
    cores: int
    memory: int
    instructions: list[str]


def hardware_need(path: Path, machine: Machine) -> Need:
    """Returns what the header of a recipe asks for; where it asks for nothing, any machine will do."""
    asked = hardware_of(path)
    gpus = machine.gpus
    here = f"{len(gpus)} x {gpus[0].name}, {gpus[0].memory / 2**30:.0f} GiB" if gpus else "no GPU"
    found = re.match(r"(\d+) GPUs?(?: with (\d+) GB)?$", asked)
    if found is None:
        return Need("hardware", True, here if gpus else "the CPU")
    # A card reports a little more or less than its name says.
    large = [gpu for gpu in gpus if gpu.memory >= 0.9 * 1e9 * int(found[2] or 0)]
    asked = f"hardware {asked}"
    if len(large) >= int(found[1]):
        return Need(asked, True, here)
    return Need(asked, False, f"here: {here}")
