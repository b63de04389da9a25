"""What computes a step, and how fast: GPUs by their data sheets, this machine's CPU by a product of matrices."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hpt_trl.recipes.recipe import Recipe

# By the name that CUDA gives a device: dense bfloat16 FLOPs per second (NVIDIA's data sheets, without sparsity; of
# consumer cards with float32 accumulation) and bytes per second of its memory. The first pattern that is found counts.
GPUS = {
    r"B200": (2250e12, 8.0e12),
    r"H200": (989e12, 4.8e12),
    r"H100 SXM|H100 80GB HBM3|H800": (989e12, 3.35e12),
    r"GH200": (989e12, 4.0e12),
    r"H100 NVL": (835e12, 3.9e12),
    r"H100": (756e12, 2.0e12),
    r"A[18]00.*80GB": (312e12, 2.0e12),
    r"A100|A800": (312e12, 1.555e12),
    r"L40S": (362e12, 0.864e12),
    r"\bL40\b": (181e12, 0.864e12),
    r"\bL4\b": (121e12, 0.3e12),
    r"\bA10G?\b": (125e12, 0.6e12),
    r"A40": (150e12, 0.696e12),
    r"A6000": (150e12, 0.768e12),
    r"RTX 4090": (165e12, 1.008e12),
    r"RTX 3090": (71e12, 0.936e12),
}
# Shares of these FLOPs that a training reaches. Of a GPU what `benchmarks/results/gpu-nvidia-h200.json` has of sft at
# half a billion parameters; larger models reach more. Of a CPU what sft of 48M parameters reached of a matrix product,
# in float32, and with LoRA in bfloat16, whose products are so fast that all else counts.
OF_GPU, OF_CPU, OF_CPU_IN_HALF = 0.18, 0.7, 0.2
# Seconds in which transformers prepares a layer's work on one new token of a batch.
LAUNCH = 0.5e-3
# Seconds of measuring, side of the matrices, bytes that are copied.
_PATIENCE, _SIDE, _COPIED = 0.2, 1024, 2**26


@dataclass(frozen=True)
class Device:
    """What one process computes on.

    Attributes:
        name: as it is told.
        flops: per second, of products of matrices.
        bandwidth: of its memory, bytes per second.
        utilisation: share of `flops` that a training reaches.
        shared: all processes of a machine compute on it together.
    """

    name: str
    flops: float
    bandwidth: float
    utilisation: float
    shared: bool = False


# What a recipe on paper is counted for; its utilisation is an assumption for models of billions of parameters.
H100 = Device("H100 SXM 80 GB", 989e12, 3.35e12, 0.4)


def peak_flops_of(name: str) -> float | None:
    """Dense bfloat16 FLOPs per second of a GPU by its name, None where the table has none."""
    found = _gpu(name)
    return None if found is None else found[0]


def device_of(recipe: "Recipe") -> Device | None:
    """Returns what a recipe would compute on here; None for an accelerator that the table has not."""
    import torch

    half = recipe.config.bf16 or recipe.config.fp16
    if recipe.config.device.type == "cpu":
        return _this_cpu(torch.bfloat16 if half else torch.float32)
    if recipe.config.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(recipe.config.device)
    found = _gpu(name)
    return None if found is None else Device(name, *found, OF_GPU)


def _gpu(name: str) -> tuple[float, float] | None:
    return next((numbers for pattern, numbers in GPUS.items() if re.search(pattern, name)), None)


@lru_cache
def _this_cpu(dtype: "torch.dtype") -> Device:
    """The CPU by the mean rate of a product of two matrices and of a copy: what else it has to do counts as well."""
    import torch

    one, other = (torch.full((_SIDE, _SIDE), 0.5, dtype=dtype) for _ in range(2))
    flops = 2 * _SIDE**3 * _rate(lambda: one @ other, _PATIENCE)
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * _COPIED * _rate(lambda: target.copy_(source), _PATIENCE / 4)
    return Device("this CPU", flops, bandwidth, OF_CPU if dtype == torch.float32 else OF_CPU_IN_HALF, shared=True)


def _rate(work: Callable[[], object], seconds: float) -> float:
    """How often something is done in a second, the first time left out."""
    work()
    begin, count = time.perf_counter(), 0
    while not count or time.perf_counter() < begin + seconds:
        work()
        count += 1
    return count / (time.perf_counter() - begin)
