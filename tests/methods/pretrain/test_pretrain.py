"""Pretraining by recipe: a new model with a tokenizer of its own, held-out loss, resume, and what is refused."""

import json
import random

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.data.stories import stories
from hpt_trl.errors import UserError
from hpt_trl.methods.pretrain.tokenizer import train_tokenizer
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs import runner
from tests.helpers.pretraining import MODEL
from tests.helpers.stage_runs import weights

KEYS = {
    "stage": "pretrain",
    "model_config": MODEL,
    "tokenizer_vocab_size": 400,
    "dataset_name": "stories:documents",
    "dataset_options": {"size": 200, "test_size": 20},
    "max_length": 64,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "seed": 3,
}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with the given keys on top of `KEYS` (None removes one) and returns its path."""

    def write(**changes) -> str:
        values = {**KEYS, "output_dir": str(tmp_path / "out"), **changes}
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


@pytest.mark.parametrize("strategy", ["wrapped", "bfd"])
def test_a_run_learns_and_leaves_a_model_with_its_tokenizer(recipe, tmp_path, strategy):
    out = tmp_path / "out"
    runner.run(recipe(packing_strategy=strategy, max_steps=30), [])
    results = json.loads((out / "results.json").read_text())
    # From about ln 400 = 6.
    assert results["before"]["held_out"]["loss"] > 5.5
    assert results["after"]["held_out"]["loss"] < results["before"]["held_out"]["loss"] - 1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size == 400
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(model.config, name) for name in special] == [getattr(tokenizer, name) for name in special]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_resume_gives_the_weights_of_never_stopping(recipe, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    runner.run(recipe(output_dir=str(straight)), [])
    runner.run(recipe(output_dir=str(stopped), max_steps=2, save_strategy="steps", save_steps=2), [])
    again = recipe(output_dir=str(stopped), resume_from_checkpoint="true")
    runner.run(again, [])
    assert weights(stopped) == weights(straight)
    assert weights(stopped, "tokenizer.json") == weights(straight, "tokenizer.json")


def test_the_seed_draws_the_weights(recipe, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        runner.run(recipe(output_dir=str(tmp_path / name), max_steps=1, seed=seed), [])
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_config_and_tokenizer_of_another_model(recipe, tmp_path, tiny_model_path):
    keys = {"tokenizer_vocab_size": None, "tokenizer_name_or_path": tiny_model_path, "max_steps": 1}
    runner.run(
        recipe(model_config={"num_hidden_layers": 1}, model_config_name_or_path=tiny_model_path, **keys),
        [],
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 1 and model.config.hidden_size == 32
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                **{"dataset_options": {"size": 1, "test_size": 0}, "tokenizer_vocab_size": 260, "max_length": 1024},
                "model_config": {**MODEL, "max_position_embeddings": 1024},
            },
            r"`max_length`: a block of 1024 tokens, but stories:documents has \d+ in all \(1 documents\)",
        ),
        ({"tokenizer_vocab_size": 4000}, r"`tokenizer_vocab_size`: 4000: the 200 documents .* support \d+ tokens"),
        ({"tokenizer_vocab_size": 100}, "256 bytes and 3 special tokens are 259 already"),
        ({"tokenizer_vocab_size": None}, "a new model needs a tokenizer"),
        ({"tokenizer_name_or_path": "smollm2-135m"}, "keep one of the two"),
        ({"use_peft": True}, "leave these random weights random"),
        ({"load_in_4bit": True}, "quantized weights are frozen"),
        ({"model_name_or_path": "smollm2-135m"}, "starts at random ones"),
        ({"model_config": None}, "a model from random weights needs it"),
        ({"model_config": {**MODEL, "hiden_size": 64}}, "llama has no `hiden_size`.*hidden_size"),
        ({"model_config": {**MODEL, "model_type": "lama"}}, "no language model of Transformers.*llama"),
        ({"model_config": {**MODEL, "vocab_size": 300}}, "the tokenizer has 400 tokens"),
        ({"model_config": {**MODEL, "eos_token_id": 1}}, "`eos_token_id` comes from the tokenizer"),
        ({"model_config": {**MODEL, "hidden_size": 30}}, "a model cannot be made from it"),
        ({"model_config": {**MODEL, "attention_dropout": 2}}, "`attention_dropout` is 2; allowed: 0 to 1"),
        ({"max_length": 256}, "`max_position_embeddings` is 128"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        runner.run(recipe(**changes), [])
    assert not (tmp_path / "out").exists()


def test_the_cluster_recipe_describes_a_model_of_a_billion_parameters(tiny_model_path):
    recipe = read_recipe(find_recipe("pretrain/llama-1b-fineweb-edu"), ["--use_cpu", "true"], world_size=8)
    recipe.stage.check(recipe)
    config = recipe.stage.make_config(recipe, AutoTokenizer.from_pretrained(tiny_model_path))
    config.vocab_size = 49152
    with torch.device("meta"):
        assert 1.0e9 < AutoModelForCausalLM.from_config(config).num_parameters() < 1.2e9
    assert config.rope_parameters["rope_theta"] == 500000
    assert recipe.config.gradient_accumulation_steps == 4


def test_the_tokenizer_gives_any_text_back_and_is_the_same_each_time():
    texts = list(stories("documents", {"size": 300, "test_size": 0}, seed=0)[0]["text"])
    tokenizer = train_tokenizer(texts, 500, ["<|im_start|>"])
    assert len(tokenizer) == 500
    generator = random.Random(0)
    noise = "".join(chr(generator.choice([9, 10, 13, 32, 65, 233, 0x4E2D, 0x1F600])) for _ in range(200))
    for text in [*texts[:20], noise, "  two  spaces\n\n\tand 1234 tabs ", "it's DON'T"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    # A prompt's tokens are those that the text with its completion begins with.
    row = stories("demonstrations", {"size": 1, "test_size": 0}, seed=0)[0][0]
    prompt = tokenizer(row["prompt"])["input_ids"]
    assert tokenizer(row["prompt"] + row["completion"])["input_ids"][: len(prompt)] == prompt
    assert tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("<|im_start|>")
    ]
    generator.shuffle(texts)
    assert train_tokenizer(texts, 500, ["<|im_start|>"]).get_vocab() == tokenizer.get_vocab()
