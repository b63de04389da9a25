"""Rows that leave come to what transformers' own loop gives them, in fewer positions."""

import logging

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3MoeConfig,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from hpt_trl.models.generating import leaving
from hpt_trl.models.generating.leaving import finished_rows_leave

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.1,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "absolute": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, initializer_range=0.1),
    "alibi": BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.1),
    "window": MistralConfig(**SIZES, sliding_window=8),
    "window here and there": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
    "experts": Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=32, num_experts_per_tok=2),
}
SETTINGS = {
    "drawn": {"do_sample": True, "top_k": 0},
    "greedy": {"do_sample": False},
    "cut": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
}
PAD, ENDS, GROUP = 1, list(range(2, 300, 17)), 4
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 20], [100] * 5]


def model_of(config, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **settings).eval()


def batch(prompts=PROMPTS, group=GROUP):
    rows = [prompt for prompt in prompts for _ in range(group)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])}


def generated(model, ours, inputs=None, ends=ENDS, tokens=30, **settings):
    """Sequences, the next random number, and the shapes of the forward passes."""
    shapes = []
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = inner.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    config = GenerationConfig(max_new_tokens=tokens, pad_token_id=PAD, eos_token_id=ends, **settings)
    torch.manual_seed(1)
    if ours:
        with finished_rows_leave(model, sharded=False):
            output = model.generate(**(inputs or batch()), generation_config=config)
    else:
        output = model.generate(**(inputs or batch()), generation_config=config)
    hook.remove()
    return output, torch.rand(1), shapes


def lengths(output):
    drawn = output[:, max(map(len, PROMPTS)) :]
    return [next((place + 1 for place, token in enumerate(row) if token in ENDS), len(row)) for row in drawn.tolist()]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rows_are_those_of_transformers_own_loop(config, settings):
    model = model_of(config)
    stock, random_state, stock_shapes = generated(model, ours=False, **settings)
    ours, own_random_state, shapes = generated(model, ours=True, **settings)
    assert torch.equal(ours, stock)
    assert torch.equal(own_random_state, random_state)
    # A prompt once, and each token that is drawn but the last of its row.
    width = max(map(len, PROMPTS))
    assert shapes[0] == (len(PROMPTS), width)
    assert sum(rows for rows, _ in shapes[1:]) == sum(length - 1 for length in lengths(stock))
    assert len(shapes) == len(stock_shapes)
    assert stock_shapes[0] == (len(PROMPTS) * GROUP, width)
    assert len(set(lengths(stock))) > 1 or not settings["do_sample"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("settings", [SETTINGS["drawn"], SETTINGS["greedy"]], ids=["drawn", "greedy"])
def test_keys_that_are_cast_once_change_nothing(attention, settings):
    model = model_of(LlamaConfig(**SIZES), attn_implementation=attention)
    inputs = batch(group=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # More tokens than a layer of the cache makes room for at a time.
        stock, *_ = generated(model, ours=False, inputs=inputs, ends=[2], tokens=80, **settings)
        ours, *_ = generated(model, ours=True, inputs=inputs, ends=[2], tokens=80, **settings)
    assert torch.equal(ours, stock)
    assert (ours[:, -1] != PAD).any()


def test_a_batch_without_padding_or_shared_prompts(subtests):
    model = model_of(LlamaConfig(**SIZES))
    for prompts, group in ([[[5, 6, 7]], 1], [[[5, 6, 7]], 3], [[[5, 6, 7], [8, 9, 10]], 1]):
        with subtests.test(prompts=prompts, group=group):
            inputs = batch(prompts, group)
            stock, *_ = generated(model, ours=False, inputs=inputs, **SETTINGS["drawn"])
            ours, *_ = generated(model, ours=True, inputs=inputs, **SETTINGS["drawn"])
            assert torch.equal(ours, stock)


def test_an_adapter_draws_as_in_transformers_own_loop():
    model = get_peft_model(
        model_of(LlamaConfig(**SIZES)), LoraConfig(init_lora_weights=False, target_modules="all-linear")
    )
    model.eval()
    stock, *_ = generated(model, ours=False, **SETTINGS["drawn"])
    ours, _, shapes = generated(model, ours=True, **SETTINGS["drawn"])
    assert torch.equal(ours, stock)
    assert shapes[0][0] == len(PROMPTS)


def test_with_dropout_rows_of_a_prompt_differ_from_its_first_token_on():
    model = model_of(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    *_, shapes = generated(model, ours=True, **SETTINGS["drawn"])
    assert shapes[0][0] == len(PROMPTS) * GROUP
    assert shapes[-1][0] < shapes[0][0]
    model.eval()
    *_, shapes = generated(model, ours=True, **SETTINGS["drawn"])
    assert shapes[0][0] == len(PROMPTS)


def test_a_criterion_sees_all_rows_and_ends_those_it_names():
    class Settled(StoppingCriteria):
        """After three tokens the second prompt's rows are settled."""

        def __call__(self, input_ids, scores, **kwargs):
            assert len(input_ids) == len(PROMPTS) * GROUP
            rows = torch.arange(len(input_ids))
            return (rows // GROUP == 1) & (input_ids.shape[1] >= max(map(len, PROMPTS)) + 3)

    model, config = (
        model_of(LlamaConfig(**SIZES)),
        GenerationConfig(max_new_tokens=20, pad_token_id=PAD, eos_token_id=2),
    )
    with finished_rows_leave(model, sharded=False, stopping=Settled()):
        output = model.generate(**batch(), generation_config=config)
    drawn = output[:, max(map(len, PROMPTS)) :]
    assert (drawn[GROUP : 2 * GROUP, 3:] == PAD).all()
    assert not (drawn[GROUP : 2 * GROUP, :3] == PAD).any()
    assert not (drawn[:GROUP] == PAD).any()


def told(caplog, model, sharded=False, inputs=None, **settings):
    leaving._tell.cache_clear()
    config = GenerationConfig(max_new_tokens=3, **({"pad_token_id": PAD, "eos_token_id": 2} | settings))
    with caplog.at_level(logging.INFO, logger="hpt_trl"), finished_rows_leave(model, sharded=sharded):
        for _ in range(2):
            model.generate(**(inputs or batch()), generation_config=config)
    messages = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Generation: ")]
    caplog.clear()
    return messages


def test_it_is_said_once_which_loop_goes(caplog):
    llama = model_of(LlamaConfig(**SIZES))
    ours = ["Generation: each prompt is computed once, and rows that have ended leave the batch."]
    assert told(caplog, llama) == ours
    prefix = get_peft_model(
        model_of(LlamaConfig(**SIZES)), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    torch.manual_seed(0)
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    )
    cases = [
        (llama, {"sharded": True}, "its weights are sharded"),
        (llama, {"num_beams": 2}, "it decodes by beam_search"),
        (llama, {"cache_implementation": "static"}, "`cache_implementation` is set"),
        (llama, {"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` or `use_cache` is set"),
        (llama, {"use_cache": False}, "`num_return_sequences` or `use_cache` is set"),
        (llama, {"eos_token_id": None}, "no token ends a completion, or none pads it"),
        (llama, {"inputs": batch() | {"logits_to_keep": 1}}, "it is given logits_to_keep"),
        (model_of(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1)), {}, "something else than keys"),
        (encoder_decoder, {}, "an encoder-decoder, reads more than text"),
        (prefix, {}, "its adapter acts by a token's place"),
    ]
    for model, settings, reason in cases:
        (message,) = told(caplog, model, **settings)
        assert message.startswith("Generation: by transformers' own loop, all rows to the end of the longest, as ")
        assert reason in message
    assert "generate" not in vars(llama)
