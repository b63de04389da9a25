"""Every loss in an environment against a float64 oracle that renders each turn's conversation anew."""

import pytest

from tests.helpers import oracle
from tests.helpers.acted import room_rows, start_of, train
from tests.helpers.acted_oracle import Oracle, grpo
from tests.helpers.rollouts import as_update, assert_same_update, weights

TOLERANCE = 1e-4


class Oracles:
    """Oracles and start weights of the models, each computed once."""

    def __init__(self, paths):
        self.paths, self._known, self._starts = paths, {}, {}

    def of(self, model, rows, max_images):
        key = model, str(rows), max_images
        if key not in self._known:
            self._known[key] = Oracle(self.paths[model], room_rows(**rows), max_images)
        return self._known[key]

    def start(self, model):
        if model not in self._starts:
            self._starts[model] = start_of(self.paths[model])
        return self._starts[model]


@pytest.fixture(scope="module")
def oracles(vlm_path, qwen_path, tiny_model_path):
    return Oracles({"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path})


@pytest.fixture
def compare(oracles, tmp_path):
    """Trains one step and holds the update against minus the gradient of a loss of all prompts."""

    def compare(loss, trainer="hpt", model="idefics", rows=None, limits=None, **settings):
        rows, limits = rows or {}, limits or {}
        ours = train(trainer, oracles.paths[model], tmp_path, rows=rows, limits=limits, **settings)
        expected = oracles.of(model, rows, limits.get("max_images")).gradient(loss)
        start = oracles.start(model)
        assert_same_update(weights(ours), as_update(expected, start), start, TOLERANCE)
        return ours

    return compare


FOLDED = {"max_images": 1}
CASES = [
    ("idefics", {}, "grpo", {}),
    ("idefics", FOLDED, "dapo", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}),
    ("idefics", FOLDED, "dr_grpo", {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}),
    ("qwen", {}, "dr_grpo", {}),
    ("qwen", FOLDED, "grpo", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
    ("text", {}, "dapo", {}),
]


@pytest.mark.parametrize("model,limits,loss_type,settings", CASES)
def test_grpo(compare, model, limits, loss_type, settings):
    compare(lambda prompts: grpo(prompts, loss_type), "grpo", model, limits=limits, loss_type=loss_type, **settings)


@pytest.mark.parametrize(
    "normalization,model,limits,loss_type,settings",
    [("prompt" if place % 2 else "token", *case) for place, case in enumerate(CASES)],
)
def test_hpt(compare, normalization, model, limits, loss_type, settings):
    """A group that fails learns from its trajectory: cross-entropy on the assistant's turns as it was played."""

    def loss(prompts):
        rl = grpo(prompts, loss_type, among=lambda p: p.solved > 0)
        if normalization == "token":
            return rl + oracle.token_mean_nll(prompts, lambda p: float(p.solved == 0))
        return rl + sum(-p.demonstration.logp.mean() for p in prompts if p.solved == 0) / len(prompts)

    trainer = compare(
        loss,
        "hpt",
        model,
        limits=limits,
        loss_type=loss_type,
        sft_loss_normalization=normalization,
        **settings,
    )
    assert 0 < trainer.state.log_history[0]["hpt/sft_fraction"] < 1


def test_prompts_with_images_of_their_own(compare):
    """They are never folded away, and the newest door stays beside them."""
    compare(
        lambda prompts: (
            grpo(prompts, "grpo", among=lambda p: p.solved > 0)
            + oracle.token_mean_nll(prompts, lambda p: float(p.solved == 0))
        ),
        rows={"images": True},
        limits={"max_images": 2},
    )


@pytest.mark.parametrize("trainer", ["grpo", "hpt"])
@pytest.mark.parametrize("model,limits,loss_type", [("idefics", FOLDED, "grpo"), ("text", {}, "dapo")])
def test_cut_rollouts_are_masked(compare, trainer, model, limits, loss_type):
    def loss(prompts):
        among = (lambda p: p.solved > 0) if trainer == "hpt" else (lambda p: True)
        sft = oracle.token_mean_nll(prompts, lambda p: float(p.solved == 0)) if trainer == "hpt" else 0.0
        assert any(r.cut for p in prompts if among(p) for r in p.rollouts)
        return grpo(prompts, loss_type, masks_cut=True, among=among) + sft

    compare(loss, trainer, model, limits=limits, loss_type=loss_type, mask_truncated_completions=True)


@pytest.mark.parametrize("trainer", ["grpo", "hpt"])
@pytest.mark.parametrize(
    "model,limits,settings,steps",
    [
        # From the second step on the model has left its reference.
        ("idefics", FOLDED, {"beta": 0.2}, [0, 1]),
        # Rollouts are trained twice: the second time the ratios are not 1.
        ("qwen", FOLDED, {"num_iterations": 2}, [0, 0]),
        ("text", {}, {"num_iterations": 2, "beta": 0.2}, [0, 0, 2]),
    ],
    ids=["kl", "iterations", "kl-iterations"],
)
def test_several_steps(oracles, tmp_path, trainer, model, limits, settings, steps):
    def loss(prompts):
        if trainer == "grpo":
            return grpo(prompts, "grpo", beta=settings.get("beta", 0.0))
        rl = grpo(prompts, "grpo", among=lambda p: p.solved > 0)
        # Rollouts of a prompt that learns from its trajectory keep their distance to the reference.
        rl = rl + grpo(prompts, "grpo", beta=settings.get("beta", 0.0)) - grpo(prompts, "grpo")
        return rl + oracle.token_mean_nll(prompts, lambda p: float(p.solved == 0))

    rate = {"learning_rate": 0.3}
    ours = train(trainer, oracles.paths[model], tmp_path, limits=limits, max_steps=len(steps), **rate, **settings)
    expected = oracles.of(model, {}, limits.get("max_images")).trained(loss, steps, **rate)
    assert_same_update(weights(ours), expected, oracles.start(model), TOLERANCE)


# The family of methods.


@pytest.mark.parametrize("reward", [1.0, "graded"])
@pytest.mark.parametrize("model,limits", [("idefics", FOLDED), ("text", {})])
def test_luffy(compare, oracles, model, limits, reward):
    """Advantages over rollouts and trajectory together; the trajectory is graded by what its own episode came to."""

    def loss(prompts):
        fixed = None if reward == "graded" else reward
        normalizer = oracle.Normalizer("dapo", prompts)
        total = oracle.grpo_rows(prompts, normalizer, lambda p: p.union(reward=fixed)[0])
        return total + sum(oracle.off_policy(p, normalizer, p.union(reward=fixed)[1]) for p in prompts)

    trainer = compare(
        loss,
        model=model,
        limits=limits,
        loss_type="dapo",
        unify_strategy="soft",
        soft_table="on_off",
        demonstration_reward=reward,
    )
    log = trainer.state.log_history[0]
    if reward == "graded":
        graded = [p.demonstration_reward for p in oracles.of(model, {}, limits.get("max_images")).prompts(0)]
        assert len(set(graded)) == 2 and log["hpt/demonstration_reward"] == pytest.approx(sum(graded) / len(graded))


def test_srft(compare):
    def loss(prompts):
        return oracle.srft(prompts, oracle.Normalizer("grpo", prompts), lambda prompt, member: True)

    settings = {"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "srft"}
    compare(loss, limits=FOLDED, demonstration_reward=1.0, **settings)


def test_chord(compare):
    def loss(prompts):
        def phi(prompt):
            p = prompt.demonstration.logp.detach().exp()
            return p * (1 - p)

        return 0.2 * grpo(prompts, "grpo") + 0.8 * oracle.token_mean_nll(prompts, phi)

    settings = {"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "chord", "chord_mu": 0.8}
    compare(loss, limits=FOLDED, **settings)
