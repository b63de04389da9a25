"""What trainers on rollouts log by the base's names, where they drop rollouts or deal them to other micro-batches."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpt_trl.rollouts.rows import unpad
from tests.helpers import oracle
from tests.helpers.rollouts import MIXED, FixedGRPO, FixedHPT, FixedPPO, rows, train

CLIPPED = [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")]
# Two optimizer steps on one generation, the second of which clips; of several micro-batches each.
TWICE = {"max_steps": 2, "num_iterations": 2, "learning_rate": 0.5}
# No two rewards of a group are equal.
ALIVE = {"reward": lambda completion_ids, **_: [float(i) for i in range(len(completion_ids))]}
UNSCORED = {"reward": lambda completion_ids, **_: [None] * len(completion_ids)}


@pytest.fixture
def logs(tiny_model_path, tmp_path):
    def run(trainer_class, **settings):
        history = train(trainer_class, tiny_model_path, tmp_path, **TWICE | settings).state.log_history
        return [json.loads(json.dumps(line, allow_nan=False)) for line in history if "train_runtime" not in line]

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "dapo", "beta": 0.1},
        {"loss_type": "cispo", "epsilon_high": 1.05},
        {"loss_type": "vespo"},
    ],
    ids=lambda settings: settings["loss_type"],
)
def test_all_of_grpo_is_logged_where_no_rollout_is_dropped(logs, settings):
    settings = settings | ALIVE
    ours, stock = logs(FixedHPT, unify_strategy="no", **settings), logs(FixedGRPO, **settings)
    assert "entropy" in stock[0] and any(
        stock[1].get(name) for name in (*CLIPPED, "cispo_clip_ratio", "vespo/phi_seq_mean")
    )
    for one, two in zip(ours, stock, strict=True):
        assert two.keys() <= one.keys()
        for name in two.keys() - {"step_time"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("strategy", "loss_type"),
    [({"unify_strategy": "no"}, "grpo"), ({}, "vespo"), ({"unify_strategy": "soft"}, "grpo")],
    ids=["no", "switch", "soft"],
)
def test_no_name_is_missing_where_every_rollout_is_dropped(logs, strategy, loss_type):
    """Nothing is known of a rollout that was not computed; clipping is 0, as in the base."""
    settings = {"kinds": ["fail", "solve"], "loss_type": loss_type}
    ours, stock = logs(FixedHPT, **settings, **strategy), logs(FixedGRPO, **settings)
    for one, two in zip(ours, stock, strict=True):
        assert two.keys() <= one.keys()
        assert one["entropy"] is None and two["entropy"] > 0
        for name in two.keys() & {*CLIPPED}:
            assert one[name] == two[name] == 0.0


def test_entropy_is_that_of_the_computed_rollouts(logs, tiny_model_path):
    found = []

    def of_trained_groups(prompts):
        trained = [rollout.entropy for p in prompts if 0 < p.solved < len(p.rollouts) for rollout in p.rollouts]
        found.append(torch.cat(trained).mean())
        return found[0]

    oracle.gradient(tiny_model_path, rows(MIXED), of_trained_groups)
    ours = logs(FixedHPT, unify_strategy="no", per_device_train_batch_size=32, gradient_accumulation_steps=1)
    assert ours[0]["entropy"] == pytest.approx(found[0].item(), rel=1e-5)
    assert ours[0]["hpt/rows_kept"] < 1


class Noted(FixedPPO):
    """Notes the micro-batches as the base would train them."""

    def _prepare_inputs(self, generation_batch):
        def rows_of(batch):
            self.noted.append(unpad(batch))
            return plain(batch)

        self.noted, plain = [], self._rows_of
        self._rows_of = rows_of
        try:
            return super()._prepare_inputs(generation_batch)
        finally:
            self._rows_of = plain
            self.first = getattr(self, "first", None) or self.noted[1:]


PPO = {"num_generations": 2, "loss_type": "dapo", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}


@pytest.mark.parametrize("masks", [False, True])
def test_ppo_logs_entropy_by_the_micro_batches_of_the_base(tiny_model_path, tmp_path, masks):
    trainer = train(Noted, tiny_model_path, tmp_path, **TWICE, **PPO, mask_truncated_completions=masks)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float64)
    means = []
    for of_micro in trainer.first:
        found = []
        for row in of_micro:
            with torch.no_grad():
                logits = model(torch.cat([row.prompt_ids, row.completion_ids])[None]).logits[0]
            logps = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            found.append(-(logps.exp() * logps).sum(-1)[row.completion_mask.bool()])
        means.append(torch.cat(found).mean())
    assert len(means) == 8 and any(map(math.isnan, means)) == masks
    first, second = trainer.state.log_history[:2]
    assert first["entropy"] == pytest.approx(torch.stack(means).nanmean().item(), rel=1e-5)
    assert [first[name] for name in CLIPPED] == [0.0] * 5
    assert second["clip_ratio/region_mean"] > 0 and second["clip_ratio/high_max"] <= 1


def test_ppo_logs_what_grpo_logs(logs):
    ours, stock = logs(FixedPPO, **PPO), logs(FixedGRPO, **PPO)
    for one, two in zip(ours, stock, strict=True):
        assert two.keys() <= one.keys()
        for name in two:
            if name.startswith(("completions/", "reward", "frac_")):
                assert one[name] == two[name]


def test_ppo_at_once_has_the_entropy_of_grpo(logs):
    at_once = PPO | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    ours, stock = logs(FixedPPO, **at_once), logs(FixedGRPO, **at_once)
    assert ours[0]["entropy"] == pytest.approx(stock[0]["entropy"], rel=1e-6)


def test_ppo_of_rollouts_that_teach_nothing(logs):
    """No name is missing, and nothing is said of scores and tokens that there are none of; the KL coefficient stays."""
    known = logs(FixedPPO, **PPO, kl_controller="adaptive")
    none = logs(FixedPPO, **PPO, **UNSCORED, kl_controller="adaptive")
    for one, two in zip(none, known, strict=True):
        assert one.keys() >= {name for name in two if not name.startswith("rewards/")}
        for name in ("entropy", "ppo/ratio", "ppo/clipfrac", "ppo/value_loss"):
            assert one[name] is None and two[name] is not None
    for name in ("score", "kl", "non_score_reward", "returns_mean", "values_mean", "explained_variance"):
        assert none[0][f"ppo/{name}"] is None and known[0][f"ppo/{name}"] is not None
    assert none[0]["ppo/kl_coef"] == known[0]["ppo/kl_coef"]
