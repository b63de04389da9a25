"""Tokenizers that users have: without an end, that end every text, with more tokens than the model has embeddings."""

import json

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from trl import GRPOConfig

from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import encode_prompts
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.runs.preparation import prepare
from tests.helpers.tiny import build_model, build_tokenizer


@pytest.fixture
def saved(tmp_path):
    """Saves the tiny model beside a tokenizer that a function has changed."""

    def save(change, **settings) -> str:
        folder = str(tmp_path / "model")
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
        change(tokenizer, model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def without_end(tokenizer, model) -> None:
    tokenizer.eos_token = tokenizer.pad_token = None


def ending(tokenizer, model) -> None:
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )


def narrowed(tokenizer, model) -> None:
    model.resize_token_embeddings(260)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo", "ppo", "rho1"])
def test_a_tokenizer_without_an_end_is_refused(recipe, saved, stage):
    words = ["--selection", "full", "--column_mapping", "{text: prompt}"] if stage == "rho1" else []
    with pytest.raises(UserError, match=r"has no end-of-sequence token, which has to close every answer and document"):
        prepare(recipe(stage, model_name_or_path=saved(without_end)), words)


def test_the_end_of_a_text_is_one_that_the_recipe_names(recipe, saved):
    words = ["--eos_token", "<|im_end|>"]
    prepared = prepare(recipe("sft", model_name_or_path=saved(without_end)), words)
    assert prepared.tokenizer.pad_token == "<|im_end|>"
    row = prepared.encoder.answered({"prompt": "1 +", "completion": " 1"}, "completion")
    assert prepared.tokenizer.decode(row.ids) == "1 + 1<|im_end|>"
    with pytest.raises(UserError, match=r"<\|nd\|> is no token of"):
        prepare(recipe("sft", model_name_or_path=saved(without_end)), ["--eos_token", "<|nd|>"])


def test_no_text_is_closed_with_a_word_in_place_of_a_token():
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(tokenizer).document("one")
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(tokenizer).answered({"prompt": "1 + 1 =", "completion": " 2"}, "completion")


def test_a_prompt_goes_on_whatever_the_tokenizer_writes_behind_it(saved, tmp_path):
    folder = saved(ending)
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), build_tokenizer()
    assert tokenizer("1 + 1")["input_ids"][-1] == tokenizer.eos_token_id
    right = [plain(text)["input_ids"] for text in ("1 + 1", "2")]
    rows = [{"prompt": "1 + 1"}, {"prompt": "2"}]
    encoder = Encoder(tokenizer)
    assert [encoder.prompt(row) for row in rows] == right
    assert encode_prompts(encoder, rows, return_tensors=None)["input_ids"] == right
    padded = encode_prompts(encoder, rows)
    assert [ids[mask.bool()].tolist() for ids, mask in zip(*padded.values(), strict=True)] == right
    seen = []

    def reward(prompts, completions, completion_ids, **columns):
        return [1.0] * len(prompts)

    class Watched(RolloutTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            seen.extend(prompt_ids)
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    config = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        max_completion_length=4,
        num_generations=2,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    Watched(folder, reward, args=config, train_dataset=Dataset.from_list(rows)).train()
    assert sorted(map(tuple, seen)) == sorted(tuple(ids) for ids in right for _ in range(len(seen) // 2))


@pytest.mark.parametrize(
    ("stage", "rows"),
    [
        ("sft", [{"prompt": "What is 1?", "completion": "Answer: the total is 1."}]),
        ("rho1", [{"text": "Answer: the total is 1."}]),
        ("dpo", [{"prompt": "What is 1?", "chosen": "Answer: the total", "rejected": "b"}]),
        ("grpo", [{"prompt": "Answer: the total is what?"}]),
    ],
)
def test_a_token_without_an_embedding_is_named_with_its_row(recipe, saved, tmp_path, stage, rows):
    data = tmp_path / "rows.jsonl"
    good = {key: "zq" * (1 + (key == "rejected")) for key in rows[0]}
    data.write_text("".join(json.dumps(row) + "\n" for row in [good] * 4 + rows))
    changes = {"dataset_name": str(data), "test_split_size": None, "model_name_or_path": saved(narrowed)}
    changes |= {"selection": "full"} if stage == "rho1" else {"conversational": False}
    with pytest.raises(UserError, match=r"rows.jsonl, line 5: the token '.+' has the id [23]\d\d, but"):
        prepare(recipe(stage, **changes), [])
    data.write_text("".join(json.dumps(row) + "\n" for row in [good] * 8))
    assert prepare(recipe(stage, **changes), []).encoder.embedded == 260


def test_a_pad_token_without_an_embedding_is_refused(recipe, saved):
    def padded(tokenizer, model) -> None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})

    with pytest.raises(UserError, match=r"`pad_token` <pad> has the id 372, but the model has embeddings for 372"):
        prepare(recipe("sft", model_name_or_path=saved(padded)), [])
