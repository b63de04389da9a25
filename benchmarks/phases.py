"""What a step of a trainer on rollouts is made of: the time of its parts, and the positions that its models compute."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.gate import now

# Of a step, in their order. `scoring`: old and reference log-probabilities, values, advantages, and how rows are dealt.
PHASES = ("generation", "rewards", "scoring", "forward", "backward", "optimizer", "other")
# Methods of GRPOTrainer and of what it derives from -> the phase that they are.
_METHODS = {
    "_generate": "generation",
    "_calculate_rewards": "rewards",
    "_generate_and_score_completions": "scoring",
    "_prepare_inputs": "scoring",
    "compute_loss": "forward",
}


class Phases(TrainerCallback):
    """Wall time of the parts of a step, each without those inside of it, in seconds."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._open = ["other"]
        self._since = now()

    def watch(self, trainer: Any) -> None:
        """Times the methods of a trainer, and its optimizer's steps."""
        for method, phase in _METHODS.items():
            self._wrap(trainer, method, phase)
        self._wrap(trainer.accelerator, "backward", "backward")
        trainer.add_callback(self)

    @property
    def current(self) -> str:
        return self._open[-1]

    def take(self) -> dict[str, float]:
        """Seconds since the last call, by phase."""
        self._pass()
        found = {phase: round(self._seconds[phase], 4) for phase in PHASES}
        self._seconds.clear()
        return found

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._pass()
        self._open.append("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._pass()
        self._open.pop()

    def _wrap(self, owner: Any, method: str, phase: str) -> None:
        bound = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._within(phase):
                return bound(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def _within(self, phase: str) -> Iterator[None]:
        self._pass()
        self._open.append(phase)
        try:
            yield
        finally:
            self._pass()
            self._open.pop()

    def _pass(self) -> None:
        time = now()
        self._seconds[self.current] += time - self._since
        self._since = time


class Positions:
    """Positions that the trunks of models compute, and how many of them are a token of a row, by phase.

    Args:
        fed: tokens that a row which has ended is fed with while others are generated; where a row that goes on draws
            one of them, it counts as such.
    """

    def __init__(self, phases: Phases, fed: set[int]):
        self._phases, self._fed = phases, torch.tensor(sorted(fed))
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def watch(self, model: nn.Module) -> None:
        """Counts what the trunks inside of a model compute: one each of a policy, of a value model, …"""
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module.base_model is module:
                module.register_forward_pre_hook(self._count_tokens, with_kwargs=True)
                # What a trunk is given may be padded, and be computed without the padding.
                layer = next(part for part in module.modules() if isinstance(part, GradientCheckpointingLayer))
                layer.register_forward_pre_hook(self._count_positions)

    def take(self) -> dict[str, list[int]]:
        """Positions and tokens since the last call, of each phase that had a forward pass."""
        found = dict(self._counts)
        self._counts.clear()
        return found

    def _count_positions(self, layer: nn.Module, args: tuple) -> None:
        rows, width, _ = args[0].shape
        self._counts[self._phases.current][0] += rows * width

    def _count_tokens(self, trunk: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask, own = kwargs.get("attention_mask"), torch.ones_like(ids, dtype=torch.bool)
        # Of what is cached a mask says something too; one of four dimensions is of attention.
        if isinstance(mask, Tensor) and mask.ndim == 2:
            own = mask[:, -ids.size(1) :].bool()
        if self._phases.current == "generation" and ids.size(1) == 1:
            own = own & ~torch.isin(ids, self._fed.to(ids.device))
        self._counts[self._phases.current][1] += int(own.sum())
