"""Weights of tokens against plain float64, their statistics step by step, and the controls."""

import math
import random
from collections import Counter
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch

from hpt_trl.token_scores.correlations import Correlation
from hpt_trl.token_scores.weights import (
    exponential_weights,
    matched_normal,
    random_weights,
    relative_bins,
    shuffled,
)
from hpt_trl.token_scores.whitening import MovingStatistics


def rows(count: int = 6, tokens: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, the mask of valid tokens, and the number of each token's row."""
    ids = torch.randint(3, 300, (count, tokens), generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(count, tokens, dtype=torch.bool)
    for row in range(count):
        valid[row, 2 + row : tokens - 3 * row] = True
    return ids, valid, torch.arange(count)[:, None].expand(-1, tokens)


def test_exponential_weights_are_the_formulas():
    _, valid, _ = rows(2, 12)
    advantages = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    found, clipped = exponential_weights(advantages, valid, mean=0.4, std=1.7, temperature=0.8)
    for place in np.ndindex(2, 12):
        plain = math.exp((advantages[place].item() - 0.4) / (1.7 + 1e-8) / 0.8)
        expected = min(max(plain, 0.1), 3.0) if valid[place] else 0.0
        assert found[place].item() == pytest.approx(expected, rel=1e-12)
        assert bool(clipped[place]) == bool(valid[place] and not 0.1 <= plain <= 3.0)
    assert clipped.any() and not clipped.all()
    huge, _ = exponential_weights(torch.full((1, 4), 1e6), torch.ones(1, 4).bool(), mean=0.0, std=1e-9)
    assert huge.tolist() == [[3.0] * 4]
    nothing, none = exponential_weights(torch.zeros(1, 3), torch.ones(1, 3).bool(), mean=0.0, std=0.0)
    assert nothing.tolist() == [[1.0] * 3] and not none.any()


def test_the_statistics_of_each_step():
    generator = random.Random(0)
    steps = [[generator.gauss(1 + number, 2) for _ in range(5 + number)] for number in range(15)]
    moving = MovingStatistics(momentum=0.1, warmup=10)
    assert (moving.mean, moving.std) == (0.0, 1.0)
    mean, std = 0.0, 1.0
    for number, values in enumerate(steps, start=1):
        moving.update(sum(values), sum(value**2 for value in values), len(values))
        share = (number - 1) / 10 if number <= 10 else 0.9
        mean = share * mean + (1 - share) * fmean(values)
        std = share * std + (1 - share) * pstdev(values)
        assert (moving.mean, moving.std) == pytest.approx((mean, std), rel=1e-9)
        if number == 1:
            assert moving.mean == pytest.approx(fmean(values))
    before = moving.state_dict()
    moving.update(0.0, 0.0, 0.0)
    assert moving.state_dict() == before
    other = MovingStatistics(momentum=0.3, warmup=2)
    other.load_state_dict(before)
    assert (other.mean, other.std, other.steps, other.momentum) == (moving.mean, moving.std, 15, 0.3)


def test_shuffled_weights_are_the_same_ones_in_another_order():
    ids, valid, groups = rows()
    weights = torch.rand(valid.shape, generator=torch.Generator().manual_seed(2)) * valid
    found = shuffled(weights, valid, ids, groups, seed=1, step=4)
    assert ((found != 0) == (weights != 0)).all() and not torch.equal(found, weights)
    for row in range(len(ids)):
        assert Counter(found[row][valid[row]].tolist()) == Counter(weights[row][valid[row]].tolist())
    assert torch.equal(found, shuffled(weights, valid, ids, groups, seed=1, step=4))
    assert not torch.equal(found, shuffled(weights, valid, ids, groups, seed=1, step=5))
    # A row has its order wherever it lies.
    alone = shuffled(weights[3:4], valid[3:4], ids[3:4], torch.zeros_like(groups[3:4]), seed=1, step=4)
    assert torch.equal(alone, found[3:4])
    # All in one group: over the rows, each once.
    mixed = shuffled(weights, valid, ids, torch.zeros_like(groups), seed=1, step=4)
    assert Counter(mixed[valid].tolist()) == Counter(weights[valid].tolist())
    assert Counter(mixed[0][valid[0]].tolist()) != Counter(weights[0][valid[0]].tolist())


def test_an_order_is_as_likely_as_any_other():
    ids, valid = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[False, True, True, True]])
    weights = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    orders = Counter(
        tuple(shuffled(weights, valid, ids, torch.zeros_like(ids), seed=seed, step=0)[0, 1:].tolist())
        for seed in range(600)
    )
    # Six of them; chi-square of 5 degrees of freedom, 20.5 is exceeded once in a thousand.
    assert len(orders) == 6 and sum((count - 100) ** 2 / 100 for count in orders.values()) < 20.5


@pytest.mark.parametrize(("mean", "std"), [(1.328, 0.981), (1.0, 0.2), (1.0, 0.01), (2.0, 0.8), (0.5, 0.9)])
def test_random_weights_have_mean_and_spread_after_the_clip(mean, std):
    centre, spread = matched_normal(mean, std, low=0.1, high=3.0)
    # An independent way to the moments: the quantiles themselves.
    x = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    clipped = (centre + spread * x).exp().clamp(0.1, 3.0)
    assert clipped.mean().item() == pytest.approx(mean, abs=2e-4)
    assert clipped.std(correction=0).item() == pytest.approx(std, abs=2e-4)
    ids = torch.randint(3, 30_000, (40, 500), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids).bool()
    valid[:, 0] = False
    groups = torch.arange(40)[:, None].expand(-1, 500)
    settings = {"centre": centre, "spread": spread, "low": 0.1, "high": 3.0, "seed": 0, "step": 1}
    found = random_weights(valid, ids, groups, **settings)
    drawn = found[valid].double()
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * std / drawn.numel() ** 0.5)
    assert drawn.std().item() == pytest.approx(std, rel=0.05)
    assert found.dtype == torch.float32 and not found[:, 0].any()
    assert torch.equal(random_weights(valid[7:8], ids[7:8], groups[:1], **settings), found[7:8])


@pytest.mark.parametrize(("mean", "std"), [(3.5, 0.1), (0.05, 0.1), (1.0, 1.5), (1.0, -0.1)])
def test_weights_that_no_draw_has_are_refused(mean, std):
    with pytest.raises(ValueError, match=r"no weights between 0\.1 and 3 have the mean"):
        matched_normal(mean, std, low=0.1, high=3.0)


def test_relative_positions():
    valid = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]]).bool()
    groups = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1], [2] * 8])
    assert relative_bins(valid, groups, 4).tolist() == [[0, 0, 1, 0, 2, 3, 0, 0], [0] * 8]
    assert relative_bins(torch.zeros_like(valid), groups, 4).sum() == 0


def test_correlations_are_numpys():
    generator = np.random.default_rng(0)
    x = generator.normal(size=300)
    y = 0.4 * x + generator.normal(size=300)
    whole, part = Correlation(), Correlation()
    whole.add(torch.tensor(x), torch.tensor(y))
    for piece in np.array_split(np.arange(300), 7):
        part.add(torch.tensor(x[piece]), torch.tensor(y[piece]))
    for found in (whole, part.over_all(lambda sums: sums)):
        assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
        assert (found.mean_x, found.std_x, found.count) == pytest.approx((x.mean(), x.std(), 300))
    constant = Correlation()
    constant.add(torch.ones(5), torch.arange(5))
    assert constant.pearson == 0.0 and Correlation().pearson == Correlation().mean_x == 0.0
