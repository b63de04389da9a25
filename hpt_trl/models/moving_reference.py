"""A reference that moves with the policy (`sync_ref_model`), which TRL 1.16 leaves out of its checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hpt_trl.errors import UserError

# A reference that has moved, in a checkpoint.
REFERENCE_FILE = "reference_model.safetensors"

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class KeepsReference(_Base):
    """Keeps a moving reference in the checkpoints, so that a resumed run goes the way of the whole one.

    A mixin for `GRPOTrainer` and `DPOTrainer` (before them among the bases).

    Raises:
        ValueError: beside the base's own, a moving reference that no checkpoint could hold.
    """

    args: Any
    accelerator: Accelerator
    ref_model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        refuse_lost_reference(self.args, spread=self.is_fsdp_enabled or is_deepspeed_zero3_enabled())

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.sync_ref_model and self.args.should_save:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(Path(output_dir) / REFERENCE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Not with the random states: the base leaves them where no step is left, and the run's end measures as well.
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.args.sync_ref_model:
            return
        file = Path(checkpoint) / REFERENCE_FILE
        if not file.is_file():
            raise UserError(
                f"{checkpoint}: `sync_ref_model` is true, but the checkpoint has no {REFERENCE_FILE}: the run that "
                "wrote it did not keep its reference. Resume with `sync_ref_model: false`, or begin anew."
            )
        load_model(self.accelerator.unwrap_model(self.ref_model), str(file))


def refuse_lost_reference(config: Any, *, spread: bool) -> None:
    """Find a moving reference that no checkpoint could hold.

    Args:
        spread: weights are spread over the processes.

    Raises:
        ValueError: it moves, is spread, and there are to be checkpoints.
    """
    if config.sync_ref_model and config.save_strategy != "no" and spread:
        raise ValueError(
            "`sync_ref_model` is true under FSDP or ZeRO-3: the reference's weights are spread over the processes and "
            "would be missing from checkpoints, so that a resumed run goes another way. Set `save_strategy: no`, or "
            "`sync_ref_model: false`."
        )
