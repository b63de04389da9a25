"""A linear head on the policy's own trunk: one forward pass serves actor and critic."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpt_trl.methods.ppo.critics.critic import Critic, of_batch
from hpt_trl.models.adapters import base_of
from hpt_trl.models.padding_free.attention import ROWS
from hpt_trl.models.value_model import LinearValueHead


class HeadCritic(Critic):
    """V = w . h + b of the trunk's last hidden state, zero at first."""

    def __init__(self, policy: nn.Module):
        head = new_head(policy)
        super().__init__(policy, head, head)
        self.take_up()

    def listen(self, values: list[Tensor]) -> list[RemovableHandle]:
        def ask(trunk: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            values.append(of_batch(self.head(output.last_hidden_state), kwargs.get(ROWS)))

        return [base_of(self.policy).base_model.register_forward_hook(ask, with_kwargs=True)]


def new_head(policy: nn.Module) -> LinearValueHead:
    """A head of zeros, as wide as the policy's hidden states."""
    base = base_of(policy)
    head = LinearValueHead(base.config.get_text_config().hidden_size)
    return head.to(base.get_output_embeddings().weight.device)
