"""Dropping rows changes nothing: neither weights nor metrics, under any combination of the settings that meet there.

Each run is compared with the same one that drops nothing, and without demonstrations with TRL's own trainer.
"""

import itertools
from typing import Any

import pytest
import torch

from hpt_trl.methods.hybrid.dropping import add_demonstrations
from hpt_trl.rollouts.rows import Row
from tests.helpers import oracle
from tests.helpers.rollouts import (
    MIXED,
    FixedGRPO,
    FixedHPT,
    as_update,
    assert_same_update,
    rows,
    train,
    weights,
)

AXES: dict[str, tuple[Any, ...]] = {
    "loss_type": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "mask_truncated_completions": (False, True),
    "num_iterations": (1, 2),
    "beta": (0.0, 0.1),
    "strategy": ("no", "switch", "luffy", "srft"),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "no": {"unify_strategy": "no"},
    "switch": {"switch_gate": 0, "switch_gate_off": 1},
    "luffy": {"unify_strategy": "soft", "soft_table": "on_off"},
    "srft": {"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "srft"},
}
# What cannot be known of a rollout that was not computed, and what tells how much was.
OF_COMPUTED_ROWS = {"entropy", "vespo/phi_seq_mean", "hpt/rows_kept", "hpt/padding", "step_time"}
KINDS = ["fail", "mixed", "solve", "mixed"]


# Every pair of two axes' values is tried at once with these; the others run with the whole product.
OFTEN = AXES | {"loss_type": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "vespo")}


def every_pair() -> list[tuple[Any, ...]]:
    """Few combinations in which every two values of two axes meet, found greedily."""
    every = list(itertools.product(*OFTEN.values()))
    missing = set().union(*map(pairs_of, every))
    chosen = []
    while missing:
        best = max(every, key=lambda combination: len(missing & pairs_of(combination)))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


def pairs_of(combination: tuple[Any, ...]) -> set[tuple[Any, ...]]:
    numbered = list(enumerate(combination))
    return {(a, x, b, y) for (a, x), (b, y) in itertools.combinations(numbered, 2)}


PAIRS = every_pair()
REST = [c for c in itertools.product(*AXES.values()) if c not in PAIRS]


@pytest.mark.parametrize(
    "combination",
    [*PAIRS, *(pytest.param(c, marks=pytest.mark.slow) for c in REST)],
    ids=lambda c: "-".join(map(str, c)),
)
def test_dropping_changes_nothing(tiny_model_path, tmp_path, start, combination):
    settings = dict(zip(AXES, combination, strict=True))
    strategy = STRATEGIES[settings.pop("strategy")]
    # Two steps on one generation or on two; steps large enough that ratios are clipped.
    settings |= {"max_steps": 2, "learning_rate": 0.5, "kinds": KINDS}
    if settings["loss_type"] == "cispo":
        settings["epsilon_high"] = 1.05
    dropped = train(FixedHPT, tiny_model_path, tmp_path, **settings, **strategy)
    if strategy == STRATEGIES["no"]:
        same_run(dropped, train(FixedGRPO, tiny_model_path, tmp_path, **settings), start)
    else:
        same_run(
            dropped, train(FixedHPT, tiny_model_path, tmp_path, skip_dead_rows=False, **settings, **strategy), start
        )


def same_run(ours: Any, other: Any, start: dict) -> None:
    assert_same_update(weights(ours), weights(other), start, tolerance=5e-4)
    for one, two in zip(ours.state.log_history[:2], other.state.log_history[:2], strict=True):
        for name in (two.keys() & one.keys()) - OF_COMPUTED_ROWS:
            assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-5), name
        assert two.keys() - one.keys() <= OF_COMPUTED_ROWS


def test_clipping_is_counted_where_it_happens(tiny_model_path, tmp_path):
    """The comparison above is of numbers, not of zeros."""
    settings = {"max_steps": 2, "learning_rate": 0.5, "kinds": KINDS, "num_iterations": 2}
    for level in ("token", "sequence"):
        runs = [
            train(c, tiny_model_path, tmp_path, importance_sampling_level=level, **settings, **s)
            for c, s in ((FixedHPT, STRATEGIES["no"]), (FixedGRPO, {}))
        ]
        ours, stock = (run.state.log_history[1] for run in runs)
        assert stock["clip_ratio/region_mean"] > 0
        for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max"):
            assert ours[f"clip_ratio/{name}"] == pytest.approx(stock[f"clip_ratio/{name}"], rel=1e-3, abs=1e-6), name


# An entropy bonus, and what else keeps rows of equal rewards, needs neither gated rollouts nor masked ones.


def test_a_bonus_is_of_the_rollouts_that_are_trained(tiny_model_path, tmp_path, start):
    """All rows at once: GRPO and the mean entropy of trained groups, the demonstrations of the others."""

    def loss(prompts):
        trained = [p for p in prompts if p.solved > 0]
        entropies = torch.cat([rollout.entropy for p in trained for rollout in p.rollouts])
        total = oracle.grpo_rows(trained, oracle.Normalizer("grpo", prompts), lambda p: p.advantages())
        return total + oracle.token_mean_nll(prompts, lambda p: float(p.solved == 0)) - 0.5 * entropies.mean()

    expected = as_update(oracle.gradient(tiny_model_path, rows(MIXED), loss), start)
    for skip in (True, False):
        at_once = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "entropy_coef": 0.5}
        ours = train(FixedHPT, tiny_model_path, tmp_path, skip_dead_rows=skip, **at_once)
        assert_same_update(weights(ours), expected, start)
        # Three groups of four are gated; a group that is solved by all has advantage 0, and a bonus.
        assert ours.state.log_history[0]["hpt/rows_kept"] == ((32 - 12 + 3) / 32 if skip else (32 + 3) / 32)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "luspo", "cispo"])
@pytest.mark.parametrize("strategy", ["switch", "luffy"])
def test_leaving_gated_rollouts_out_changes_nothing(tiny_model_path, tmp_path, start, loss_type, strategy):
    settings = {"entropy_coef": 0.3, "max_steps": 2, "learning_rate": 0.5, "kinds": KINDS, "loss_type": loss_type}
    settings |= STRATEGIES[strategy] | {"mask_truncated_completions": loss_type == "grpo", "num_iterations": 2}
    if loss_type == "cispo":
        settings["epsilon_high"] = 1.05
    dropped, computed = (
        train(FixedHPT, tiny_model_path, tmp_path, skip_dead_rows=skip, **settings) for skip in (True, False)
    )
    kept = [run.state.log_history[0]["hpt/rows_kept"] for run in (dropped, computed)]
    assert kept[0] < kept[1] or strategy == "luffy"
    assert_same_update(weights(dropped), weights(computed), start, tolerance=5e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"entropy_coef": 0.001},
        {"entropy_coef": 0.001, "loss_type": "dapo", "num_iterations": 2, "max_steps": 2},
        {"beta": 0.1, "max_steps": 2},
        {"loss_type": "bnpo"},
        {"top_entropy_quantile": 0.5},
        {"use_adaptive_entropy": True, "entropy_coef": 0.01, "max_steps": 2},
        {},
    ],
    ids=lambda s: ",".join(s) or "all",
)
def test_rollouts_that_are_masked_altogether_are_not_computed(tiny_model_path, tmp_path, start, settings):
    """Every third of a group is cut, and has no token with a loss: stock GRPO computes it for nothing."""
    settings = {"mask_truncated_completions": True, "learning_rate": 0.5} | settings
    settings["reward"] = lambda completion_ids, **_: [float(len(ids) % 3) for ids in completion_ids]
    stock = train(FixedGRPO, tiny_model_path, tmp_path, **settings)
    ours = train(FixedHPT, tiny_model_path, tmp_path, switch_gate=-1, **settings)
    assert_same_update(weights(ours), weights(stock), start)
    (one, *_), (two, *_) = ours.state.log_history, stock.state.log_history
    assert one["hpt/rows_kept"] <= 0.5 and one["completions/clipped_ratio"] == two["completions/clipped_ratio"] == 0.5
    for name in two.keys() - OF_COMPUTED_ROWS:
        assert one[name] == pytest.approx(two[name], rel=2e-3, abs=1e-5, nan_ok=True), name


def row_of(tokens: int, prompt: int = 0) -> Row:
    ids = torch.zeros(tokens, dtype=torch.long)
    return Row(ids[:0], ids, torch.zeros(()), torch.ones_like(ids), prompt=prompt)


def test_demonstrations_go_where_they_widen_least():
    micros = [[row_of(50)] * 8, [row_of(10)], [row_of(20)] * 8]
    add_demonstrations(micros, [row_of(15, 1), row_of(300, 2), row_of(20, 3), row_of(280, 4)])
    lengths = [[len(row) for row in micro] for micro in micros]
    # Both long ones beside the one short row; the others where nothing gets wider.
    assert lengths == [[50] * 8, [10, 300, 280], [20] * 8 + [20, 15]]
