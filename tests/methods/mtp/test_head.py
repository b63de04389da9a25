"""The fused head against stacked logits in float64, and against TRL's kernel in lower precision."""

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from hpt_trl.methods.mtp import head
from hpt_trl.methods.mtp.head import weighted_nll

POSITIONS, WIDTH, VOCABULARY = 23, 16, 61
SETTINGS = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.3},
    "both": {"softcap": 1.5, "scale": 3.0},
    "reach": {"reach": 9},
    "none-reach": {"reach": 0},
    "entropies": {"entropies": 11},
    "all": {"softcap": 2.0, "scale": 0.7, "reach": 9, "entropies": 5},
}


def inputs(dtype: torch.dtype = torch.float64, *, seed: int = 0, bias: bool = True):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    hidden, weight = drawn(POSITIONS, WIDTH), drawn(VOCABULARY, WIDTH)
    targets = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    coefficients = torch.rand(POSITIONS, generator=generator)
    coefficients[3] = 0
    return hidden, weight, drawn(VOCABULARY) if bias else None, targets, coefficients


def stacked(hidden, weight, bias, targets, coefficients, *, reach=None, entropies=0, softcap=None, scale=1.0):
    """The same from all logits at once, in float64; returns total, losses, whether right, entropies."""
    hidden, weight = hidden.double(), weight.double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    reach = len(hidden) if reach is None else reach
    near = hidden[:reach] @ weight.t() + bias
    far = hidden[reach:] @ weight.detach().t() + bias.detach()
    logits = torch.cat([near, far]) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = logits.log_softmax(-1)
    nll = -logp[torch.arange(len(targets)), targets]
    entropy = -(logp.exp() * logp).sum(-1)[:entropies]
    return (nll * coefficients.double()).sum(), nll, logits.argmax(-1) == targets, entropy


@pytest.mark.parametrize("tile", [2**23, 5 * VOCABULARY, VOCABULARY])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_losses_and_gradients_are_those_of_stacked_logits(settings, bias, tile, monkeypatch):
    monkeypatch.setattr(head, "_LOGITS_ON_CPU", tile)
    given = inputs(bias=bias)
    leaves = [tensor for tensor in given[:3] if tensor is not None]
    ours, theirs = weighted_nll(*given, **settings), stacked(*given, **settings)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, expected, atol=1e-12) if mine.is_floating_point() else torch.equal(mine, expected)
    # The loss goes on into other arithmetic.
    for mine, expected in zip(
        torch.autograd.grad(ours.total * 3.5, leaves),
        torch.autograd.grad(theirs[0] * 3.5, leaves, allow_unused=True),
        strict=True,
    ):
        assert torch.allclose(mine, torch.zeros_like(mine) if expected is None else expected, atol=1e-11)


@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_has_no_gradient(frozen):
    given = list(inputs())
    given[frozen] = given[frozen].detach()
    leaves = [tensor for tensor in given[:3] if tensor.requires_grad]
    expected = torch.autograd.grad(stacked(*given)[0], leaves)
    found = torch.autograd.grad(weighted_nll(*given).total, leaves)
    assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True))


def test_no_position_at_all_is_a_loss_of_zero_with_a_gradient():
    hidden, weight, bias, targets, coefficients = inputs()
    found = weighted_nll(hidden[:0], weight, bias, targets[:0], coefficients[:0])
    assert found.total == 0 and len(found.nll) == 0
    found.total.backward()
    assert not hidden.grad.any() and not weight.grad.any() and not bias.grad.any()


def test_without_autograd_nothing_is_formed():
    with torch.no_grad():
        found = weighted_nll(*inputs(), entropies=4)
    assert not found.total.requires_grad
    assert torch.allclose(found.nll, stacked(*inputs())[1]) and len(found.entropy) == 4


def test_the_gradient_is_formed_once():
    found = weighted_nll(*inputs())
    found.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="formed once"):
        found.total.backward()


def test_of_equal_tokens_the_first_is_the_most_likely():
    hidden, weight = torch.zeros(2, WIDTH), torch.randn(VOCABULARY, WIDTH)
    found = weighted_nll(hidden, weight, None, torch.tensor([0, 1]), torch.ones(2))
    assert found.is_top1.tolist() == [True, False]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_call_is_more_exact_than_a_call_of_the_kernel_for_each_head(dtype, autocast):
    """In half precision autograd would round the sum of the heads' gradients after each head."""
    heads, positions, width, vocabulary = 4, 64, 64, 512
    generator = torch.Generator().manual_seed(0)
    kept = torch.float32 if autocast else dtype
    states = [torch.randn(positions, width, generator=generator).to(kept) for _ in range(heads)]
    matrix = torch.randn(vocabulary, width, generator=generator).to(kept)
    targets = torch.randint(vocabulary, (heads, positions), generator=generator)
    share = 1 / (heads * positions)

    def leaves():
        return [state.clone().requires_grad_() for state in states], matrix.clone().requires_grad_()

    hidden, weight = [state.to(dtype).double().requires_grad_() for state in states], None
    weight = matrix.to(dtype).double().requires_grad_()
    exact = stacked(torch.cat(hidden), weight, None, targets.flatten(), torch.full((heads * positions,), share))[0]
    exact.backward()
    gradients = []
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        ours, our_weight = leaves()
        coefficients = torch.full((heads * positions,), share)
        weighted_nll(torch.cat(ours), our_weight, None, targets.flatten(), coefficients).total.backward()
        theirs, their_weight = leaves()
        stock = (1.0, 32768, None, 1.0, ("log_probs",))
        losses = [
            ChunkedLogProbFunction.apply(state, their_weight, None, target, *stock)[0].sum()
            for state, target in zip(theirs, targets, strict=True)
        ]
        (-sum(losses) * share).backward()
    for states_, weight_ in ((ours, our_weight), (theirs, their_weight)):
        gradients.append(
            (
                error(weight_.grad, weight.grad),
                error(torch.cat([s.grad for s in states_]), torch.cat([h.grad for h in hidden])),
            )
        )
    (our_matrix, our_states), (their_matrix, their_states) = gradients
    assert our_states < 0.02 and our_matrix < 0.01
    if not autocast:
        assert our_matrix < their_matrix
    assert our_states < 1.1 * their_states


def test_small_multiples_survive_float16():
    """A mean over a million tokens, scaled up again by the loss scaler."""
    hidden, weight, _, targets, _ = inputs(torch.float16, bias=False)
    coefficients = torch.full((POSITIONS,), 1e-6)
    (weighted_nll(hidden, weight, None, targets, coefficients).total * 65536).backward()
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    (stacked(*leaves, None, targets, coefficients)[0] * 65536).backward()
    assert error(hidden.grad, leaves[0].grad) < 5e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels of Triton need a GPU")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_kernels_of_a_gpu_compute_the_same(settings):
    given = [None if tensor is None else tensor.detach().cuda() for tensor in inputs(torch.float32)]
    leaves = [tensor.requires_grad_() for tensor in given[:3]]
    ours, theirs = weighted_nll(*given, **settings), stacked(*given, **settings)
    assert error(ours.nll, theirs[1]) < 1e-5 and error(ours.total, theirs[0]) < 1e-5
    expected = torch.autograd.grad(theirs[0], leaves, allow_unused=True)
    for mine, other in zip(torch.autograd.grad(ours.total, leaves), expected, strict=True):
        assert not mine.any() if other is None else error(mine, other.double()) < 1e-5
