"""Whether a training trains: gradients that are numbers, and weights that move. `signs` has what is only warned of."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback

from hpt_trl.errors import UserError
from hpt_trl.models.sharded_weights import local_part
from hpt_trl.runs.checkpoints import complete_checkpoints
from hpt_trl.runs.signs import has_no_contrast

# In float16 a gradient that overflows lowers the loss scale; from the highest scale it takes so many steps to 1.
_OVERFLOWS = 40
_STATE = "hpt_trl.health"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of torch, where a model that gives NaN is to sample a token.
_NO_PROBABILITIES = "probability tensor contains either"


class Health(TrainerCallback):
    """Watches a training: ends it where gradients are NaN, and judges its end."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.highest_norm: float | None = None
        self.highest_rate = 0.0
        self.changed_before = False
        self._start: list[int] = []
        self._overflows = 0
        self._logs = self._flat_logs = 0

    def watch(self, trainer: Any) -> None:
        """Look at every step's gradient norm, which the trainer computes for its log.

        Raises:
            UserError: the model has no parameter that is trained.
        """
        self.trainer = trainer
        if not any(parameter.requires_grad for parameter in trainer.model.parameters()):
            raise UserError(
                "no parameter of the model is trainable: the run would change nothing. Write `use_peft: true` to train "
                "a new adapter, or name a model that is not frozen."
            )
        stock = trainer._get_grad_norm

        def watched(*args: Any, **kwargs: Any) -> Any:
            norm = stock(*args, **kwargs)
            if norm is not None:
                self._note(float(norm))
            return norm

        trainer._get_grad_norm = watched

    def _note(self, norm: float) -> None:
        if math.isfinite(norm):
            self._overflows = 0
            self.highest_norm = max(self.highest_norm or 0.0, norm)
            rates = [float(group["lr"]) for group in self.trainer.optimizer.param_groups]
            self.highest_rate = max(self.highest_rate, *rates)
            return
        self._overflows += 1
        # The loss scaler leaves such a step out and goes on with a lower scale.
        if not self.trainer.args.fp16 or self._overflows >= _OVERFLOWS:
            raise self.diverged(f"the gradients of step {self.trainer.state.global_step + 1} are not finite ({norm})")

    def diverged(self, what: str) -> UserError:
        """What to say of a run whose numbers are none any more."""
        kept = complete_checkpoints(Path(self.trainer.args.output_dir))
        last = f"The last checkpoint is {kept[-1]}." if kept else "There is no checkpoint of it."
        return UserError(
            f"the training has diverged: {what}. {last} Lower `learning_rate` (now "
            f"{self.trainer.args.learning_rate:g}), or look at the rows of that step."
        )

    def explained(self, error: RuntimeError) -> UserError | None:
        """What to say of an error that stems from a model which has come to give NaN; None of any other."""
        if _NO_PROBABILITIES not in str(error):
            return None
        step = self.trainer.state.global_step
        return self.diverged(f"after step {step} the model's logits are NaN or infinite, nothing can be sampled")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = fingerprint(self.trainer.model_wrapped)
        # A checkpoint of another program does not say; it was trained by whoever wrote it.
        earlier = state.stateful_callbacks.get(_STATE, {"changed": state.global_step > 0})
        self.changed_before = earlier["changed"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            state.stateful_callbacks[_STATE] = {"changed": self.why_untrained() is None}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "frac_reward_zero_std" in logs and "ppo/score" not in logs:
            self._logs, self._flat_logs = self._logs + 1, self._flat_logs + has_no_contrast(logs)

    def why_untrained(self) -> str | None:
        """Why the weights are those of the start; None where the run has trained them. All processes ask together."""
        moved = any(gather_object([self._start != fingerprint(self.trainer.model_wrapped)]))
        # Weight decay moves weights that nothing was learnt by.
        if self.changed_before or (moved and self.highest_norm != 0):
            return None
        if self.trainer.state.global_step == 0:
            return "it took no step"
        if self.highest_norm == 0:
            if self._logs and self._flat_logs == self._logs:
                return "all completions of every prompt had the same reward (frac_reward_zero_std 1), at every step"
            return "the gradient was 0 at every step"
        if self.highest_rate == 0:
            return "the learning rate was 0 at every step"
        norm = "unknown" if self.highest_norm is None else f"{self.highest_norm:.3g}"
        types = sorted({str(p.dtype).removeprefix("torch.") for p in _trained(self.trainer.model)})
        return (
            f"every update was too small to change a {' or '.join(types)} number (learning rate up to "
            f"{self.highest_rate:.3g}, gradient norm up to {norm})"
        )

    def check_weights(self) -> None:
        """Refuse weights that are no numbers, before they are saved. All processes ask together.

        Raises:
            UserError: a trained weight is NaN or infinite.
        """
        shards = (local_part(parameter) for parameter in _trained(self.trainer.model_wrapped))
        finite = all(bool(torch.isfinite(shard).all()) for shard in shards)
        if not all(gather_object([finite])):
            raise self.diverged(f"after step {self.trainer.state.global_step} weights are NaN or infinite")


def fingerprint(model: torch.nn.Module) -> list[int]:
    """Sums over the bits of each trained parameter, of a sharded one over the part that this process holds."""
    sums = []
    for parameter in _trained(model):
        shard = local_part(parameter)
        sums.append(int(shard.contiguous().view(_INTEGERS[shard.element_size()]).sum(dtype=torch.int64)))
    return sums


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def refuse_untrained(why: str | None, trainer: Trainer) -> None:
    """End a run that trained nothing, once all it has is written.

    Raises:
        UserError: the weights are those of the start.
    """
    if why is not None:
        raise UserError(
            f"nothing was trained: {why}. The model in {trainer.args.output_dir} is the one that the run began with; "
            "results.json says `trained: false`."
        )
