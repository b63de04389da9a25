"""A model's generation_config.json changes neither the evaluation nor the rollouts."""

import json
import logging

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.data.rendering import Encoder
from hpt_trl.models import decoding
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.runs.evaluation import evaluate
from tests.helpers.rollouts import build

BIASED = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(20, 200)),
    "top_k": 7,
    "num_beams": 2,
    "min_length": 64,
}


@pytest.fixture(scope="module")
def biased(tiny_model_path, tmp_path_factory):
    """The tiny model with another generation_config.json."""
    folder = tmp_path_factory.mktemp("models") / "biased"
    AutoModelForCausalLM.from_pretrained(tiny_model_path).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | BIASED))
    return str(folder)


def answers(model, tokenizer, **settings) -> list[str]:
    rows = Dataset.from_dict({"prompt": [f"{number} + 1 =" for number in range(4)]})
    arguments = {"max_new_tokens": 12, "batch_size": 4} | settings
    result = evaluate(model, Encoder(tokenizer), rows, [lambda completions, **_: [0.0] * len(completions)], **arguments)
    return [entry["completion"] for entry in result["completions"]]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}])
def test_the_evaluation_decodes_by_the_model_alone(tiny_model_path, biased, settings, lora, caplog):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model_path, biased)]
    prompt = tokenizer("1 + 1 =", return_tensors="pt")
    outputs = [model.generate(**prompt, max_new_tokens=12).tolist() for model in models]
    assert outputs[0] != outputs[1]
    if lora:
        models = [get_peft_model(model, LoraConfig(target_modules="all-linear")) for model in models]
    decoding._tell.cache_clear()
    with caplog.at_level(logging.WARNING):
        stock, ours = (answers(model, tokenizer, **settings) for model in models)
        answers(models[1], tokenizer, **settings)
    assert stock == ours
    told = [record.getMessage() for record in caplog.records if "generation_config.json" in record.getMessage()]
    assert len(told) == 1 and all(key in told[0] for key in BIASED)
    # What is saved with the model is what came with it.
    assert models[1].generation_config.repetition_penalty == 5.0


def test_rollouts_are_drawn_from_the_model_alone(tiny_model_path, biased, tmp_path):
    seen = []

    def record(completion_ids, **_):
        seen.append(completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    for path in (tiny_model_path, biased):
        trainer = build(RolloutTrainer, path, tmp_path, reward=record)
        trainer.train()
    assert seen[0] == seen[1]
    assert trainer.model.generation_config.no_repeat_ngram_size == 1
    # The recipe's own keys stay.
    banned = seen[0][0][0]
    kwargs = {"suppress_tokens": [banned]}
    build(RolloutTrainer, biased, tmp_path, reward=record, generation_kwargs=kwargs).train()
    build(RolloutTrainer, biased, tmp_path, reward=record, repetition_penalty=5.0).train()
    assert banned not in {token for ids in seen[2] for token in ids}
    assert seen[3] != seen[0]


def test_end_tokens_of_the_file_still_end_a_completion(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    whole = answers(model, tokenizer)
    ids = tokenizer(whole[0])["input_ids"]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids[0]]
    assert len(answers(model, tokenizer)[0]) < len(whole[0])
