"""The selection by itself: exact counts, ties, groups, weights, the random control and the schedule."""

import random

import pytest
import torch

from hpt_trl.token_scores.selection import groups_of, random_scores, ratio_at, select_top


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_exactly_k_of_each_group_under_ties(ratio, values):
    draw = random.Random(0)
    size = 200
    scores = torch.tensor([draw.randrange(values) / values for _ in range(size)])
    valid = torch.tensor([draw.random() < 0.7 for _ in range(size)])
    groups = torch.tensor([draw.randrange(5) for _ in range(size)])
    valid[groups == 3] = False
    valid[(groups == 4).nonzero()[1:]] = False
    valid[(groups == 4).nonzero()[0]] = True
    found = select_top(scores, valid, groups, ratio)
    for group in range(5):
        members = [i for i in range(size) if groups[i] == group and valid[i]]
        wanted = max(1, round(ratio * len(members))) if members else 0
        chosen = sorted(members, key=lambda i: (-scores[i].item(), i))[:wanted]
        assert (found.weights[groups == group] > 0).sum() == wanted
        for i in members:
            assert found.weights[i] == pytest.approx(len(members) / wanted if i in chosen else 0)
        if members:
            assert found.thresholds[group] == scores[chosen].min()
        else:
            assert found.thresholds[group].isinf()
    assert found.weights.sum().item() == pytest.approx(valid.sum().item(), rel=1e-5)


def test_infinite_scores_do_not_reach_masked_tokens():
    scores = torch.tensor([float("-inf"), 5.0, float("-inf"), 4.0])
    valid = torch.tensor([True, False, True, False])
    found = select_top(scores, valid, torch.zeros(4, dtype=torch.long), 0.5)
    assert found.weights.tolist() == [2, 0, 0, 0]


def test_groups_are_rows_or_the_documents_of_a_row():
    labels = torch.zeros(2, 4)
    assert groups_of(labels, None).tolist() == [[0, 0, 0], [1, 1, 1]]
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    assert groups_of(torch.zeros(1, 8), position_ids).tolist() == [[0, 0, 1, 1, 2, 2, 2]]


def test_random_scores_belong_to_the_sequence_not_to_its_place():
    ids = torch.arange(1, 13).view(2, 6)
    valid = torch.ones(2, 5, dtype=torch.bool)
    groups = groups_of(ids, None)
    both = random_scores(ids, valid, groups, seed=1, step=3)
    alone = random_scores(ids[1:], valid[1:], groups_of(ids[1:], None), seed=1, step=3)
    assert torch.equal(both[1:], alone)
    for changed in ({"seed": 2, "step": 3}, {"seed": 1, "step": 4}):
        assert not torch.equal(both, random_scores(ids, valid, groups, **changed))
    # Padding and masked tokens take no part in the draw.
    padded = torch.cat([ids[1:], torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.cat([valid[1:], torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    again = random_scores(padded, mask, groups_of(padded, None), seed=1, step=3)
    assert torch.equal(again[:, :5], alone)


def test_random_scores_are_uniform():
    ids = torch.arange(20_001)[None]
    drawn = random_scores(ids, torch.ones(1, 20_000, dtype=torch.bool), groups_of(ids, None), seed=0, step=0)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.min() >= 0 and drawn.max() < 1


def test_ratio_at():
    settings = {"ratio": 0.6, "warmup_steps": 2, "max_steps": 12}
    assert [ratio_at(step, schedule="constant", **settings) for step in (0, 1, 2, 11)] == [1, 1, 0.6, 0.6]
    assert ratio_at(2, schedule="linear", **settings) == 1
    assert ratio_at(11, schedule="linear", **settings) == pytest.approx(0.6)
    linear = [ratio_at(step, schedule="linear", **settings) for step in range(2, 12)]
    cosine = [ratio_at(step, schedule="cosine", **settings) for step in range(2, 12)]
    assert linear == pytest.approx([1 - 0.4 * step / 9 for step in range(10)])
    assert cosine[0] == 1 and cosine[-1] == pytest.approx(0.6) and cosine[2] > linear[2] and cosine[7] < linear[7]
