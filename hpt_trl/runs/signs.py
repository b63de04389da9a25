"""Signs in a training's log that it goes nowhere: a table of them, and what watches the log for them.

Nothing here knows a trainer: what goes in are the lines of a log, what comes out is what is to be said. A sign is said
once in a run. Each number below is a bound beyond which no healthy run of the recipes of this package has come for so
many logs in a row; docs/trackers.md has what was measured.

That a loss does not fall is no sign: in reinforcement learning it says nothing, and of a noisy loss nobody can say so
while it lasts.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Logs in a row. One log is a mean over `logging_steps` steps, and may be of one unlucky batch.
PATIENCE = 10
# Where demonstrations are trained on, rewards may stay the same until the first prompt is solved.
PATIENCE_TAUGHT = 30
# What gets worse by the step is said sooner.
PATIENCE_DRIFT = 3
# Nats per token to the reference model: at 1 the policy gives its own tokens on average e times the reference's
# probability. The highest of this package's recipes was 0.25.
KL_HIGH = 1.0
# An estimate of a divergence may be a little below 0 by chance, not by a tenth of a nat per token: then the tokens were
# not drawn by the policy that they are scored with.
KL_LOW = -0.1
# Nats per token: all completions of a prompt are the same text, so there is nothing to compare.
ENTROPY_LOW = 0.005
# Nats per token above the run's first log: the policy forgets what it could, and writes noise.
ENTROPY_RISE = 2.0
# Share of completions that are cut at their limit. Where a few words are all that is asked for, every completion is cut
# and rewards rise all the same: so it is a sign only while the reward stays within what it scattered by at first.
CUT = 0.9

Log = Mapping[str, Any]


class Warned(NamedTuple):
    """A sign that was seen: its kind and what is said of it, with the figure and the keys to change."""

    kind: str
    message: str


@dataclass(frozen=True)
class Sign:
    """A sign that a run goes nowhere.

    Attributes:
        kind: its name in `stop_on_warnings` and in the files.
        keys: metrics that a log must have to say anything of it.
        patience: logs in a row that must show it.
        shown: of the first log that had the keys and one of the last `patience`: whether it shows it.
        says: of the last log: what is wrong and what helps.
        within: kinds that say the same and more: where one of them was said, this is not.
        steady: metrics that must have been the same in all of these logs.
    """

    kind: str
    keys: tuple[str, ...]
    patience: int
    shown: Callable[[Log, Log], bool]
    says: Callable[[Log], str]
    within: tuple[str, ...] = ()
    steady: tuple[str, ...] = ()


def _taught(log: Log) -> bool:
    # A group without contrast has no advantage, but its demonstration or, by SRFT, its rollouts may be trained on.
    return any(log.get(f"hpt/{name}_loss") for name in ("sft", "off", "rl"))


def has_no_contrast(log: Log) -> bool:
    """Whether nothing is learnt from the rollouts of a log, as those of a prompt have the same reward."""
    # PPO's baseline is the critic: it needs no second completion of a prompt.
    return log["frac_reward_zero_std"] >= 1 and not _taught(log) and "ppo/score" not in log


def _rewards(log: Log) -> str:
    return f"reward {log['reward']:.3g}"


def _kl(log: Log) -> float:
    """Nats per token to the reference; GRPO logs them so, PPO the sum over a completion."""
    if "kl" in log:
        return float(log["kl"])
    return float(log["ppo/kl"] / max(log["completions/mean_length"], 1.0))


def _cut(log: Log) -> float:
    # A rollout in an environment ends by its turns; whether its last token is an end token says nothing.
    return float(log.get("environment/cut", log["completions/clipped_ratio"]))


_CONTRAST = (
    "without contrast there is no advantage, and nothing is learnt. Take easier or harder prompts, more "
    "`num_generations`, a higher `temperature`, or a reward that tells completions apart."
)
_ALWAYS_THE_SAME = (
    "every completion had the same reward ({reward}). Look at what the reward reads (its columns, the form of an "
    "answer) and at the completions (`log_completions: true`); take easier prompts, or a reward with more values."
)

SIGNS = (
    Sign(
        "constant_reward",
        ("reward", "reward_std"),
        PATIENCE,
        lambda first, log: log["reward_std"] == 0 and not _taught(log),
        lambda log: _ALWAYS_THE_SAME.format(reward=_rewards(log)),
        steady=("reward",),
    ),
    Sign(
        "constant_reward",
        ("reward", "reward_std", "hpt/sft_fraction"),
        PATIENCE_TAUGHT,
        lambda first, log: log["reward_std"] == 0,
        lambda log: _ALWAYS_THE_SAME.format(reward=_rewards(log)) + " Until then this is training on demonstrations.",
        steady=("reward",),
    ),
    Sign(
        "no_contrast",
        ("frac_reward_zero_std", "reward"),
        PATIENCE,
        lambda first, log: has_no_contrast(log),
        lambda log: (
            "all completions of every prompt had the same reward (frac_reward_zero_std 1, "
            f"{_rewards(log)}): {_CONTRAST}"
        ),
        within=("constant_reward",),
    ),
    Sign(
        "kl",
        ("kl",),
        PATIENCE_DRIFT,
        lambda first, log: not KL_LOW <= _kl(log) <= KL_HIGH,
        lambda log: _says_kl(log, "`beta`"),
    ),
    Sign(
        "kl",
        ("ppo/kl", "completions/mean_length"),
        PATIENCE_DRIFT,
        lambda first, log: not KL_LOW <= _kl(log) <= KL_HIGH,
        lambda log: _says_kl(log, "`kl_coef`"),
    ),
    Sign(
        "entropy_low",
        ("entropy", "completions/mean_length"),
        PATIENCE,
        lambda first, log: log["entropy"] < ENTROPY_LOW,
        lambda log: (
            f"the policy's entropy is {log['entropy']:.2g} nats per token (below {ENTROPY_LOW:g}): it writes one text "
            "for each prompt and tries nothing else. Lower `learning_rate`, raise `temperature`, `entropy_coef` or the "
            "KL term, or stop here where the task is solved."
        ),
    ),
    Sign(
        "entropy_high",
        ("entropy", "completions/mean_length"),
        PATIENCE_DRIFT,
        lambda first, log: log["entropy"] > first["entropy"] + ENTROPY_RISE,
        lambda log: (
            f"the policy's entropy has risen by more than {ENTROPY_RISE:g} nats per token since the first log, to "
            f"{log['entropy']:.3g}: it comes to write noise. Lower `learning_rate` or `entropy_coef`, or raise the KL "
            "term."
        ),
    ),
    Sign(
        "cut_completions",
        ("completions/clipped_ratio", "reward", "reward_std"),
        PATIENCE,
        lambda first, log: _cut(log) >= CUT and log["reward"] <= first["reward"] + first["reward_std"],
        lambda log: (
            f"{_cut(log):.0%} of the completions were cut at their limit before they ended, and the reward does not "
            f"rise ({_rewards(log)}): what they would have answered is not scored. Raise `max_completion_length` (in "
            "an environment `max_context_length` or `max_turns`), or see that the model ends its answers (its chat "
            "template, `eos_token`)."
        ),
    ),
    Sign(
        "no_margin",
        ("rewards/margins",),
        PATIENCE,
        lambda first, log: log["rewards/margins"] == 0,
        lambda log: (
            "policy and reference say the same of every pair (rewards/margins 0): nothing is learnt. Look whether "
            "`chosen` and `rejected` differ within `max_length`, and at `learning_rate`."
        ),
    ),
    Sign(
        "no_margin",
        ("margin", "min_reward"),
        PATIENCE,
        lambda first, log: log["margin"] == 0,
        lambda log: (
            "both answers of every pair have the same score (margin 0): nothing is learnt. Look whether `chosen` and "
            "`rejected` differ within `max_length`."
        ),
    ),
    Sign(
        "no_gradient",
        ("grad_norm",),
        PATIENCE,
        lambda first, log: log["grad_norm"] == 0,
        lambda log: (
            "the gradient was 0: the loss does not depend on what is trained. Look at the rows (do they have a token "
            "that is trained on?) and at what is frozen."
        ),
        within=("constant_reward", "no_contrast", "no_margin", "no_supervised_tokens"),
    ),
)
# Seen in the batches and not in the log; see `hpt_trl.runs.warned`.
NO_TOKENS = "no_supervised_tokens"
KINDS = tuple(dict.fromkeys([*(sign.kind for sign in SIGNS), NO_TOKENS]))


def _says_kl(log: Log, key: str) -> str:
    value = _kl(log)
    if value < 0:
        return (
            f"the KL to the reference is {value:.2g} nats per token, below 0: completions were not drawn by the policy "
            "that scores them. Look at `top_p`, `top_k` and `temperature`, and with vLLM at its correction."
        )
    return (
        f"the KL to the reference is {value:.2g} nats per token (above {KL_HIGH:g}): the policy has left what the "
        f"reference writes, and a learnt reward is not to be trusted there. Raise {key}, or lower `learning_rate`."
    )


class Watch:
    """Watches the lines of a log for the signs; each kind is said once."""

    def __init__(self, signs: Sequence[Sign] = SIGNS):
        self._signs = signs
        self._first: list[Log | None] = [None] * len(signs)
        self._last: list[deque[Log]] = [deque(maxlen=sign.patience) for sign in signs]
        self.said: set[str] = set()

    def observe(self, log: Log) -> list[Warned]:
        """Takes a line of the log; returns what is to be said now."""
        found = []
        for place, sign in enumerate(self._signs):
            if not all(_is_number(log.get(key)) for key in sign.keys):
                continue
            first = self._first[place] = self._first[place] or log
            last = self._last[place]
            last.append(log)
            if sign.kind in self.said or self.said.intersection(sign.within) or len(last) < sign.patience:
                continue
            if all(sign.shown(first, line) for line in last) and _are_steady(last, sign.steady):
                self.said.add(sign.kind)
                found.append(Warned(sign.kind, f"{_lasting(sign.patience)}{sign.says(log)}"))
        return found


def _lasting(logs: int) -> str:
    return f"in each of the last {logs} logs "


def _are_steady(logs: Sequence[Log], keys: tuple[str, ...]) -> bool:
    return all(math.isclose(log[key], logs[0][key], rel_tol=1e-6) for key in keys for log in logs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
