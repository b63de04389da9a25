"""What every critic is: a submodule of the policy that is asked along with it and kept out of its files.

As a submodule one forward pass gives both, and optimizer, DDP and checkpoints take it along. It is no part of the
language model: it is taken out while the model is saved or sent to vLLM, and has a file of its own beside the model.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer.utils import get_config_model_id

from hpt_trl.errors import UserError
from hpt_trl.models.adapters import base_of
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.models.hub_parts import folder_with
from hpt_trl.models.padding_free.attention import PackedRows
from hpt_trl.models.value_model import ValueHead

_NAME = "value_head"

logger = logging.getLogger(__name__)


def of_batch(found: Tensor, rows: PackedRows | None) -> Float[Tensor, "rows tokens"]:
    """Values in the layout of the batch that a forward pass was asked about.

    Args:
        found: of the batch, (rows, width), or of what its packed rows asked for, (1, asked).
    """
    return found if rows is None else rows.spread(found)


class Critic:
    """A critic on its policy. What a kind of its own says is how it hears of a forward pass (`listen`).

    Args:
        policy: the model that is trained, before it is wrapped for distributed training.
        module: what the critic computes with, on the policy's device; weights that are not trained are the policy's.
        head: the part of it that makes values of hidden states.
    """

    def __init__(self, policy: nn.Module, module: nn.Module, head: ValueHead):
        self.policy = policy
        self.module = module
        self.head = head
        policy.add_module(_NAME, module)

    def listen(self, values: list[Tensor]) -> list[RemovableHandle]:
        """Hook into the policy, so that each of its forward passes adds the values of its positions to the list."""
        raise NotImplementedError

    @contextmanager
    def asked(self) -> Iterator[list[Float[Tensor, "rows tokens"]]]:
        """While open, each forward pass of the policy adds the values of its positions to the list.

        A value stands at the position whose output predicts the next token: V(s_t), before token t is chosen.
        """
        values: list[Tensor] = []
        self._follow_checkpointing()
        handles = self.listen(values)
        try:
            yield values
        finally:
            for handle in handles:
                handle.remove()

    def _follow_checkpointing(self) -> None:
        """Checkpoint the gradients where the policy does, which under an adapter tells its own base model alone."""
        layers = [module for module in base_of(self.policy).modules() if isinstance(module, GradientCheckpointingLayer)]
        switched = next((layer for layer in layers if layer.gradient_checkpointing), None)
        for module in self.module.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = switched is not None
                if switched is not None:
                    module._gradient_checkpointing_func = switched._gradient_checkpointing_func

    @contextmanager
    def detached(self) -> Iterator[None]:
        """While open, the policy is the plain language model: what is saved, or sent to vLLM."""
        del self.policy._modules[_NAME]
        try:
            yield
        finally:
            self.policy.add_module(_NAME, self.module)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of it, by its names; the rest is the policy's."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def drop_other_gradients(self) -> None:
        """Leave the policy as it is in the next step: what has no gradient no optimizer touches, nor its moments."""
        own = {id(parameter) for parameter in self.parameters().values()}
        for parameter in self.policy.parameters():
            if id(parameter) not in own:
                parameter.grad = None

    def split(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the parts of a policy's weights that are the language model's and the critic's, by their names."""
        mine = f"{_NAME}."
        critic = {name.removeprefix(mine): value for name, value in state_dict.items() if name.startswith(mine)}
        return {name: value for name, value in state_dict.items() if not name.startswith(mine)}, critic

    def save(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the critic's weights: its own, or those that were gathered from all processes."""
        weights, own = self.module.state_dict() if state_dict is None else state_dict, self.parameters()
        state = {name: value.detach().cpu().contiguous() for name, value in weights.items() if name in own}
        file = Path(folder) / VALUE_HEAD_FILE
        file.parent.mkdir(exist_ok=True)
        save_file(state, file)

    def load(self, folder: str | Path) -> None:
        """Loads what `save` wrote.

        Raises:
            UserError: the folder has no critic, a damaged one, or one of another shape.
        """
        file = Path(folder) / VALUE_HEAD_FILE
        if not file.is_file():
            raise UserError(f"{file} is missing: the checkpoint was not written by PPO, or not to its end.")
        try:
            state = load_file(file)
            self._refuse_other(state)
            self.module.load_state_dict(state, strict=False)
        except (RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file} is damaged, or belongs to another critic (see `critic`, `critic_layers` and "
                f"`value_model_name_or_path`): {reason}"
            ) from error

    def _refuse_other(self, state: dict[str, Tensor]) -> None:
        known = self.module.state_dict()
        missing = self.parameters().keys() - state.keys()
        if missing or (foreign := state.keys() - known.keys()):
            raise RuntimeError(f"it lacks {min(missing)}" if missing else f"it has {min(foreign)}")
        for name, value in state.items():
            if value.shape != known[name].shape:
                raise RuntimeError(f"{name} has the shape {tuple(value.shape)} in place of {tuple(known[name].shape)}")

    def take_up(self) -> None:
        """Go on with a critic that lies beside the weights that the policy was loaded from, in a folder or on the Hub.

        One of another kind is left where it is, which is said. An adapter's base is never the one that a critic's
        adapter beside it was trained over.
        """
        if isinstance(self.policy, PeftModel) and self.module is not self.head:
            return
        config = base_of(self.policy).config
        source = get_config_model_id(config)
        if not source:
            return
        source = folder_with(source, (VALUE_HEAD_FILE,), revision=getattr(config, "_commit_hash", None))
        if (Path(source) / VALUE_HEAD_FILE).is_file():
            try:
                self.load(source)
            except UserError as error:
                logger.warning("The critic starts anew: %s", error)
