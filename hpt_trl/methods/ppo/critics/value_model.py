"""A value model: a trunk of its own under a head, or under an adapter of its own over the base of the policy's."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpt_trl.methods.ppo.critics.critic import Critic, of_batch
from hpt_trl.models.adapters import base_of
from hpt_trl.models.padding_free.attention import ROWS
from hpt_trl.models.value_model import ValueModel


class ValueModelCritic(Critic):
    """A trunk and a head, asked about the tokens that the policy reads."""

    module: ValueModel

    def __init__(self, policy: nn.Module, model: ValueModel):
        super().__init__(policy, model, model.head)

    def listen(self, values: list[Tensor]) -> list[RemovableHandle]:
        def ask(trunk: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            inputs = {"input_ids": args[0], **kwargs} if args else kwargs
            values.append(of_batch(self.module(**inputs).token_values, kwargs.get(ROWS)))

        return [base_of(self.policy).base_model.register_forward_hook(ask, with_kwargs=True)]
