"""Families of models: what they find without padding is what they find with it, or they say that they cannot."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)
from trl.trainer.utils import add_fused_lm_head

from hpt_trl.models.padding_free.language_models import pad_no_more
from hpt_trl.models.padding_free.trunks import take_packed_rows
from tests.helpers.tiny import save_tiny_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
ABLE = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
    "gpt_neox": {},
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
        "experts_implementation": "eager",
    },
}
# Of states that go from row to row, positions that are counted by the mask, terms of attention that the kernel lacks.
UNABLE = {
    "mamba": {"state_size": 4, "expand": 2, "conv_kernel": 3, "time_step_rank": 4},
    "recurrent_gemma": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bloom": {"n_head": 4, "n_layer": 2},
    "gemma2": {"attn_implementation": "eager"},
    "llama": {"attn_implementation": "eager"},
    # Their windows, and what Doge finds worth seeing, are in masks of their own: with these sizes no row here shows it.
    "phimoe": {
        "sliding_window": 18,
        "router_jitter_noise": 0.0,
        "input_jitter_noise": 0.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    },
    "qwen2_moe": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 18,
        "use_sliding_window": True,
        "num_experts": 4,
        "experts_implementation": "eager",
    },
    "doge": {"keep_window_size": 18},
}


def model_of(kind: str, loader=AutoModelForCausalLM, dtype=torch.float64, attn_implementation=None, **sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **sizes})
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    return loader.from_config(config, **chosen).to(dtype)


def batch(left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of 6 to 17 tokens, two of one prompt, padded on either side; labels on what follows the prompt."""
    torch.manual_seed(1)
    lengths, width = [17, 9, 12, 6], 20
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    labels = torch.full((4, width), -100)
    prompt = torch.randint(1, 61, (7,))
    for row, length in enumerate(lengths):
        tokens = torch.randint(1, 61, (length,))
        if row in (0, 2):
            tokens[:7] = prompt
        places = slice(width - length, width) if left else slice(0, length)
        ids[row, places], mask[row, places] = tokens, 1
        labels[row, places] = tokens
        labels[row, places.start : places.start + 5] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def asked(model, inputs, **others):
    output = model(**inputs, fused_lm_head=True, **others)
    weight = torch.linspace(-1, 1, output.log_probs.numel(), dtype=torch.float64).view_as(output.log_probs)
    loss = (output.log_probs * weight).sum() + 0.1 * output.entropy.sum() + output.loss
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return output, [gradient for gradient in gradients if gradient is not None]


def pair_of(kind: str, **sizes):
    plain = model_of(kind, **sizes)
    add_fused_lm_head(plain, outputs=("log_probs", "entropy", "is_top1"))
    ours = copy.deepcopy(plain)
    pad_no_more(ours)
    return plain.train(), ours.train()


def assert_equal(one, other):
    for name in ("log_probs", "entropy", "loss", "aux_loss"):
        if one[0].get(name) is not None:
            torch.testing.assert_close(one[0][name], other[0][name].to(one[0][name]), rtol=1e-5, atol=1e-6)
    assert torch.equal(one[0].label_mask, other[0].label_mask) if one[0].label_mask is not None else True
    for ours, theirs in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", ABLE)
def test_log_probabilities_and_gradients_are_those_of_padded_rows(kind, left):
    plain, ours = pair_of(kind, **ABLE[kind])
    positions = []
    layers = next(module for module in ours.base_model.children() if isinstance(module, torch.nn.ModuleList))
    layers[0].register_forward_hook(lambda module, args, output: positions.append(args[0].shape[:2]))
    inputs = batch(left)
    assert_equal(asked(ours, inputs), asked(plain, inputs))
    assert ours.base_model.is_padding_free
    # Rows of its own are tried with padding and without, on either side. Then: 7 tokens of 44 are shared, the last of
    # each row leads to nothing; a load-balancing loss goes by each token.
    tried, tokens = [(4, 16), (1, 53 - 7)] * 2, 44 if kind == "mixtral" else 44 - 7 - 4
    # GPT-2's positions count the padding on the left.
    assert positions == [*tried, (4, 20) if left and kind == "gpt2" else (1, tokens)]


@pytest.mark.parametrize("kind", UNABLE)
def test_who_cannot_says_so_and_goes_the_padded_way(kind, caplog):
    inputs = batch()
    with caplog.at_level(logging.INFO, "hpt_trl"):
        plain, ours = pair_of(kind, **UNABLE[kind])
        found = asked(ours, inputs)
    assert_equal(found, asked(plain, inputs))
    assert_equal(asked(ours, inputs), found)
    assert ours.base_model.is_padding_free is False
    told = [record.getMessage() for record in caplog.records if "padding of its rows" in record.getMessage()]
    assert len(told) == 1 and type(ours.base_model).__name__ in told[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_go_one_way_whatever_the_first_batch(tmp_path, bits):
    """8-bit products go by all tokens of a batch: by the first one a trial would let some runs pack and others not."""
    pytest.importorskip("bitsandbytes")
    base = save_tiny_model(tmp_path, hidden_size=576)  # narrower products do not differ by how many there are
    # Hidden states are of float32 here, products are not.
    settings = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.bfloat16)
    ways = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, dtype=torch.float32)
        add_fused_lm_head(model, outputs=("log_probs",))
        pad_no_more(model)
        ids = torch.randint(3, model.config.vocab_size, (6, 40))
        mask = (torch.arange(40) < torch.tensor([40, 31, 22, 18, 12, 35])[:, None]).long()
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), fused_lm_head=True)
        ways.add(model.base_model.is_padding_free)
    assert ways == {bits == 4}


def test_what_nothing_says_shows_at_the_first_batch(caplog):
    """A layer that hands its state on to the next token, also to that of another row."""
    plain, ours = pair_of("llama")
    for model in (plain, ours):
        model.base_model.layers[0].register_forward_hook(lambda layer, args, output: output + output.roll(1, dims=1))
    inputs = batch()
    with caplog.at_level(logging.WARNING, "hpt_trl"):
        assert_equal(asked(ours, inputs), asked(plain, inputs))
    assert ours.base_model.is_padding_free is False and "hidden states differ by" in caplog.text


@pytest.mark.parametrize("length", [1, 30])
def test_what_is_tried_does_not_go_by_the_first_batch(length):
    """So that processes agree: one row, or rows that are longer than a window."""
    for kind, sizes in (("qwen2", {}), ("phimoe", UNABLE["phimoe"])):
        _, ours = pair_of(kind, **sizes)
        ids = torch.randint(1, 61, (1, length))
        ours(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
        assert ours.base_model.is_padding_free is (kind == "qwen2")


def test_dropout_is_drawn_for_each_row():
    """Rows that begin alike would share it."""
    _, ours = pair_of("llama", attention_dropout=0.5)
    ids = torch.randint(1, 61, (1, 12)).repeat(2, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    for noisy in (True, False):
        one, other = ours.train(noisy)(**inputs, fused_lm_head=True).log_probs
        assert torch.allclose(one, other) is not noisy
    assert ours.base_model.is_padding_free


def test_a_model_that_reads_more_than_text_is_left_as_it_is(caplog):
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma3", text_config=text | {"vocab_size": 61}, vision_config=vision)
    model = AutoModelForImageTextToText.from_config(config)
    with caplog.at_level(logging.INFO, "hpt_trl"):
        pad_no_more(model)
    assert model.base_model.is_padding_free is False and "it reads more than text" in caplog.text


def test_gradient_checkpointing_and_an_adapter():
    plain, ours = pair_of("llama")
    for model in (plain, ours):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0, init_lora_weights=False)
    adapted = []
    for model in (plain, ours):
        torch.manual_seed(2)
        adapted.append(get_peft_model(model, config).double())
    inputs = batch()
    assert_equal(asked(adapted[1], inputs), asked(adapted[0], inputs))
    assert ours.base_model.is_padding_free


def test_a_copy_computes_with_its_own_weights():
    plain, ours = pair_of("llama")
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.5)
    inputs = batch()
    assert_equal(asked(copied, inputs), asked(plain, inputs))


def test_a_batch_without_labels_and_one_of_a_cache_are_left_alone():
    plain, ours = pair_of("llama")
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    one, other = (model(**inputs, fused_lm_head=True).log_probs for model in (ours, plain))
    assert torch.equal(one, other) and one.requires_grad
    # It is tried all the same, as those of other processes are.
    assert ours.base_model.is_padding_free
    prompts = {"input_ids": inputs["input_ids"][:, :9].clamp(min=1), "attention_mask": inputs["attention_mask"][:, :9]}
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(ours.generate(**prompts, **settings), plain.generate(**prompts, **settings))


def test_rows_that_lie_end_to_end_already_see_only_themselves():
    plain, ours = pair_of("llama")
    inputs, rows = batch(), []
    for row in range(4):
        there = inputs["attention_mask"][row].bool()
        rows.append({name: value[row][there] for name, value in inputs.items()})
    joined = {name: torch.cat([row[name] for row in rows])[None] for name in ("input_ids", "labels")}
    joined["position_ids"] = torch.cat([torch.arange(len(row["labels"])) for row in rows])[None]
    joined["labels"][joined["position_ids"] == 0] = -100
    joined["cu_seq_lens_q"] = torch.tensor([0, 17, 26, 38, 44], dtype=torch.int32)
    assert_equal(asked(ours, joined), asked(plain, joined))
    assert ours.base_model.is_padding_free


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_scores_of_a_classifier_are_those_of_padded_rows(kind, left):
    plain = model_of(kind, AutoModelForSequenceClassification, num_labels=1, **ABLE[kind])
    ours = copy.deepcopy(plain)
    take_packed_rows(ours.base_model)
    inputs = batch(left)
    del inputs["labels"]
    found, expected = (model(**inputs).logits for model in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad((logits * torch.arange(4)[:, None]).sum(), [*model.parameters()], allow_unused=True)
        for logits, model in ((found, ours), (expected, plain))
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
    assert ours.base_model.is_padding_free


def test_half_precision_differs_by_its_rounding_alone():
    plain, ours = pair_of("llama", dtype=torch.bfloat16)
    inputs = batch()
    one, other = (model(**inputs, fused_lm_head=True).log_probs for model in (ours, plain))
    assert ours.base_model.is_padding_free
    assert (one - other).abs().mean() < 0.02


def test_a_model_of_one_trainer_goes_on_in_another():
    """Each puts TRL's head on it: with it, without it, and in a generation it answers as before."""
    plain, ours = pair_of("llama")
    add_fused_lm_head(ours, outputs=("log_probs", "entropy", "is_top1"))
    pad_no_more(ours)
    inputs = batch()
    assert_equal(asked(ours, inputs), asked(plain, inputs))
    for model in (plain, ours, copy.deepcopy(ours)):
        settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        found = model.generate(inputs["input_ids"][:1, :9], attention_mask=inputs["attention_mask"][:1, :9], **settings)
        assert torch.equal(found, plain.generate(inputs["input_ids"][:1, :9], **settings))
