"""The critic: a value head on the policy's trunk, or a value model of its own.

Either is a submodule of the policy, so that one forward pass gives both, and optimizer, DDP and checkpoints take it
along. It is no part of the language model: it is taken out while the model is saved or sent to vLLM, and has a file of
its own beside the model.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from hpt_trl.errors import UserError
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.models.hub_parts import folder_with
from hpt_trl.models.padding_free.attention import ROWS, PackedRows
from hpt_trl.models.padding_free.trunks import take_packed_rows
from hpt_trl.models.value_model import LinearValueHead, ValueModel, load_value_model

_NAME = "value_head"

logger = logging.getLogger(__name__)


def _base(policy: nn.Module) -> PreTrainedModel:
    """The model under a PEFT adapter, or the model itself."""
    model: Any = policy
    return model.get_base_model() if isinstance(policy, PeftModel) else model


class Critic:
    """The value head (or model) of a policy: attached to it, asked along with it, kept out of its files.

    A head that lies beside the weights that the policy was loaded from is taken up, on the Hub as in a folder.

    Args:
        policy: the model that is trained, before it is wrapped for distributed training.
        value_model: name or folder of a separate value model, None for a head on the policy's trunk.
        pads_no_more: whether the policy is asked about packed rows.
        settings: of `from_pretrained` for the value model.
    """

    def __init__(
        self, policy: nn.Module, value_model: str | None = None, *, pads_no_more: bool = False, **settings: Any
    ):
        self.policy = policy
        base = _base(policy)
        device = base.get_output_embeddings().weight.device
        width = base.config.get_text_config().hidden_size
        self.module: LinearValueHead | ValueModel
        if value_model is None:
            self.module = LinearValueHead(width)
        else:
            # Trained weights: in the type that they are stored in, small updates might be rounded away.
            self.module = load_value_model(value_model, trainable=True, dtype=torch.float32, **settings)
            if pads_no_more:
                take_packed_rows(self.module.trunk)
        policy.add_module(_NAME, self.module.to(device))
        source = get_config_model_id(base.config)
        if value_model is not None or not source:
            return
        source = folder_with(source, (VALUE_HEAD_FILE,), revision=getattr(base.config, "_commit_hash", None))
        if (Path(source) / VALUE_HEAD_FILE).is_file():
            try:
                self.load(source)
            except UserError as error:
                logger.warning("The value head starts at zero: %s", error)

    @contextmanager
    def asked(self) -> Iterator[list[Float[Tensor, "rows tokens"]]]:
        """While open, each forward pass of the policy adds the values of its positions to the list.

        A value stands at the position whose output predicts the next token: V(s_t), before token t is chosen. The last
        position predicts a token that is not there, and has none: (rows, tokens - 1).
        """
        values: list[Tensor] = []

        def ask(trunk: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            rows: PackedRows | None = kwargs.get(ROWS)
            if isinstance(self.module, LinearValueHead):
                found = self.module(output.last_hidden_state)
            else:
                inputs = kwargs if "input_ids" in kwargs or not args else {**kwargs, "input_ids": args[0]}
                names = ("input_ids", "attention_mask", "position_ids", ROWS)
                found = self.module(**{name: inputs[name] for name in names if name in inputs}).token_values
            values.append((found if rows is None else rows.spread(found))[:, :-1])

        hook = _base(self.policy).base_model.register_forward_hook(ask, with_kwargs=True)
        try:
            yield values
        finally:
            hook.remove()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """While open, the policy is the plain language model: what is saved, or sent to vLLM."""
        del self.policy._modules[_NAME]
        try:
            yield
        finally:
            self.policy.add_module(_NAME, self.module)

    def split(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the parts of a policy's weights that are the language model's and the critic's, by their names."""
        mine = f"{_NAME}."
        critic = {name.removeprefix(mine): value for name, value in state_dict.items() if name.startswith(mine)}
        return {name: value for name, value in state_dict.items() if not name.startswith(mine)}, critic

    def save(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the critic's weights: its own, or those that were gathered from all processes."""
        weights = self.module.state_dict() if state_dict is None else state_dict
        state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        file = Path(folder) / VALUE_HEAD_FILE
        file.parent.mkdir(exist_ok=True)
        save_file(state, file)

    def load(self, folder: str | Path) -> None:
        """Loads what `save` wrote.

        Raises:
            UserError: the folder has no value head, a damaged one, or one of another shape.
        """
        file = Path(folder) / VALUE_HEAD_FILE
        if not file.is_file():
            raise UserError(f"{file} is missing: the checkpoint was not written by PPO, or not to its end.")
        try:
            self.module.load_state_dict(load_file(file))
        except (RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file} is damaged, or belongs to another critic (see `value_model_name_or_path`): {reason}"
            ) from error
