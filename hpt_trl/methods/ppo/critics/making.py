"""Which critic a run trains, and what it starts from."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.utils import get_config_model_id

from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.config import PPOConfig
from hpt_trl.methods.ppo.critics.adapters import is_over_base, value_model_of_adapter
from hpt_trl.methods.ppo.critics.branch import BranchCritic, branch_layers
from hpt_trl.methods.ppo.critics.critic import Critic
from hpt_trl.methods.ppo.critics.head import HeadCritic, new_head
from hpt_trl.methods.ppo.critics.value_model import ValueModelCritic
from hpt_trl.models.adapters import base_of
from hpt_trl.models.decoder_parts import decoder_parts
from hpt_trl.models.folders import is_adapter
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.loading import load_sequence_classifier
from hpt_trl.models.padding_free.settings import pads_no_more
from hpt_trl.models.padding_free.trunks import take_packed_rows
from hpt_trl.models.sharded_weights import whole
from hpt_trl.models.twins import twin
from hpt_trl.models.value_model import HeadSettings, ValueModel, load_value_model, of_classifier, why_no_value
from hpt_trl.rewards.reward_model import RewardModel

logger = logging.getLogger(__name__)


def make_critic(
    policy: Any,
    passed: "str | PreTrainedModel",
    args: PPOConfig,
    scoring: "Scoring | None",
) -> Critic:
    """Put a critic on a policy.

    Args:
        policy: the model that is trained, before it is wrapped for distributed training.
        passed: what it was made of: a name, or a model.
        args: `critic` and its settings.
        scoring: what a value model may start from, see `scoring_model`.

    Raises:
        UserError: a value model that is none, or a model that cannot have a branch.
        ValueError: ZeRO-3 has spread the weights that were to be copied.
    """
    copied = isinstance(passed, str) or isinstance(policy, PeftModel) or not is_deepspeed_zero3_enabled()
    kind = critic_of(args, base_of(policy), can_copy=copied)
    if kind == "head":
        return HeadCritic(policy)
    if kind == "branch":
        layers = branch_layers(base_of(policy), args.critic_layers)
        read = _read_again(policy, passed, args, policy.dtype)
        return BranchCritic(policy, layers, None if read is None else decoder_parts(read.trunk))
    model = _value_model(policy, passed, args, scoring)
    if pads_no_more(args):
        # It reads what the policy reads.
        take_packed_rows(model.trunk)
    critic = ValueModelCritic(policy, model)
    if args.value_model_name_or_path is None:
        critic.take_up()
    return critic


def critic_of(args: PPOConfig, model: PreTrainedModel, *, can_copy: bool = True) -> str:
    """Which critic a model gets: what `critic` says, by default a branch where it can have one, else a head.

    Args:
        args: the settings.
        model: the policy without an adapter; one without weights will do.
        can_copy: whether its weights are where they can be copied.
    """
    if args.critic is not None:
        return args.critic
    try:
        branch_layers(model, args.critic_layers)
    except UserError as error:
        logger.info("The critic is a linear head. %s", error)
        return "head"
    if not can_copy:
        logger.info("The critic is a linear head: ZeRO-3 has spread the weights that a branch would copy.")
        return "head"
    return "branch"


class Scoring(NamedTuple):
    """A reward model, and the weight that its score has in the reward."""

    model: RewardModel
    weight: float


def scoring_model(
    rewards: Sequence[Any], weights: Sequence[float], tokenizer: PreTrainedTokenizerBase
) -> Scoring | None:
    """The reward model that a value model can start from: the only one that the policy is trained on, of its tokens.

    Args:
        rewards: reward functions, guarded or not, and reward models.
        weights: of them; what is only measured has none.
        tokenizer: the policy's.
    """
    found = [
        Scoring(model, weight)
        for reward, weight in zip(rewards, weights, strict=True)
        if weight != 0 and isinstance(model := inspect.unwrap(reward), RewardModel)
    ]
    if len(found) != 1 or why_no_value(found[0].model.config, **found[0].model.settings) is not None:
        return None
    return found[0] if found[0].model.tokenizer.get_vocab() == tokenizer.get_vocab() else None


class Start(NamedTuple):
    """What a value model starts from; the policy, where nothing is said.

    Attributes:
        name: of a value model, or of the reward model.
        reward_model: that it is.
        adapter: folder of an adapter over the policy's base, which is shared; None of a whole model.
    """

    name: str | None = None
    reward_model: RewardModel | None = None
    adapter: str | None = None


def start_of(args: PPOConfig, reward_model: RewardModel | None, base: str | None, *, adapted: bool) -> Start:
    """Find what a value model starts from.

    Args:
        args: the settings.
        reward_model: that of `scoring_model`.
        base: name of the policy's model.
        adapted: the policy is an adapter over it; a whole reward model would be a second base model beside it.
    """

    def over_base(folder: str) -> str | None:
        return folder if adapted and is_over_base(base, folder) else None

    if (name := args.value_model_name_or_path) is not None:
        return Start(name, adapter=over_base(value_model_folder(name)) if adapted else None)
    if reward_model is None:
        return Start()
    adapter = over_base(reward_model.folder)
    return Start() if adapted and adapter is None else Start(reward_model.name, reward_model, adapter)


def _value_model(policy: Any, passed: "str | PreTrainedModel", args: PPOConfig, scoring: Scoring | None) -> ValueModel:
    """A value model at its start, on the policy's device."""
    adapted, reward_model = isinstance(policy, PeftModel), None if scoring is None else scoring.model
    start = start_of(args, reward_model, get_config_model_id(base_of(policy).config), adapted=adapted)
    if scoring is not None and start.reward_model is not None:
        model = value_model_of_adapter(policy, start.adapter) if start.adapter else _from_reward_model(scoring.model)
        _weigh(model, scoring.weight)
        return model.to(policy.device)
    if start.adapter is not None:
        return value_model_of_adapter(policy, start.adapter)
    if start.name is not None:
        return _loaded(start.name, args).to(policy.device)
    if adapted and reward_model is not None:
        logger.warning(
            "The critic's adapter starts as the policy's, under a head of zeros: %s is no adapter over the same base "
            "model. Name it as `value_model_name_or_path` to train it as a whole model beside the policy.",
            reward_model.name,
        )
    elif reward_model is None:
        logger.info(
            "The value model starts from the policy, under a head of zeros; it would start from a reward model of the "
            "policy's vocabulary, the only one with a weight, whose name is given."
        )
    return _read_again(policy, passed, args, torch.float32) or _from_policy(policy)


def _from_reward_model(reward_model: RewardModel) -> ValueModel:
    """Another copy of a reward model, to be trained, with its adapter merged where it has one."""
    loading: dict[str, Any] = {"dtype": torch.float32, **reward_model.settings}
    if not is_adapter(reward_model.folder):
        return load_value_model(reward_model.name, trainable=True, **loading)
    pad = reward_model.tokenizer.pad_token_id
    merged = load_sequence_classifier(reward_model.folder, pad_token_id=pad, **loading)
    # The adapter had frozen it.
    return of_classifier(merged.requires_grad_(True))


def _weigh(model: ValueModel, weight: float) -> None:
    """Have values be what the reward makes of a reward model's score."""
    if weight == 1:
        return
    last = model.head.last
    with torch.no_grad(), whole(*last.parameters(), written=True):
        for parameter in last.parameters():
            parameter.mul_(weight)


def _from_policy(policy: Any) -> ValueModel:
    """The policy's trunk once more, under a head of zeros; what is frozen of it is shared."""
    trunk: Any = twin(base_of(policy).base_model)
    if not isinstance(policy, PeftModel):
        # As value models are that are loaded: in a narrow type small updates might be rounded away.
        trunk.float()
    head = new_head(policy)
    return ValueModel(trunk, head, HeadSettings(head.linear.in_features))


def _read_again(policy: Any, passed: "str | PreTrainedModel", args: PPOConfig, dtype: torch.dtype) -> ValueModel | None:
    """The policy's weights from its files, where ZeRO-3 has spread those that would be copied; None elsewhere."""
    if not is_deepspeed_zero3_enabled() or isinstance(policy, PeftModel):
        return None
    if not isinstance(passed, str):
        raise ValueError("ZeRO-3 spreads the weights of `model`, which cannot be copied; pass its name or folder.")
    read = _loaded(str(get_config_model_id(policy.config)), args, dtype=dtype)
    # A copy would attend as the policy does.
    read.trunk.set_attn_implementation(policy.config._attn_implementation)
    return read


def _loaded(name: str, args: PPOConfig, **settings: Any) -> ValueModel:
    # Trained weights: in the type that they are stored in, small updates might be rounded away.
    return load_value_model(
        name, trainable=True, **{"dtype": torch.float32, "trust_remote_code": args.trust_remote_code, **settings}
    )
