"""The random state of a training, kept while something else draws numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """While open, numbers may be drawn on the CPU and on `device`; the generators come back as they were."""
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        yield
