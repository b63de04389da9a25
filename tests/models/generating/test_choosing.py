"""Tokens are those of `torch.multinomial` on the whole batch, whoever has left it."""

import pytest
import torch

from hpt_trl.models.generating.choosing import draw_tokens

BATCH, VOCABULARY = 7, 5000


def probabilities(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, VOCABULARY, generator=generator).mul(3).softmax(dim=-1)


@pytest.mark.parametrize("rows", [list(range(BATCH)), [0, 2, 6], [6], [5, 1, 3]], ids=str)
def test_rows_draw_what_they_would_draw_beside_all_others(rows):
    for seed in range(20):
        of_all, places = probabilities(seed), torch.tensor(rows)
        torch.manual_seed(seed)
        expected = torch.multinomial(of_all, 1).squeeze(1)[places]
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(draw_tokens(of_all[places], places, BATCH), expected)
        assert torch.equal(torch.rand(1), after)


def test_tokens_without_probability_are_not_drawn():
    only = torch.zeros(1, VOCABULARY)
    only[0, 17] = 1
    assert {int(draw_tokens(only, torch.tensor([0]), 1)) for _ in range(50)} == {17}


def test_a_probability_that_is_none_ends_the_draw_as_in_torch():
    of_all = probabilities(0)
    of_all[1, 3] = torch.nan
    with pytest.raises(RuntimeError, match="probability tensor contains either `inf`, `nan` or element < 0"):
        draw_tokens(of_all, torch.arange(BATCH), BATCH)
    with pytest.raises(RuntimeError, match="probability tensor contains either `inf`, `nan` or element < 0"):
        torch.multinomial(of_all, 1)
