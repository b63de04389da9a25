"""The signs of a run that goes nowhere, on lines of logs written by hand: each seen, none seen in healthy ones."""

import pytest

from hpt_trl.runs.signs import KINDS, PATIENCE, PATIENCE_DRIFT, PATIENCE_TAUGHT, SIGNS, Watch

RL = {
    "reward": 0.5,
    "reward_std": 0.4,
    "frac_reward_zero_std": 0.2,
    "entropy": 0.6,
    "completions/mean_length": 20.0,
    "completions/clipped_ratio": 0.1,
    "grad_norm": 0.3,
    "loss": 0.1,
}
TAUGHT = {"reward_std": 0.0, "frac_reward_zero_std": 1.0}
FLAT = {"reward_std": 0.0, "frac_reward_zero_std": 1.0, "grad_norm": 0.0}


def seen(lines, watch=None) -> list[tuple[int, str]]:
    """Number of the log (from 1) and kind of each sign."""
    watch = watch or Watch()
    return [(number, found.kind) for number, line in enumerate(lines, 1) for found in watch.observe(line)]


def logs(count: int, **changes) -> list[dict]:
    return [RL | {key.replace("__", "/"): value for key, value in changes.items()}] * count


CASES = {
    "constant": (logs(40, **FLAT), [(PATIENCE, "constant_reward")]),
    "constant_but_not_quite": (logs(9, **FLAT) + logs(1) + logs(9, **FLAT), []),
    # Rewards differ between prompts, and so from log to log, but not among the completions of one.
    "no_contrast": (
        [RL | FLAT | {"reward": n / 50, "reward_std": 0.3} for n in range(40)],
        [(PATIENCE, "no_contrast")],
    ),
    "ppo_needs_no_contrast": (logs(40, frac_reward_zero_std=1.0, ppo__score=0.3), []),
    "ppo_needs_rewards": (logs(40, **FLAT, ppo__score=0.3), [(PATIENCE, "constant_reward")]),
    "taught": (logs(PATIENCE_TAUGHT - 1, **TAUGHT, hpt__sft_loss=0.4, hpt__sft_fraction=1.0), []),
    "taught_for_long": (
        logs(PATIENCE_TAUGHT, **TAUGHT, hpt__sft_loss=0.4, hpt__sft_fraction=1.0),
        [(PATIENCE_TAUGHT, "constant_reward")],
    ),
    "kl": (logs(5) + logs(5, kl=1.2), [(5 + PATIENCE_DRIFT, "kl")]),
    "kl_once_in_a_while": (logs(2, kl=5.0) + logs(1, kl=0.9) + logs(2, kl=5.0), []),
    "kl_below_zero": (logs(5, kl=-0.2), [(PATIENCE_DRIFT, "kl")]),
    # 20 tokens: a nat per token is 20 per completion.
    "ppo_kl": (logs(5, ppo__kl=19.0) + logs(5, ppo__kl=21.0), [(5 + PATIENCE_DRIFT, "kl")]),
    "entropy_low": (logs(40, entropy=0.001), [(PATIENCE, "entropy_low")]),
    "entropy_high": (logs(3) + logs(3, entropy=2.7), [(3 + PATIENCE_DRIFT, "entropy_high")]),
    "entropy_of_a_new_model": (logs(40, entropy=7.5), []),
    "entropy_of_no_rollouts": ([{"entropy": 0.0, "loss": 0.1, "grad_norm": 1.0}] * 40, []),
    "cut": (logs(40, completions__clipped_ratio=0.95), [(PATIENCE, "cut_completions")]),
    "cut_on_purpose": (
        logs(1, completions__clipped_ratio=1.0) + logs(40, completions__clipped_ratio=1.0, reward=0.95),
        [],
    ),
    "cut_in_an_environment": (logs(40, environment__cut=0.95), [(PATIENCE, "cut_completions")]),
    "ended_in_an_environment": (logs(40, environment__cut=0.0, completions__clipped_ratio=1.0), []),
    "dpo": ([{"rewards/margins": 0.0, "grad_norm": 0.0, "loss": 0.69}] * 12, [(PATIENCE, "no_margin")]),
    "dpo_begins": ([{"rewards/margins": 0.0}] + [{"rewards/margins": 1e-6}] * 30, []),
    "reward_model": ([{"margin": 0.0, "min_reward": 0.0, "grad_norm": 0.1}] * 12, [(PATIENCE, "no_margin")]),
    "no_gradient": ([{"grad_norm": 0.0, "loss": 1.0}] * 12, [(PATIENCE, "no_gradient")]),
    "healthy": (logs(200), []),
    "unknown_values": (logs(40, **FLAT | {"reward": None, "reward_std": float("nan"), "grad_norm": 1.0}), []),
    "held_out_lines_between": (
        [line for _ in range(PATIENCE) for line in (RL | FLAT, {"eval_reward": 1.0, "eval_loss": 0.1})],
        [(2 * PATIENCE - 1, "constant_reward")],
    ),
    "nothing": ([{}, {"loss": 1.0}, {"train_loss": 0.3}], []),
}


@pytest.mark.parametrize("case", CASES)
def test_signs(case):
    lines, expected = CASES[case]
    assert seen(lines) == expected


def test_what_is_said_has_the_figure_and_a_key_to_change():
    said = {}
    for lines, _ in CASES.values():
        watch = Watch()
        said |= {found.kind: found.message for line in lines for found in watch.observe(line)}
    assert set(said) == {sign.kind for sign in SIGNS} == set(KINDS) - {"no_supervised_tokens"}
    for message in said.values():
        assert message.startswith("in each of the last ") and ("`" in message or "rows" in message)
    assert "reward 0.5" in said["constant_reward"] and "95%" in said["cut_completions"]


def test_several_signs_are_said_each_once():
    lines = logs(40, **FLAT, kl=3.0, entropy=0.0)
    assert seen(lines) == [(3, "kl"), (PATIENCE, "constant_reward"), (PATIENCE, "entropy_low")]
