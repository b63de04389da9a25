"""TRL's fused head in small tiles: what it finds, and that rows without padding have it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels import ChunkedLogProbFunction, chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from hpt_trl.models.fused_head import SmallTiles, compacted_backward, labelled_alone, small_tiles
from hpt_trl.models.padding_free.language_models import pad_no_more

VOCABULARY, OUTPUTS = 3000, ("entropy", "is_top1")


@pytest.fixture
def widths(monkeypatch) -> list[int]:
    """Of the tiles that are folded."""
    found, fold = [], chunked_logprob._forward_tile

    def noted(tile, *args, **kwargs):
        found.append(tile.shape[1])
        return fold(tile, *args, **kwargs)

    monkeypatch.setattr(chunked_logprob, "_forward_tile", noted)
    return found


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_small_tiles_find_what_one_tile_finds(widths, softcap):
    torch.manual_seed(0)
    hidden, weight = torch.randn(2100, 16), torch.randn(VOCABULARY, 16) / 4
    targets = torch.randint(VOCABULARY, (2100,))
    # Two of three rows have no gradient.
    share = torch.randn(2100) * (torch.arange(2100) % 3 == 0)

    def found(function):
        inputs = [part.clone().requires_grad_() for part in (hidden, weight)]
        outputs = function.apply(*inputs, None, targets, 0.7, 32768, softcap, 1.3, OUTPUTS)
        (outputs[0] * share).sum().backward()
        return [*outputs[:2], outputs[4], *(part.grad for part in inputs)]

    one, several = found(ChunkedLogProbFunction), found(SmallTiles)
    assert widths == [VOCABULARY, 1024, 1024, VOCABULARY - 2048]
    for ours, stock in zip(several, one, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    logits = 1.3 * hidden.double() @ weight.double().T
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(several[0].double(), expected, rtol=0, atol=1e-5)


def test_rows_without_padding_have_them(widths):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    add_fused_lm_head(model)
    ids = torch.randint(3, VOCABULARY, (5, 500))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    stock = model(**given).log_probs
    assert widths == [VOCABULARY]
    pad_no_more(model)
    torch.testing.assert_close(model(**given).log_probs, stock)
    assert widths[1:] == [1024, 1024, VOCABULARY - 2048]


def test_another_context_goes_before():
    name, cpu = "_ChunkedLogProbFunction", torch.device("cpu")
    from trl.trainer import utils

    with compacted_backward(), small_tiles(cpu):
        assert vars(utils)[name] is SmallTiles
    with labelled_alone(torch.ones(3, dtype=torch.bool)), small_tiles(cpu):
        assert vars(utils)[name].__name__ == "Labelled"
    assert vars(utils)[name] is ChunkedLogProbFunction
