"""The evaluation on a real model: what is counted, and that it leaves the training's state alone."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import encode_prompts
from hpt_trl.rewards.completions import score_completions, weighted_reward
from hpt_trl.runs.evaluation import evaluate
from hpt_trl.runs.reporting import accuracy_line
from tests.helpers.images import image_rows

SETTINGS = {"max_new_tokens": 8, "batch_size": 3, "seed": 7}


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return AutoModelForCausalLM.from_pretrained(tiny_model_path)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path):
    return AutoTokenizer.from_pretrained(tiny_model_path)


def sums(rows: int, *, conversational: bool = True) -> Dataset:
    questions = ["What is " + " + ".join(str(n) for n in range(i, i + 1 + i % 3)) + "?" for i in range(rows)]
    prompts = [[{"role": "user", "content": q}] for q in questions] if conversational else questions
    return Dataset.from_dict({"prompt": prompts, "answer": [str(i) for i in range(rows)]})


def is_even(prompts, completions, completion_ids, answer, **columns):
    return [float(int(a) % 2 == 0) for a in answer]


def length(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def test_accuracy_counts_rows_in_their_own_order(model, tokenizer):
    result = evaluate(model, Encoder(tokenizer), sums(7), [is_even], **SETTINGS)
    assert result["accuracy"] == pytest.approx(4 / 7)
    assert result["reward"] == pytest.approx(4 / 7)
    assert result["samples"] == 7 and result["unscored"] == 0
    assert [entry["row"] for entry in result["completions"]] == list(range(7))
    assert [entry["reward"] for entry in result["completions"]] == [1, 0, 1, 0, 1, 0, 1]
    assert result["completions"][4]["prompt"] == "What is 4 + 5?"
    assert result["completions"][4]["answer"] == "4"


@pytest.mark.parametrize("conversational", [True, False])
def test_greedy_completions_equal_generate_one_by_one(model, tokenizer, conversational):
    rows = sums(5, conversational=conversational)
    result = evaluate(model, Encoder(tokenizer), rows, [length], **SETTINGS)
    lengths, prompt_tokens = [], 0
    for row, entry in zip(rows, result["completions"], strict=True):
        text = row["prompt"]
        if conversational:
            text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt").input_ids
        config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        output = model.generate(input_ids=ids, generation_config=config)[0, ids.shape[1] :]
        assert entry["completion"] == tokenizer.decode(output, skip_special_tokens=True)
        assert entry["length"] == len(output) == entry["reward"]
        lengths.append(len(output))
        prompt_tokens += ids.shape[1]
    assert result["mean_length"] == pytest.approx(sum(lengths) / 5)
    assert result["tokens"] == sum(lengths) + prompt_tokens


def test_sampling_follows_the_seed_and_leaves_the_random_state_and_mode_alone(model, tokenizer):
    sampled = {**SETTINGS, "temperature": 1.0, "num_generations": 4}
    model.train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = evaluate(model, Encoder(tokenizer), sums(3), [length], **sampled)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    again = evaluate(model, Encoder(tokenizer), sums(3), [length], **sampled)
    other = evaluate(model, Encoder(tokenizer), sums(3), [length], **{**sampled, "seed": 8})
    assert first == again
    assert first["completions"] != other["completions"]
    assert first["samples"] == 3 and first["num_generations"] == 4


def test_weights_and_threshold(model, tokenizer):
    thirds = [lambda completions, **_: [1.0] * len(completions)] * 3
    settings = {**SETTINGS, "reward_weights": [0.7, 0.2, 0.1]}
    assert sum([0.7, 0.2, 0.1]) < 1
    assert evaluate(model, Encoder(tokenizer), sums(2), thirds, **settings)["accuracy"] == 1.0
    assert evaluate(model, Encoder(tokenizer), sums(2), thirds, **settings, success_threshold=1.01)["accuracy"] == 0.0


def test_rewards_that_do_not_apply_or_are_not_finite_are_left_out_of_the_mean(model, tokenizer):
    def odd(completions, answer, **_):
        return [{0: None, 1: math.inf, 2: 0.5}.get(int(a), 1.0) for a in answer]

    result = evaluate(model, Encoder(tokenizer), sums(4), [odd], **SETTINGS)
    assert result["unscored"] == result["undecided"] == 2
    assert "2 completions have no value of odd, and count as not solved" in accuracy_line("after", result)
    other = evaluate(model, Encoder(tokenizer), sums(4), [odd, is_even], **SETTINGS, success_reward="is_even")
    assert (other["unscored"], other["undecided"]) == (1, 0) and "no value" not in accuracy_line("after", other)
    assert result["reward"] == pytest.approx(0.75)
    assert result["accuracy"] == pytest.approx(1 / 4)


def test_truncated_share_and_end_tokens(model, tokenizer):
    tiny = evaluate(model, Encoder(tokenizer), sums(4), [length], **{**SETTINGS, "max_new_tokens": 1})
    assert tiny["mean_length"] == 1
    ended = sum(entry["completion"] == "" for entry in tiny["completions"])
    assert tiny["truncated"] == pytest.approx(1 - ended / 4)


def test_async_rewards_and_messages():
    async def later(completions, **_):
        return [float(completion[0]["content"] == "yes") for completion in completions]

    def now(completions, completion_ids, trainer_state, **_):
        return [float(len(ids)) for ids in completion_ids]

    rows = [{"prompt": [{"role": "user", "content": "?"}], "completion": "hidden"}] * 2
    assert score_completions(rows, ["yes", "no"], [[1], [1, 2]], [later, now]) == [[1.0, 1.0], [0.0, 2.0]]


def test_weighted_reward():
    assert weighted_reward([1.0, None], [0.5, 2.0]) == 0.5
    assert weighted_reward([None, None], [1.0, 1.0]) is None
    assert weighted_reward([math.nan, 1.0], [1.0, 1.0]) is None


def test_as_text():
    assert as_text("plain") == "plain"
    assert as_text([{"role": "user", "content": "alone"}]) == "alone"
    both = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
    assert as_text(both) == "system: Be brief.\nuser: <image>"


def test_encode_prompts_pads_on_the_left(tokenizer):
    encoded = encode_prompts(Encoder(tokenizer), [{"prompt": "1"}, {"prompt": "1 + 2"}])
    assert encoded["attention_mask"][0, 0] == 0 and encoded["attention_mask"].shape == encoded["input_ids"].shape
    ragged = encode_prompts(Encoder(tokenizer), list(sums(3)), return_tensors=None)["input_ids"]
    assert len({len(ids) for ids in ragged}) > 1


def test_refusals(model, tokenizer):
    with pytest.raises(UserError, match="no held-out rows"):
        evaluate(model, Encoder(tokenizer), sums(0), [length], **SETTINGS)
    with pytest.raises(UserError, match="eval_temperature"):
        evaluate(model, Encoder(tokenizer), sums(2), [length], **SETTINGS, num_generations=2)


def test_images_reach_a_vision_language_model(vlm_path):
    vision, processor = AutoModelForImageTextToText.from_pretrained(vlm_path), AutoProcessor.from_pretrained(vlm_path)
    rows = image_rows()
    batched = evaluate(vision, Encoder(processor), rows, [length], **SETTINGS)
    alone = evaluate(vision, Encoder(processor), rows, [length], **SETTINGS | {"batch_size": 1})
    texts = [entry["completion"] for entry in batched["completions"]]
    assert texts == [entry["completion"] for entry in alone["completions"]]
    # 16 image tokens for each row, and rows that differ in nothing but their image.
    assert batched["tokens"] > 16 * len(rows)
    one_image = Dataset.from_list([row | {"image": rows[0]["image"]} for row in rows])
    assert texts != [
        e["completion"] for e in evaluate(vision, Encoder(processor), one_image, [length], **SETTINGS)["completions"]
    ]
