"""PPO's arithmetic against loops in float64, written from the papers' equations."""

import math

import pytest
import torch

from hpt_trl.methods.ppo.estimator import (
    KLController,
    advantages_and_returns,
    explained_variance,
    generalized_advantages,
    length_adaptive_lam,
    mean_error,
    normalized_scores,
    token_rewards,
    value_loss,
    whiten,
)

# The second row's tokens 2 and 3 are a tool's, its last two are padding; the third row has no own token.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.float32)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own_positions(row: int) -> list[int]:
    return MASK[row].nonzero().flatten().tolist()


def test_the_score_sits_on_the_last_own_token():
    logps, reference = random(3, 6, seed=0), random(3, 6, seed=1)
    rewards = token_rewards(logps, reference, MASK, torch.tensor([2.0, -1.0, 5.0]), kl_coef=0.3)
    for row, score in ((0, 2.0), (1, -1.0)):
        places = own_positions(row)
        for t in range(6):
            expected = 0.0
            if t in places:
                expected = -0.3 * (float(logps[row, t]) - float(reference[row, t])) + score * (t == places[-1])
            assert float(rewards[row, t]) == pytest.approx(expected, abs=1e-6)
    assert not rewards[2].any()
    assert torch.equal(token_rewards(logps, None, MASK, torch.zeros(3), 0.3), torch.zeros(3, 6))


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_sums_of_discounted_errors(gamma, lam):
    rewards, values = random(3, 6, seed=2) * MASK, random(3, 6, seed=3)
    advantages, returns = generalized_advantages(rewards, values, MASK, gamma, lam)
    for row in range(3):
        places = own_positions(row)
        v = [float(values[row, t]) for t in places] + [0.0]
        # The tool's tokens are crossed at once: the next state of an own token is the next own token.
        deltas = [float(rewards[row, t]) + gamma * v[k + 1] - v[k] for k, t in enumerate(places)]
        for k, t in enumerate(places):
            expected = sum((gamma * lam) ** (m - k) * deltas[m] for m in range(k, len(places)))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[row, t]) == pytest.approx(expected + v[k], abs=1e-5)
    assert not advantages[MASK == 0].any()
    assert not returns[MASK == 0].any()


def test_advantages_do_not_depend_on_what_a_tool_wrote():
    rewards, values = random(3, 6, seed=4) * MASK, random(3, 6, seed=5)
    same = values + 100 * (1 - MASK)
    plain, other = (generalized_advantages(rewards, v, MASK, 0.97, 0.9)[0] for v in (values, same))
    assert torch.equal(plain, other)


def test_gae_at_lambda_one_is_the_monte_carlo_return():
    rewards, values = random(3, 6, seed=6) * MASK, random(3, 6, seed=7)
    _, returns = generalized_advantages(rewards, values, MASK, 1.0, 1.0)
    assert torch.allclose(returns[0], rewards[0].flip(0).cumsum(0).flip(0), atol=1e-5)


def sums_of_errors(rewards: torch.Tensor, values: torch.Tensor, row: int, gamma: float, lam: float) -> list[float]:
    """The advantages of a row's own tokens: each a sum over what comes after it."""
    places = own_positions(row)
    v = [float(values[row, t]) for t in places] + [0.0]
    deltas = [float(rewards[row, t]) + gamma * v[k + 1] - v[k] for k, t in enumerate(places)]
    return [
        sum((gamma * lam) ** (m - k) * deltas[m] for m in range(k, len(places))) if places else 0.0
        for k in range(len(places))
    ]


@pytest.mark.parametrize("critic_lam", [None, 1.0, 0.3])
@pytest.mark.parametrize("alpha", [None, 0.4, 0.05])
def test_actor_and_critic_have_a_lambda_each(critic_lam, alpha):
    """The second row has two own tokens: at alpha 0.4 and 0.05 its lambda is 0, the first's 1 - 1 / 2.4 and 0."""
    rewards, values = random(3, 6, seed=2) * MASK, random(3, 6, seed=3)
    advantages, returns = advantages_and_returns(rewards, values, MASK, 0.9, 0.8, critic_lam, alpha)
    for row in range(3):
        places = own_positions(row)
        lam = 0.8 if alpha is None else max(0.0, 1 - 1 / (alpha * max(len(places), 1)))
        of_actor = sums_of_errors(rewards, values, row, 0.9, lam)
        of_critic = sums_of_errors(rewards, values, row, 0.9, 0.8 if critic_lam is None else critic_lam)
        for t, one, other in zip(places, of_actor, of_critic, strict=True):
            assert float(advantages[row, t]) == pytest.approx(one, abs=1e-5)
            assert float(returns[row, t]) == pytest.approx(other + float(values[row, t]), abs=1e-5)
    assert not advantages[MASK == 0].any() and not returns[MASK == 0].any()


def test_without_a_lambda_of_its_own_nothing_changes():
    rewards, values = random(3, 6, seed=2) * MASK, random(3, 6, seed=3)
    ours, plain = advantages_and_returns(rewards, values, MASK, 0.9, 0.8), (0.9, 0.8)
    for one, other in zip(ours, generalized_advantages(rewards, values, MASK, *plain), strict=True):
        assert torch.equal(one, other)


def test_the_way_of_the_reward_is_as_long_as_the_completion():
    """The paper's condition: sum_t lambda^t over all t is alpha l."""
    mask = torch.zeros(2, 400)
    mask[0, :400] = mask[1, :100] = 1
    lam = length_adaptive_lam(mask, 0.05).double()
    assert (1 / (1 - lam)).tolist() == pytest.approx([20.0, 5.0], rel=1e-5)
    assert length_adaptive_lam(torch.ones(1, 10), 0.05).tolist() == [0.0]


def test_the_bias_is_over_the_tokens_of_all_processes():
    values, returns = random(3, 6, seed=3), random(3, 6, seed=4) + 2
    own = MASK > 0
    here = torch.stack([(returns - values)[own].sum(), own.sum()])
    elsewhere = torch.tensor([7.0, 4.0])
    expected = float((here + elsewhere)[0] / (here + elsewhere)[1])
    assert float(mean_error(values, returns, MASK, lambda local: local + elsewhere)) == pytest.approx(expected)
    assert float(mean_error(values, returns, torch.zeros(3, 6), lambda local: local)) == 0.0


def test_whitening_is_over_the_tokens_of_all_processes():
    values = 3 * random(3, 6, seed=8) + 7
    parts = [(values[:2], MASK[:2]), (values[2:] + 1, torch.ones(1, 6))]
    flat = torch.cat([v[m > 0] for v, m in parts]).double()
    mean, std = flat.mean(), flat.std()

    sums = iter([torch.stack([flat.sum(), torch.tensor(float(len(flat)))]), ((flat - mean) ** 2).sum()])
    whitened = whiten(*parts[0], all_sum=lambda local: next(sums).to(local))
    expected = (parts[0][0].double() - mean) / std * parts[0][1]
    assert torch.allclose(whitened.double(), expected, atol=1e-5)


def test_the_value_loss_takes_the_larger_error():
    old, values, returns = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([[1.0, 0, 1]])
    loss, clipped = value_loss(values, old, returns, 0.2)
    # Moved by 0.5 towards 1: clipped to 0.2, error 0.8. Moved away from 0: the plain error is larger. Inside: plain.
    assert loss.tolist()[0] == pytest.approx([0.5 * 0.8**2, 0.5 * 0.5**2, 0.5 * 0.9**2])
    assert clipped.tolist() == [[1.0, 0.0, 0.0]]
    assert value_loss(values, old, returns, None)[0].tolist()[0] == pytest.approx([0.125, 0.125, 0.405])


def test_the_controller_steers_to_its_target():
    controller = KLController(0.2, adaptive=True, target=6.0, horizon=10_000)
    controller.update(12.0, 10)  # too far: raised, the error clipped at 0.2
    assert controller.coefficient == pytest.approx(0.2 * (1 + 0.2 * 10 / 10_000))
    controller = KLController(0.2, adaptive=True, target=6.0, horizon=100)
    controller.update(5.4, 10)
    assert controller.coefficient == pytest.approx(0.2 * (1 - 0.1 * 10 / 100))
    controller = KLController(0.2, adaptive=False, target=6.0, horizon=100)
    controller.update(100.0, 10)
    assert controller.coefficient == 0.2


def test_scores_are_normalized_per_prompt_or_batch():
    scores = torch.tensor([10.0, 12.0, -3.0, -7.0, math.nan, 1.0])
    centred = normalized_scores(scores, 2, "prompt")
    assert centred[:4].tolist() == [-1.0, 1.0, 2.0, -2.0]
    assert centred[4].isnan()
    assert centred[5] == 0.0  # the only score of its prompt
    whitened = normalized_scores(scores[:4], 2, "prompt", "prompt")
    assert whitened.tolist() == pytest.approx(
        [-math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-3
    )
    batch = normalized_scores(scores[:4], 2, "batch", "batch")
    assert torch.allclose(batch, (scores[:4] - 3) / scores[:4].std(), atol=1e-3)
    assert normalized_scores(scores[:4], 2, clip=5.0).tolist() == [5.0, 5.0, -3.0, -5.0]
    # The point of it: a shift per prompt disappears.
    shifted = scores[:4] + torch.tensor([100.0, 100.0, -40.0, -40.0])
    assert torch.allclose(normalized_scores(shifted, 2, "prompt"), centred[:4], atol=1e-4)


def test_explained_variance():
    returns, noise = random(3, 6, seed=9), random(3, 6, seed=10)
    assert explained_variance(returns, returns, MASK, lambda x: x) == pytest.approx(1.0)
    own = MASK > 0
    expected = 1 - noise[own].var() / returns[own].var()
    assert explained_variance(returns + noise, returns, MASK, lambda x: x) == pytest.approx(float(expected), abs=1e-4)
    assert explained_variance(returns, torch.ones(3, 6), MASK, lambda x: x) == 0.0
