"""Completions for an evaluation: a prompt is computed once for all of its completions, and none beyond its end."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.data.rendering import Encoder
from hpt_trl.evaluation.generating import Decoding, generate

ROWS = Dataset.from_dict({"prompt": [f"{number} + {number} =" for number in (1, 20, 33)]})
LIMIT = 20


@pytest.mark.parametrize("stop", [(), ("a", "9", "2")], ids=["end token", "stop texts"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_those_of_generate(tiny_model_path, stop, temperature):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    decoding = Decoding(max_new_tokens=LIMIT, n=4, temperature=temperature, stop=stop, seed=5)
    (samples,) = generate(model, Encoder(tokenizer), ROWS, decoding, batch_size=12)
    ours, lengths = list(shapes), [len(sample.ids) for sample in samples]
    assert ours[0][0] == len(ROWS)
    assert sum(rows for rows, width in ours[1:]) == sum(length - 1 for length in lengths)
    assert min(lengths) < LIMIT or not (stop and temperature)

    inputs = tokenizer([ROWS[sample.index]["prompt"] for sample in samples], padding=True, return_tensors="pt")
    settings = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    torch.manual_seed(5)
    output = model.generate(
        **inputs,
        max_new_tokens=LIMIT,
        do_sample=temperature > 0,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    drawn = output[:, inputs["input_ids"].shape[1] :].tolist()
    assert [sample.ids for sample in samples] == [ids[:length] for ids, length in zip(drawn, lengths, strict=True)]
    assert all(set(ids[length:]) <= {tokenizer.pad_token_id} for ids, length in zip(drawn, lengths, strict=True))
