"""Settings of PPO."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of, share

KL_CONTROLLERS = ("fixed", "adaptive")
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
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Mean 0 and variance 1 over the tokens of the global generation batch."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "How far a value may move from the rollout's before its loss is clipped."}
    )
    value_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A separate value model, e.g. the reward model's folder (its head is taken over). By default a "
            "value head on the policy's own trunk, which costs no forward pass."
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
        one_of("score_centering", *SCORE_NORMALIZATIONS),
        one_of("score_scaling", *SCORE_NORMALIZATIONS),
        one_of("loss_type", *LOSS_TYPES),
        one_of("importance_sampling_level", "token"),
        one_of("multi_objective_aggregation", "sum_then_normalize"),
        at_least(0, "kl_coef", "vf_coef", "missing_eos_penalty"),
        above(0, "kl_target", "kl_horizon", "cliprange_value", "score_clip"),
        share("gamma", "lam"),
    )

    def __post_init__(self):
        single = self.num_generations == 1
        if single:
            self.num_generations = _Single(1)
        super().__post_init__()
        if single:
            self.num_generations = 1
        keep_to_rules(self)
        if self.beta != 0.0:
            raise ValueError(f"`beta` is {self.beta}; PPO's KL term is part of the reward: write `kl_coef`.")
        if self.sync_ref_model:
            raise ValueError("`sync_ref_model` is true; PPO's reference stays as it is: drop the key.")
        if single and "prompt" in (self.score_centering, self.score_scaling):
            key = "score_centering" if self.score_centering == "prompt" else "score_scaling"
            raise ValueError(f"`{key}` is 'prompt', which needs `num_generations` of at least 2; write 4, or 'batch'.")
