"""The loss of a chain of two layers as a checkpoint may ship it, against transformers' own layers in float64."""

import copy

import pytest
import torch

from hpt_trl.models.future_heads.chained import ChainedHeads
from hpt_trl.models.future_heads.model import attach
from tests.helpers.mtp import LEARNING_RATE, mtp, parts
from tests.helpers.shipped import shipping_model

SHAPES = {
    "padded": {},
    "packed": {"packing": True, "packing_strategy": "bfd", "max_length": 200, "shuffle_dataset": False},
    "checkpointed": {"checkpoint_heads": True},
}


def chained_loss(model, chain, rows) -> tuple[torch.Tensor, list[float]]:
    """L = sum_k 1/3 / Z_k * sum_t nll_k(t), a document at a time, each layer on what it can read."""
    sums, counts = [torch.zeros((), dtype=torch.float64) for _ in range(3)], [0] * 3
    for ids, trained in rows:
        tokens = torch.tensor([ids])
        state = model.model(tokens).last_hidden_state
        for head in range(3):
            if head > 0:
                state = chain.forward_layer(
                    head - 1,
                    state[:, : len(ids) - head],
                    torch.arange(head, len(ids))[None],
                    None,
                    inputs_embeds=model.get_input_embeddings()(tokens[:, head:]),
                )
            logp = model.lm_head(state)[0].log_softmax(-1)
            for place in range(len(ids) - head - 1):
                if trained[place + head + 1]:
                    sums[head] = sums[head] - logp[place, ids[place + head + 1]]
                    counts[head] += 1
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return sum(means) / 3, [float(mean) for mean in means]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_two_chained_layers_is_that_of_the_loss_in_float64(tmp_path, tiny_model_path, shape):
    # No checkpoint of two layers has names that transformers knows: the chain is put on as it is.
    model, chain = shipping_model("glm4_moe", layers=2, num_hidden_layers=2, first_k_dense_replace=1)
    if not hasattr(chain, "forward_layer"):
        pytest.skip("this transformers runs no layer of a chain by itself")
    model.config.output_router_logits = False
    oracle, layers = copy.deepcopy((model, chain))
    oracle.double()
    layers.double()
    layers.tie_with_main_model(oracle)
    for one in (oracle, layers):
        one.set_experts_implementation("eager")
    loss, means = chained_loss(oracle, layers, parts(tiny_model_path, "documents"))
    own = dict(layers.layers.named_parameters())
    grads = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    attach(model, ChainedHeads(chain.layers, chain, {}))
    given = {"n_future_tokens": 3, "head_init": "shipped", "tokenizer": tiny_model_path, **SHAPES[shape]}
    trainer = mtp(model, tmp_path, **given)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for head, mean in enumerate(means, start=1):
        assert logged[f"mtp/loss_head_{head}"] == pytest.approx(mean, rel=1e-4)
    trained = dict(trainer.model.future_heads.layers.named_parameters())
    assert trained.keys() == grads.keys()
    for name, grad in grads.items():
        update = (own[name].detach() - trained[name].detach().double()) / LEARNING_RATE
        assert (update - grad).norm() <= 2e-3 * grad.norm() + 1e-5, name
    assert all(grads[f"{number}.eh_proj.weight"].norm() > 1e-3 for number in range(2))
