"""Settings of PPO."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of, share

KL_CONTROLLERS = ("fixed", "adaptive")
CRITICS = ("value_model", "branch", "head")
SCORE_NORMALIZATIONS = ("none", "prompt", "batch")
# The base's losses with PPO's clipped surrogate and a denominator that does not depend on how rows are sharded.
LOSS_TYPES = ("dapo", "grpo", "dr_grpo")


class _Single(int):
    """The number 1 that passes the base's check for at least two generations, which a learned critic does not need."""

    def __lt__(self, other: object) -> bool:
        return False


@dataclass
class PPOConfig(RolloutConfig):
    """`trl.GRPOConfig` with the settings of PPO with a learned critic (arXiv 1707.06347, 1909.08593, 2203.02155).

    The base's names keep their meaning: `num_iterations` are the PPO epochs over a generation batch, `epsilon` is the
    clip range of the surrogate, `generation_batch_size` the batch and the optimizer's batch the mini-batch.
    `docs/ppo.md` explains every metric.

    Raises:
        ValueError: a setting is out of its range; the message names the setting, the value and what is allowed.
    """

    num_generations: int | None = field(
        default=1, metadata={"help": "Completions per prompt; 1 is enough, since the baseline is the critic's."}
    )
    scale_rewards: str = field(
        default="none", metadata={"help": "Has no effect: the advantages are the critic's (see `whiten_advantages`)."}
    )
    kl_coef: float = field(
        default=0.05,
        metadata={
            "help": "Coefficient of the token reward -kl_coef * (log pi - log pi_ref); the first one of the adaptive "
            "controller. 0: no reference model."
        },
    )
    kl_controller: str = field(
        default="fixed", metadata={"help": "`fixed`, or `adaptive` (arXiv 1909.08593, section 2.2)."}
    )
    kl_target: float = field(
        default=6.0, metadata={"help": "`adaptive`: KL of a whole completion to steer to, in nats."}
    )
    kl_horizon: float = field(
        default=10_000.0, metadata={"help": "`adaptive`: completions over which the coefficient can change by 20 %."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "lambda of generalized advantage estimation."})
    critic_lam: float | None = field(
        default=None,
        metadata={
            "help": "lambda of the returns that the critic learns (arXiv 2503.01491: 1.0, so that they do not depend "
            "on what it says itself). By default `lam`."
        },
    )
    length_adaptive_alpha: float | None = field(
        default=None,
        metadata={
            "help": "The advantages' lambda is 1 - 1 / (alpha * l) for a completion of l tokens (arXiv 2504.05118: "
            "alpha 0.05), and `lam` the returns' alone. By default `lam` for all."
        },
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Mean 0 and variance 1 over the tokens of the global generation batch."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "How far a value may move from the rollout's before its loss is clipped."}
    )
    critic: str | None = field(
        default=None,
        metadata={
            "help": "`head`: a linear layer on the policy's trunk; `branch`: own copies of its last layers "
            "(`critic_layers`) and a head; `value_model`: a trunk and a head of its own. By default `value_model` "
            "where one is named, else `branch` where the model's layers can be copied, else `head`."
        },
    )
    critic_learning_rate: float | None = field(
        default=None,
        metadata={"help": "The critic's own learning rate, under the same schedule. By default the policy's."},
    )
    critic_layers: int | None = field(
        default=None,
        metadata={"help": "`branch`: how many of the last layers are copied. By default 2, or as many as there are."},
    )
    critic_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Generation batches at the beginning on which the critic alone is trained (arXiv 2503.01491)."
        },
    )
    critic_calibration: bool = field(
        default=False,
        metadata={
            "help": "Shift the critic's bias at the first generation batch, so that its mean is that of the returns: "
            "one that starts from a reward model begins biased."
        },
    )
    value_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "What `critic: value_model` starts from, e.g. the reward model's folder (its head is taken over). "
            "By default the reward model, where the rewards have one alone and it has the policy's vocabulary, else "
            "the policy, under a head of zeros."
        },
    )
    score_centering: str = field(
        default="none",
        metadata={
            "help": "Subtract the mean of the scores over the completions of a `prompt` or of the `batch`: a reward "
            "model's score may drift from prompt to prompt, since it was trained on differences only."
        },
    )
    score_scaling: str = field(
        default="none",
        metadata={"help": "Divide the centred scores by their standard deviation over the `prompt` or the `batch`."},
    )
    score_clip: float | None = field(default=None, metadata={"help": "Bound of the score's size, after scaling."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion that was cut at the length limit."}
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("kl_controller", *KL_CONTROLLERS),
        one_of("critic", *CRITICS),
        one_of("score_centering", *SCORE_NORMALIZATIONS),
        one_of("score_scaling", *SCORE_NORMALIZATIONS),
        one_of("loss_type", *LOSS_TYPES),
        one_of("importance_sampling_level", "token"),
        one_of("multi_objective_aggregation", "sum_then_normalize"),
        at_least(0, "kl_coef", "vf_coef", "missing_eos_penalty", "critic_warmup_steps"),
        at_least(1, "critic_layers"),
        above(0, "kl_target", "kl_horizon", "cliprange_value", "score_clip"),
        above(0, "critic_learning_rate", "length_adaptive_alpha"),
        share("gamma", "lam", "critic_lam"),
    )

    def __post_init__(self):
        single = self.num_generations == 1
        if single:
            self.num_generations = _Single(1)
        super().__post_init__()
        if single:
            self.num_generations = 1
        keep_to_rules(self)
        named = self.value_model_name_or_path
        if named is not None and self.critic in ("branch", "head"):
            raise ValueError(
                f"`critic` is {self.critic!r}, which has no trunk of its own, and `value_model_name_or_path` is "
                f"{named!r}; drop it, or write `critic: value_model`."
            )
        if self.critic is None and named is not None:
            self.critic = "value_model"
        elif self.critic is None and self.critic_layers is not None:
            self.critic = "branch"
        if self.beta != 0.0:
            raise ValueError(f"`beta` is {self.beta}; PPO's KL term is part of the reward: write `kl_coef`.")
        if self.sync_ref_model:
            raise ValueError("`sync_ref_model` is true; PPO's reference stays as it is: drop the key.")
        if single and "prompt" in (self.score_centering, self.score_scaling):
            key = "score_centering" if self.score_centering == "prompt" else "score_scaling"
            raise ValueError(f"`{key}` is 'prompt', which needs `num_generations` of at least 2; write 4, or 'batch'.")


def refuse_what_cannot_work(args: PPOConfig) -> None:
    """Find settings that cannot work before anything is loaded.

    Raises:
        ValueError: the first such setting, by its name.
    """
    if args.ddp_find_unused_parameters:
        raise ValueError(
            "`ddp_find_unused_parameters` is true; DDP would look for the critic in the model's output, where it is "
            "not. Drop the key."
        )
    if args.critic_warmup_steps and args.deepspeed_plugin is not None:
        raise ValueError(
            f"`critic_warmup_steps` is {args.critic_warmup_steps}; DeepSpeed's optimizer cannot leave the policy out "
            "of a step. Drop the key."
        )
