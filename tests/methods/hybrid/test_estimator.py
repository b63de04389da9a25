"""The estimator's pure functions against what the papers' formulas give in float64, and the dealing of rows."""

import math
import random

import numpy as np
import pytest
import torch

from hpt_trl.methods.hybrid.estimator import (
    chord_mu,
    chord_token_weight,
    masked_mean,
    policy_gradient_loss,
    shaped_weight,
    srft_rollout_advantages,
    srft_sft_weight,
    union_advantages,
)
from hpt_trl.methods.hybrid.gate import SOFT_TABLES, no_contrast, prompt_coefficients, read_soft_table
from hpt_trl.rollouts.dealing import deal, padded_area
from hpt_trl.rollouts.rows import collate, unpad

P = np.array([[0.001, 0.1, 0.5, 0.99]])
LOGPS = np.log(P)


@pytest.mark.parametrize(
    "reshape,value,multiplier",
    [
        ("no_reshape", P, P),
        ("logp", LOGPS, np.ones_like(P)),
        ("p_div_p", P / (P + 0.1), P * 0.1 / (P + 0.1) ** 2),
        ("p_logp", P + 0.1 * LOGPS, P + 0.1),
        ("square_root", np.sqrt(P), 0.5 * np.sqrt(P)),
        ("pow", P**0.1, 0.1 * P**0.1),
    ],
)
def test_weight_and_its_multiplier_on_the_score(reshape, value, multiplier):
    """w, and what multiplies grad log p: the derivative by log p."""
    logps = torch.tensor(LOGPS, requires_grad=True)
    weight = shaped_weight(logps, reshape, gamma=0.1)
    np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-12)
    policy_gradient_loss(weight, torch.tensor([2.0]), torch.tensor([[1.0, 1.0, 0.0, 1.0]])).sum().backward()
    np.testing.assert_allclose(logps.grad.numpy(), -2.0 * multiplier * [1, 1, 0, 1], rtol=1e-12)


def test_unknown_reshape_is_refused():
    with pytest.raises(ValueError, match="p_div_p"):
        shaped_weight(torch.zeros(1, 1), "p_div_p_0.1")


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_union_advantages(scale):
    rewards = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    union = np.concatenate([rewards, np.ones((3, 1))], axis=1)
    expected = union - union.mean(1, keepdims=True)
    if scale == "group":
        expected = expected / (union.std(1, ddof=1, keepdims=True) + 1e-4)
    if scale == "batch":
        expected = expected / (union.std(ddof=1) + 1e-4)
    rollouts, demonstrations = union_advantages(torch.tensor(rewards), torch.ones(3), scale)
    np.testing.assert_allclose(rollouts.numpy(), expected[:, :-1], rtol=1e-12)
    np.testing.assert_allclose(demonstrations.numpy(), expected[:, -1], rtol=1e-12)


def test_union_advantages_leave_unscored_rollouts_out():
    with_nan = union_advantages(torch.tensor([[0.0, math.nan, 1.0]]), torch.ones(1), "group")
    without = union_advantages(torch.tensor([[0.0, 1.0]]), torch.ones(1), "group")
    assert with_nan[0].tolist()[0][1] == 0.0
    torch.testing.assert_close(with_nan[0][:, [0, 2]], without[0])
    torch.testing.assert_close(with_nan[1], without[1])


def test_srft_and_chord_weights_carry_no_gradient():
    entropy = torch.tensor([0.0, 1.0], requires_grad=True)
    assert not srft_sft_weight(entropy).requires_grad
    torch.testing.assert_close(srft_sft_weight(entropy), torch.tensor([0.5, 0.5 * math.exp(-1)]))
    advantages = srft_rollout_advantages(entropy, torch.tensor([True, False]))
    torch.testing.assert_close(advantages, torch.tensor([0.1, -1.0]))
    logps = torch.tensor(LOGPS, requires_grad=True)
    assert not chord_token_weight(logps).requires_grad
    np.testing.assert_allclose(chord_token_weight(logps).numpy(), P * (1 - P), rtol=1e-12)


def test_chord_schedule():
    assert [chord_mu(step, 0.9, 0.1, 4) for step in (0, 2, 4, 9)] == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_masked_mean_of_an_empty_row_is_zero():
    values, mask = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert masked_mean(values, mask).tolist() == [2.0, 0.0]


# Gate and tables.


@pytest.mark.parametrize("group", [2, 4, 8, 16])
@pytest.mark.parametrize("gate", [-1, 0, 1, 2])
def test_switch_gates_by_the_number_solved(group, gate):
    solved = torch.arange(group + 1.0)
    coefficients = prompt_coefficients(solved, group, "switch", gate=gate)
    assert coefficients[:, 2].tolist() == [float(s <= gate) for s in range(group + 1)]
    assert coefficients[:, 0].tolist() == [float(s > gate) for s in range(group + 1)]
    assert not coefficients[:, 1].any()


def test_off_policy_gate_lies_above_the_gate():
    coefficients = prompt_coefficients(torch.arange(5.0), 4, "switch", gate=0, gate_off=2)
    assert coefficients.tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("name", list(SOFT_TABLES))
def test_published_tables_on_their_own_group_size(name):
    """Seven rollouts and the demonstration make the official eight."""
    coefficients = prompt_coefficients(torch.arange(8.0), 7, "soft", soft_table=name)
    table = SOFT_TABLES[name]
    for solved in range(8):
        expected = table[solved][1] if len(table) == 8 else table[0][1]
        assert coefficients[solved].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("group", [2, 4, 8, 16])
def test_tables_scale_to_any_group_size(group):
    coefficients = prompt_coefficients(torch.arange(group + 1.0), group, "soft", soft_table="type_0")
    assert coefficients[0].tolist() == [0.0, 0.0, 1.0]
    assert coefficients[-1].tolist() == [1.0, 0.0, 0.0]
    assert (coefficients[:, 0].diff() >= 0).all() and (coefficients[:, 2].diff() <= 0).all()


def test_table_of_ones_own_is_linear_in_between():
    coefficients = prompt_coefficients(torch.tensor([1.0]), 4, "soft", soft_table={0: [0, 0, 1], 0.5: [1, 0.5, 0]})
    assert coefficients.tolist() == [[0.5, 0.25, 0.5]]
    assert read_soft_table({"1": [1, 0, 0], "0": [0, 0, 1]})[0][0] == 0.0  # keys of JSON are text


def test_contrast_is_equality_of_rewards():
    # 0.1 three times has a mean that is not 0.1 in float32; its group has no contrast all the same.
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 0.0], [math.nan, 1.0, 1.0], [math.nan] * 3])
    assert no_contrast(rewards).tolist() == [True, False, True, True]


# Dealing.


def test_dealing_is_a_partition_with_equal_counts():
    draw = random.Random(0)
    for slots in (1, 3, 8):
        lengths = [draw.randrange(1, 100) for _ in range(29)]
        chunks = deal(lengths, slots)
        assert sorted(i for chunk in chunks for i in chunk) == list(range(29))
        assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
    assert deal([], 2) == [[], []]
    # The longest rows are not those of which a batch holds one more.
    assert deal([100, 90, 5, 4, 3], 4) == [[0], [1], [2], [3, 4]]


def test_dealing_keeps_padding_low():
    draw = random.Random(1)
    lengths = []
    for _ in range(16):  # prompts with two to eight live rollouts each
        prompt = draw.randrange(40, 200)
        lengths += [prompt + draw.randrange(20, 300) for _ in range(draw.randrange(2, 9))]
    area = sum(padded_area([lengths[i] for i in chunk]) for chunk in deal(lengths, 16))
    assert area <= 1.15 * sum(lengths)


def test_rows_keep_every_per_token_tensor():
    """Also those of vLLM's correction: out of a padded batch and back, in another order and width."""
    lengths = [(3, 2), (1, 4), (2, 1)]
    width = max(c for _, c in lengths)
    batch = {
        "prompt_ids": torch.tensor([[5, 6, 7], [0, 0, 8], [0, 9, 10]]),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0], [1, 2, 3, 4], [1, 0, 0, 0]]),
        "completion_mask": torch.tensor([[int(t < c) for t in range(width)] for _, c in lengths]),
        "advantages": torch.tensor([0.5, -1.0, 2.0]),
        "num_items_in_batch": torch.tensor(7),
    }
    per_token = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio")
    for name in per_token:
        batch[name] = torch.rand(3, width)
    rows = unpad(batch)
    again = collate([rows[2], rows[0], rows[0].filler()], pad_token_id=0)
    assert again["prompt_ids"].tolist() == [[0, 9, 10], [5, 6, 7], [0, 0, 7]]
    assert again["completion_ids"].tolist() == [[1, 0], [1, 2], [1, 0]]
    assert again["completion_mask"].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert again["advantages"].tolist() == [2.0, 0.5, 0.0]
    for name in per_token:
        assert torch.equal(again[name][1], batch[name][0, :2])
        assert again[name][0, 0] == batch[name][2, 0]
    batch["importance_sampling_ratio"] = torch.tensor([[0.5], [0.7], [0.9]])  # one ratio per sequence
    rows = unpad(batch)
    again = collate([rows[2], rows[0].to("cpu"), rows[0].filler()], pad_token_id=0)
    assert torch.equal(again["importance_sampling_ratio"], torch.tensor([[0.9], [0.5], [1.0]]))
