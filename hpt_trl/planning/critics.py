"""What PPO's critic adds to a training: parameters of its own, and the layers that are run for it."""

from typing import TYPE_CHECKING, NamedTuple

from trl import get_peft_config

from hpt_trl.methods.ppo.critics.branch import branch_layers
from hpt_trl.methods.ppo.critics.making import Start, critic_of, scoring_model, start_of
from hpt_trl.models.parameters import Parameters, build_on_meta, count_copied, count_parameters
from hpt_trl.models.readable import adapter_config
from hpt_trl.planning.memory_sizes import Sizes
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.rewards.reward_model import RewardModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe
    from hpt_trl.runs.prepared import Prepared


class CriticSize(NamedTuple):
    """A critic beside the policy, of more than a head.

    Attributes:
        config: of the trunk that it runs, or runs a part of.
        counts: of that trunk.
        layers: that are run for it.
        own: parameters of its own, all of them trained.
        own_bytes: bytes of each.
        weight_bytes: bytes of a weight of what it runs, shared ones among them.
        shared: parameters of the policy's that it runs as well.
    """

    config: "PretrainedConfig"
    counts: Parameters
    layers: int
    own: int
    own_bytes: float
    weight_bytes: float
    shared: int = 0


def has_critic(recipe: "Recipe") -> bool:
    """Whether a recipe's stage trains a critic beside its policy."""
    return "critic_layers" in recipe.keys


def scoring_model_of(prepared: "Prepared") -> RewardModel | None:
    """The reward model that a recipe's value model can start from."""
    if not has_critic(prepared.recipe):
        return None
    scoring = scoring_model(prepared.rewards, prepared.reward_weights, text_tokenizer(prepared.tokenizer))
    return None if scoring is None else scoring.model


def critic_size(
    recipe: "Recipe",
    model: "PretrainedConfig",
    sizes: Sizes,
    named: "PretrainedConfig | None",
    reward_model: RewardModel | None = None,
) -> CriticSize | None:
    """Returns what a critic adds; None where that is a head at most, or not known.

    Args:
        model: config of the policy.
        sizes: of its training.
        named: config of the value model that the recipe names, where that is known.
        reward_model: see `scoring_model_of`.
    """
    if not has_critic(recipe):
        return None
    settings, model_args, empty = recipe.config, recipe.model_args, build_on_meta(model)
    kind = critic_of(settings, empty)
    if kind == "head":
        return None
    adapter, branch = get_peft_config(model_args), None
    if kind == "branch":
        branch = branch_layers(empty, settings.critic_layers)
    elif (start := _start(recipe, reward_model)).adapter is not None:
        adapter = adapter_config(start.adapter)
    elif start.reward_model is not None:
        return whole_value_model(start.reward_model.config, sizes)
    elif start.name is not None:
        return None if named is None else whole_value_model(named, sizes)
    elif adapter is None:
        return whole_value_model(model, sizes, own=count_copied(model)[0])
    own, shared = count_copied(model, adapter, layers=branch)
    return CriticSize(
        config=model,
        counts=count_parameters(model, model_args),
        layers=branch or model.get_text_config().num_hidden_layers,
        own=own,
        own_bytes=sizes.trainable_bytes,
        weight_bytes=sizes.weight_bytes,
        shared=shared,
    )


def whole_value_model(config: "PretrainedConfig", sizes: Sizes, *, own: int | None = None) -> CriticSize:
    """A value model that is trained whole, in float32 but where DeepSpeed casts it.

    Args:
        own: parameters of it; by default those of a sequence classifier.
    """
    counts = count_parameters(config, scores=own is None)
    halved = sizes.sharding.master_weights and sizes.weight_bytes == 2
    layers = config.get_text_config().num_hidden_layers
    return CriticSize(config, counts, layers, counts.total if own is None else own, 2.0 if halved else 4.0, 4.0)


def describe_critic(recipe: "Recipe", model: "PretrainedConfig", reward_model: RewardModel | None) -> str:
    """What a recipe's critic is, in words.

    Args:
        model: config of the policy.
    """
    settings, over, empty = recipe.config, ", as an adapter over the policy's base", build_on_meta(model)
    kind, lora = critic_of(settings, empty), recipe.model_args.use_peft
    if kind == "head":
        return "a linear head on the policy's trunk"
    if kind == "branch":
        layers = branch_layers(empty, settings.critic_layers)
        return f"own copies of the last {layers} layers{over if lora else ''}"
    start = _start(recipe, reward_model)
    shares = lora and (start.name is None or start.adapter is not None)
    return f"a value model, from {start.name or 'the policy'}{over if shares else ''}"


def _start(recipe: "Recipe", reward_model: RewardModel | None) -> Start:
    name = recipe.model_args.model_name_or_path
    return start_of(recipe.config, reward_model, name, adapted=recipe.model_args.use_peft)
