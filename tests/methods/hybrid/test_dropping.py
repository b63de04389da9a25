"""Dropping rows changes nothing: neither weights nor metrics, under any combination of the settings that meet there.

Each run is compared with the same one that drops nothing, and without demonstrations with TRL's own trainer.
"""

import itertools
from typing import Any

import pytest

from tests.helpers.rollouts import FixedGRPO, FixedHPT, assert_same_update, train, weights

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


def test_entropy_is_of_computed_rollouts_or_not_logged(tiny_model_path, tmp_path):
    """Where every rollout is dead nothing is known of it, and clipping is 0 as in the base."""
    ours = train(FixedHPT, tiny_model_path, tmp_path, kinds=["solve", "fail"], **STRATEGIES["no"]).state.log_history[0]
    stock = train(FixedGRPO, tiny_model_path, tmp_path, kinds=["solve", "fail"]).state.log_history[0]
    assert "entropy" in stock and "entropy" not in ours
    for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max"):
        assert ours[f"clip_ratio/{name}"] == stock[f"clip_ratio/{name}"] == 0.0
    # All rollouts alive: the base's entropy, but by tokens and not by micro-batches.
    alive = {"reward": lambda completion_ids, **_: [float(i) for i in range(len(completion_ids))]}
    alive |= {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
    ours, stock = (
        train(c, tiny_model_path, tmp_path, **alive, **s).state.log_history[0]
        for c, s in ((FixedHPT, STRATEGIES["no"]), (FixedGRPO, {}))
    )
    assert ours["entropy"] == pytest.approx(stock["entropy"], rel=1e-5)
