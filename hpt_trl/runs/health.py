"""Whether a training trains: weights that are numbers and move, rollouts that tell something apart.

A run that ends with the weights it began with, or with NaN, is a failure that looks like a success: its curves are
smooth, its model loads. Here it ends as an error.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hpt_trl.errors import UserError
from hpt_trl.runs.checkpoints import complete_checkpoints

logger = logging.getLogger(__name__)

# Logs in a row whose rollouts told nothing apart, after which the user is told.
FLAT_LOGS = 10


class Health(TrainerCallback):
    """Watches a training; all processes have one.

    Raises:
        UserError: weights that are no longer numbers, at the log or save that finds them: before the checkpoint is
            written.
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self._first_step = 0
        self._start: Tensor | None = None
        self._largest_gradient: float | None = None
        self._flat = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self._start = fingerprint(self.trainer.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save or control.should_log or state.global_step >= state.max_steps:
            self._refuse_what_is_no_number(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "grad_norm" in logs:
            self._largest_gradient = max(self._largest_gradient or 0.0, float(logs["grad_norm"]))
        if "frac_reward_zero_std" not in logs or "ppo/value_loss" in logs:
            return
        demonstrated = logs.get("hpt/sft_fraction", 0.0) + logs.get("hpt/off_fraction", 0.0)
        is_flat = float(logs["frac_reward_zero_std"]) >= 1.0 and not demonstrated
        self._flat = self._flat + 1 if is_flat else 0
        if self._flat == FLAT_LOGS and state.is_world_process_zero:
            logger.warning(
                "step %d: for %d logs in a row every prompt's rollouts had one and the same reward (the last mean is "
                "%.3g): no rollout is better than another, and nothing is learnt from them. Give easier or harder "
                "prompts, a reward with more than one value, more `num_generations`, or demonstrations (stage hpt).",
                state.global_step,
                FLAT_LOGS,
                logs.get("reward", float("nan")),
            )

    def verdict(self, trainer: Any) -> None:
        """Look back at a training that has ended; all processes call it together.

        Raises:
            UserError: no step was taken, or the weights are those of the beginning.
        """
        state = trainer.state
        if state.global_step == self._first_step:
            raise UserError(
                f"nothing was trained: the training ended at step {state.global_step} of {state.max_steps} without "
                "taking one, for want of rows for a single batch. Lower the batch, or give more rows; no model was "
                "written."
            )
        assert self._start is not None
        moved = torch.tensor(float(not torch.equal(fingerprint(trainer.model), self._start)))
        if trainer.accelerator.reduce(moved.to(trainer.accelerator.device), reduction="sum") > 0:
            return
        raise UserError(
            f"nothing was trained: after {state.global_step - self._first_step} steps every weight is the one of the "
            f"beginning{self._reason()} No model was written; {trainer.args.output_dir} keeps the metrics."
        )

    def _reason(self) -> str:
        if self._largest_gradient is None:
            return "."
        if self._largest_gradient > 0:
            return (
                f", though there were gradients (norm up to {self._largest_gradient:.3g}): the steps are too small for "
                "the weights' type. Raise `learning_rate`, or write `dtype: float32`."
            )
        return (
            ": there was never a gradient. In RL every prompt's rollouts had one and the same reward; otherwise the "
            "loss has no token to be taken on, or what is trained does not enter it."
        )

    def _refuse_what_is_no_number(self, args: Any, state: Any) -> None:
        broken = torch.tensor(float(not bool(fingerprint(self.trainer.model).isfinite().all())))
        if self.trainer.accelerator.reduce(broken.to(self.trainer.accelerator.device), reduction="sum") == 0:
            return
        kept = complete_checkpoints(Path(args.output_dir))
        again = f"{kept[-1].name} is from before" if kept else "There is no checkpoint from before"
        raise UserError(
            f"step {state.global_step}: the weights are no longer numbers (NaN or infinite), and no further step can "
            f"mend them. Lower `learning_rate` (now {args.learning_rate:g}) or `max_grad_norm`, or warm up longer. "
            f"{again}; no model was written."
        )


@torch.no_grad()
def fingerprint(model: torch.nn.Module) -> Tensor:
    """Three numbers of each trained weight that this process holds, by which a change shows.

    Returns:
        (3 x weights,) float64 on the CPU: sum, greatest size and first value; NaN or infinite where a weight is.
    """
    parts = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a weight's own storage is empty, and this process's part of it lies beside.
        held = getattr(parameter, "ds_tensor", parameter).detach()
        held = held.to_local() if isinstance(held, DTensor) else held
        if held.numel():
            flat = held.reshape(-1)
            parts += [flat.sum(dtype=torch.float64), flat.abs().max().double(), flat[0].double()]
    return torch.stack(parts).cpu() if parts else torch.zeros(0, dtype=torch.float64)
