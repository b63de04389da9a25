"""Rho-1 on several heads: which target tokens each is trained on, by plain sorting."""

import pytest
import torch

from hpt_trl.token_scores.head_selection import select_for_heads
from hpt_trl.token_scores.selection import select_top

HEADS, ROWS, TOKENS = 3, 2, 14


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    nll, reference = torch.rand(HEADS, ROWS, TOKENS, generator=generator), torch.rand(ROWS, TOKENS, generator=generator)
    valid = torch.zeros(HEADS, ROWS, TOKENS, dtype=torch.bool)
    # Head k's first target lies k places behind the first token of a row; the second row is shorter.
    for head in range(HEADS):
        valid[head, 0, 1 + head :] = True
        valid[head, 1, 1 + head : 9] = True
    return nll, reference, valid, torch.arange(ROWS)[:, None].expand(-1, TOKENS)


def plain(nll, reference, valid, ratio):
    """Weights of one head and row."""
    places = [place for place in range(TOKENS) if valid[place]]
    ranked = sorted(places, key=lambda place: (reference[place] - nll[place]).item())
    chosen = ranked[: max(1, round(ratio * len(places)))]
    return [len(places) / len(chosen) if place in chosen else 0.0 for place in range(TOKENS)]


def test_each_head_selects_by_its_own_excess(batch):
    nll, reference, valid, groups = batch
    found = select_for_heads(nll, reference, valid, groups, 0.6, first_head="selected")
    for head in range(HEADS):
        for row in range(ROWS):
            expected = plain(nll[head, row], reference[row], valid[head, row], 0.6)
            assert found[head, row].tolist() == pytest.approx(expected)
            assert found[head, row].sum().item() == pytest.approx(valid[head, row].sum().item(), rel=1e-6)
    assert torch.equal(found[0], select_top(nll[0] - reference, valid[0], groups, 0.6).weights)


def test_the_first_head_is_trained_on_all_tokens(batch):
    nll, reference, valid, groups = batch
    full = select_for_heads(nll, reference, valid, groups, 0.6)
    assert torch.equal(full[0], valid[0].float())
    assert torch.equal(full[1:], select_for_heads(nll, reference, valid, groups, 0.6, first_head="selected")[1:])
    with pytest.raises(ValueError, match="allowed: full, selected"):
        select_for_heads(nll, reference, valid, groups, 0.6, first_head="none")


@pytest.mark.parametrize("first_head", ["full", "selected"])
def test_anchored_heads_have_the_targets_of_the_first(batch, first_head):
    nll, reference, valid, groups = batch
    found = select_for_heads(nll, reference, valid, groups, 0.5, first_head=first_head, anchored=True)
    anchor = select_top(nll[0] - reference, valid[0], groups, 0.5).weights > 0
    for head in range(1, HEADS):
        assert torch.equal(found[head] > 0, anchor & valid[head])
        torch.testing.assert_close(found[head].sum(-1), valid[head].sum(-1).float())


def test_at_ratio_1_the_weights_are_1(batch):
    nll, reference, valid, groups = batch
    for anchored in (False, True):
        found = select_for_heads(nll, reference, valid, groups, 1.0, first_head="selected", anchored=anchored)
        assert torch.equal(found, valid.float())


def test_a_head_that_reaches_no_chosen_token_has_no_weight():
    nll = torch.zeros(2, 1, 4)
    nll[0, 0, 1] = 1.0
    valid = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 1, 1]]]).bool()
    groups = torch.zeros(1, 4, dtype=torch.long)
    found = select_for_heads(nll, torch.zeros(1, 4), valid, groups, 0.3, first_head="selected", anchored=True)
    assert found[0].tolist() == [[0, 3, 0, 0]] and not found[1].any()
