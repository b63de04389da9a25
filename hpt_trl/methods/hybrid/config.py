"""Settings of Hybrid Post-Training."""

import json
import math
from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.methods.hybrid.estimator import RESHAPES
from hpt_trl.methods.hybrid.gate import OFFLINE_LOSS_TYPES, UNIFY_STRATEGIES, read_soft_table
from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of, share


@dataclass
class HybridPostConfig(RolloutConfig):
    """`trl.GRPOConfig` with the settings of Hybrid Post-Training (HPT, arXiv 2509.04419).

    Every prompt gets `num_generations` rollouts, of which in `solved` ones the `success_reward` reaches
    `success_threshold`. The strategy turns that number into three coefficients: of the rollouts (on-policy RL), of the
    demonstration as off-policy RL, and of the demonstration as supervised learning. `docs/hybrid.md` gives the settings
    of each published method.

    Raises:
        ValueError: a setting is out of its range; the message names the setting, the value and what is allowed.
    """

    unify_strategy: str = field(
        default="switch",
        metadata={
            "help": "How rollouts and demonstrations are combined: `switch` (a gate per prompt, HPT eq. 10), `soft` "
            "(coefficients from `soft_table`) or `no` (rollouts only: GRPO)."
        },
    )
    switch_gate: int = field(
        default=0,
        metadata={
            "help": "`switch`: a prompt with at most this many solved rollouts is trained on its demonstration instead "
            "of its rollouts; -1 never, `num_generations` always."
        },
    )
    switch_gate_off: int | None = field(
        default=None,
        metadata={
            "help": "`switch`: a prompt above `switch_gate` with at most this many solved rollouts is trained by "
            "off-policy RL on its demonstration instead of its rollouts."
        },
    )
    success_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward that decides what is solved; by default the first. All rewards are trained on."
        },
    )
    success_threshold: float = field(
        default=1.0, metadata={"help": "A rollout whose `success_reward` is at least this is solved."}
    )
    soft_table: dict | str | None = field(
        default="type_0",
        metadata={
            "help": "`soft`: solved share -> [on-policy, off-policy, SFT] coefficients, linear in between; or a name: "
            "`type_0`, `type_1`, `type_2` (the official tables), `on_off` and `on_sft` (both terms for every prompt)."
        },
    )
    sft_loss_coef: float = field(
        default=1.0, metadata={"help": "Factor of the supervised term (cross-entropy), not of an off-policy one."}
    )
    sft_loss_normalization: str = field(
        default="token",
        metadata={
            "help": "Denominator of the supervised term, global over the optimizer step: `token` (the demonstration "
            "tokens: its weight does not depend on how many prompts are gated, as in the official code) or `prompt` "
            "(the mean over each demonstration's tokens, averaged over all prompts: HPT eq. 10 and 12)."
        },
    )
    offline_loss_type: str = field(
        default="sft",
        metadata={
            "help": "Loss of a demonstration that a gate or the table's SFT column calls for: `sft` (cross-entropy), "
            "`off_policy` (LUFFY), `srft` or `chord`. `srft` also replaces the loss of the rollouts, `chord` scales it."
        },
    )
    off_policy_reshape: str = field(
        default="p_div_p",
        metadata={
            "help": "Shaping f(p) of the off-policy term: `p_div_p` (p/(p+gamma), LUFFY), `no_reshape` (p), `logp`, "
            "`p_logp`, `square_root` or `pow`."
        },
    )
    off_policy_reshape_gamma: float = field(
        default=0.1, metadata={"help": "gamma of `p_div_p`; the exponent of `pow`; the weight of log p in `p_logp`."}
    )
    chord_mu: float = field(
        default=0.9, metadata={"help": "`chord`: weight of the SFT term at the first step; RL weighs one minus it."}
    )
    chord_mu_final: float = field(default=0.05, metadata={"help": "`chord`: weight of the SFT term after the decay."})
    chord_mu_decay_steps: int = field(
        default=200,
        metadata={
            "help": "`chord`: optimizer steps over which the weight falls linearly; a generation batch keeps its own."
        },
    )
    demonstration_reward: float | str = field(
        default="graded",
        metadata={
            "help": "Reward of a demonstration among the rollouts of its prompt (off-policy terms): `graded`, by the "
            "run's own rewards as a rollout is, or a number."
        },
    )
    demonstration_column: str = field(
        default="completion",
        metadata={"help": "Column of the demonstrations: text, or messages where the prompt is conversational."},
    )
    max_demonstration_length: int | None = field(
        default=None,
        metadata={"help": "Longest demonstration in tokens; a longer one is cut, its end-of-sequence token is kept."},
    )
    on_missing_demonstration: str = field(
        default="error",
        metadata={"help": "A row without demonstration: `error`, or `rl` (the prompt is always trained by RL)."},
    )
    skip_dead_rows: bool = field(
        default=True,
        metadata={
            "help": "Compute neither rollouts that carry no gradient nor padding, wherever that is exact. With `false` "
            "every rollout is computed; a micro-batch without demonstrations goes through the stock step unchanged."
        },
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        one_of("unify_strategy", *UNIFY_STRATEGIES),
        one_of("offline_loss_type", *OFFLINE_LOSS_TYPES),
        one_of("off_policy_reshape", *RESHAPES),
        one_of("sft_loss_normalization", "token", "prompt"),
        one_of("on_missing_demonstration", "error", "rl"),
        at_least(0, "sft_loss_coef"),
        at_least(1, "chord_mu_decay_steps", "max_demonstration_length"),
        share("chord_mu", "chord_mu_final"),
        above(0, "off_policy_reshape_gamma"),
        Rule(("switch_gate",), "-1 (never) to `num_generations` (always)", least=-1, most_of="num_generations"),
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.soft_table, str) and self.soft_table.lstrip().startswith("{"):
            try:
                self.soft_table = json.loads(self.soft_table)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`soft_table` is {self.soft_table!r}, no JSON ({error.msg}); write the shares in quotes, e.g. "
                    '{"0": [0, 0, 1], "1": [1, 0, 0]}.'
                ) from error
        read_soft_table(self.soft_table)
        group = self.num_generations
        keep_to_rules(self)
        if self.switch_gate_off is not None and not self.switch_gate < self.switch_gate_off <= group:
            raise ValueError(
                f"`switch_gate_off` is {self.switch_gate_off}; allowed: above `switch_gate` ({self.switch_gate}) and "
                f"at most {group} (`num_generations`), or leave it out."
            )
        if self.demonstration_reward != "graded":
            self.demonstration_reward = _number(self.demonstration_reward)

    @property
    def asks_for_no_padding(self) -> bool:
        # Who keeps dead rows asks for the base's arithmetic, bit for bit.
        return self.skip_dead_rows if self.padding_free is None else self.padding_free

    @property
    def uses_demonstrations(self) -> bool:
        """Whether any number of solved rollouts can call for a demonstration."""
        if self.unify_strategy == "switch":
            return self.switch_gate >= 0 or self.switch_gate_off is not None
        return self.unify_strategy == "soft"

    @property
    def uses_union(self) -> bool:
        """Whether any demonstration can have an advantage among the rollouts of its prompt."""
        if not self.uses_demonstrations:
            return False
        for_sft = self.offline_loss_type in ("off_policy", "srft")
        if self.unify_strategy == "soft":
            return any(off or (for_sft and sft) for _, (_, off, sft) in read_soft_table(self.soft_table))
        return self.switch_gate_off is not None or (for_sft and self.switch_gate >= 0)


def _number(value: float | str | None) -> float:
    """The reward of all demonstrations; text is what a command line hands over."""
    try:
        number = float("nan" if value is None else value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"`demonstration_reward` is {value!r}; allowed: `graded`, or a number, which every demonstration gets."
        )
    return number
