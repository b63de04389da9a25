"""Rows to ids: what has a loss is what was written, after the prompt that the model answers, or the row is refused."""

import json

import pytest
import trl.chat_template_utils as templates
from transformers import AutoTokenizer

from hpt_trl.data.rendering import WHOLE, Encoder
from hpt_trl.errors import UserError
from tests.helpers.templates import FORGETFUL, SWITCHED_OFF, THOUGHTS

USER = {"role": "user", "content": "What is 2 + 3?"}


@pytest.fixture
def tokenizer(tiny_model_path):
    return AutoTokenizer.from_pretrained(tiny_model_path)


def row(answer: str, *before: dict) -> dict:
    return {"prompt": [*before, USER], "completion": [{"role": "assistant", "content": answer}]}


def trained_text(tokenizer, encoded) -> list[str]:
    """The runs of tokens with a loss, decoded."""
    runs, previous = [], 0
    for token, trained in zip(encoded.ids, encoded.trained, strict=True):
        if trained and previous:
            runs[-1].append(token)
        elif trained:
            runs.append([token])
        previous = trained
    return [tokenizer.decode(run) for run in runs]


def test_the_answer_has_a_loss_and_the_prompt_is_the_rollouts(tokenizer):
    encoded = Encoder(tokenizer).answered(row("It is 5."), "completion")
    assert trained_text(tokenizer, encoded) == ["It is 5.<|im_end|>\n"]
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    assert encoded.ids[: encoded.context] == prompt


def test_every_turn_of_a_conversation_is_found(tokenizer):
    first = [USER, {"role": "assistant", "content": "It is 5."}]
    conversation = {**row("It is 10.", *first), WHOLE: True}
    encoded = Encoder(tokenizer).answered(conversation, "completion")
    assert trained_text(tokenizer, encoded) == ["It is 5.<|im_end|>\n", "It is 10.<|im_end|>\n"]
    assert (encoded.turns, encoded.trained_turns) == (2, 2)
    last = Encoder(tokenizer).answered(conversation, "completion", last_turn_only=True)
    assert trained_text(tokenizer, last) == ["It is 10.<|im_end|>\n"] and last.ids == encoded.ids
    # Of prompt and completion, the turns of the prompt are context.
    apart = Encoder(tokenizer).answered({**conversation, WHOLE: False}, "completion")
    assert apart == last


def test_turns_of_the_user_within_an_answer_have_no_loss(tokenizer):
    answer = [
        {"role": "assistant", "content": "Of what?"},
        {"role": "user", "content": "Of 7."},
        {"role": "assistant", "content": "It is 8."},
    ]
    encoded = Encoder(tokenizer).answered({"prompt": [USER], "completion": answer}, "completion")
    assert trained_text(tokenizer, encoded) == ["Of what?<|im_end|>\n", "It is 8.<|im_end|>\n"]


@pytest.mark.parametrize(
    ("template", "answer", "message"),
    [
        (FORGETFUL, THOUGHTS, r"leaves out '\\n2 \+ 3 = 5"),
        (templates.qwen3_8_chat_template, THOUGHTS, "writes thoughts of its own before those of the message"),
        (templates.qwen2_5_chat_template, "2 + 3 = 5\n</think>\n\n5", r"its </think> closes nothing"),
        (templates.qwen2_5_chat_template, "<think>2 + 3", r"its <think> is never closed"),
        ("{% for message in messages %}{{ message.content[:4] }}{% endfor %}", "It is 5.", "leaves out 'It is 5"),
    ],
)
def test_an_answer_that_would_be_trained_otherwise_is_refused(tokenizer, template, answer, message):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message) as refused:
        Encoder(tokenizer, comparisons=True).answered(row(answer), "completion")
    assert "the message: " in str(refused.value) and "as rendered: " in str(refused.value)


def test_a_prompt_that_the_template_does_not_continue_is_refused_with_both_texts(tokenizer):
    tokenizer.chat_template = SWITCHED_OFF
    assert Encoder(tokenizer).answered(row("5"), "completion")
    with pytest.raises(UserError, match="does not continue the prompt") as refused:
        Encoder(tokenizer, {"enable_thinking": False}).answered(row("5"), "completion")
    assert "the prompt ends: " in str(refused.value) and "the conversation reads: " in str(refused.value)
    assert r"<think>\n\n</think>" in str(refused.value)


def test_trainers_that_take_the_training_template_keep_the_thoughts(tokenizer):
    tokenizer.chat_template = templates.deepseek_r1_distill_chat_template
    with pytest.raises(UserError, match="does not continue the prompt"):
        Encoder(tokenizer, comparisons=True).answered(row(THOUGHTS), "completion")
    (text,) = trained_text(tokenizer, Encoder(tokenizer).answered(row(THOUGHTS), "completion"))
    assert "2 + 3 = 5" in text and text.count("</think>") == 1


def test_tools_and_settings_of_a_row_are_rendered(tokenizer):
    tokenizer.chat_template = templates.qwen2_5_chat_template
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
    with_tool = {**row("5"), "tools": [tool]}
    ids = tokenizer.apply_chat_template([USER], tools=[tool], add_generation_prompt=True)["input_ids"]
    assert Encoder(tokenizer).prompt(with_tool) == ids
    # As JSON has them, and as pandas writes them into .csv files.
    for text in (json.dumps([tool]), str([tool])):
        assert Encoder(tokenizer).prompt({**with_tool, "tools": text}) == ids
    alone = tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    assert Encoder(tokenizer, reads_rows=False).prompt(with_tool) == alone and len(ids) > len(alone)
    tokenizer.chat_template = SWITCHED_OFF
    own = {**row("5"), "chat_template_kwargs": {"enable_thinking": False}}
    assert "<think>" in tokenizer.decode(Encoder(tokenizer).prompt(own))
    assert "<think>" not in tokenizer.decode(Encoder(tokenizer).prompt(row("5")))
