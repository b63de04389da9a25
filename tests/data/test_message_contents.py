"""What messages may hold, and what templates make of it: nothing is trained that nobody wrote, and nothing raises."""

import json

import pytest
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.runs.preparation import prepare
from tests.helpers.datasets import refused, write_jsonl
from tests.helpers.tiny import CHAT_TEMPLATE, build_model, build_tokenizer

GOOD = {"prompt": [{"role": "user", "content": "1 + 1?"}], "completion": [{"role": "assistant", "content": "2"}]}
# Llama's and Mistral's way with what they do not take.
STRICT = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A model without a limit of positions.
BLOOM = BloomConfig(vocab_size=512, hidden_size=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2, pad_token_id=0)
PRINTING = CHAT_TEMPLATE.replace("'\n' + message['content'] + '", "'\n' ~ message['content'] ~ '")


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "content",
    [5, 1.5, True, {"text": "a"}, ["a"], [5], [None], [["a"]], [{"text": "a"}], [{"type": 1}], [{"type": "text"}]],
    ids=json.dumps,
)
@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_content_that_is_neither_text_nor_parts_is_refused(tmp_path, column, content):
    bad = {"prompt": GOOD["prompt"], "completion": GOOD["completion"]}
    bad[column] = [dict(bad[column][0], content=content)]
    message = refused(write_jsonl(tmp_path / "rows.jsonl", [bad]))
    assert "rows.jsonl, line 1: `" + column + "`, message 1" in message and "content" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "calls", [5, "x", {"name": "f"}, [5], ["f"], [{}], [{"function": "f"}], [{"function": {"name": 5}}]], ids=json.dumps
)
def test_calls_that_name_no_function_are_refused(tmp_path, calls):
    bad = {**GOOD, "completion": [{"role": "assistant", "content": "a", "tool_calls": calls}]}
    message = refused(write_jsonl(tmp_path / "rows.jsonl", [bad]))
    assert "line 1: `completion`, message 1 (assistant): " in message and "`tool_calls` is" in message


def test_a_long_role_does_not_flood(tmp_path):
    message = refused(
        write_jsonl(tmp_path / "rows.jsonl", [{**GOOD, "prompt": [{"role": "x" * 5000, "content": "a"}]}])
    )
    assert len(message) < 400


@pytest.fixture
def prepared(recipe, tmp_path):
    """Prepares a stage over rows, with a template of the tiny model."""

    def prepare_rows(stage, rows, template=CHAT_TEMPLATE, limited=True, **changes):
        folder, data = str(tmp_path / "model"), write_jsonl(tmp_path / "rows.jsonl", rows)
        tokenizer = build_tokenizer()
        tokenizer.chat_template = template
        model = build_model(tokenizer) if limited else BloomForCausalLM(BLOOM)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        given = {"dataset_name": str(data), "test_split_size": None, "model_name_or_path": folder}
        return prepare(recipe(stage, **given | changes), [])

    return prepare_rows


SYSTEM = {"prompt": [{"role": "system", "content": "Be brief."}, *GOOD["prompt"]]}
TWICE = {"prompt": GOOD["prompt"] * 2}


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize(("bad", "said"), [(SYSTEM, "no system role"), (TWICE, "roles must alternate")])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_what_a_template_does_not_take_is_named_with_its_row(prepared, stage, bad, said, limited):
    rows = [GOOD] * 4 + [GOOD | bad]
    with pytest.raises(UserError, match=f"rows.jsonl, line 5: the chat template does not render .*{said}"):
        prepared(stage, rows, STRICT, limited)
    assert prepared(stage, [GOOD] * 4, STRICT, limited)


@pytest.mark.parametrize("template", ["{# nothing #}", "{% for message in messages[1:] %}{{ message }}{% endfor %}"])
def test_a_template_that_writes_nothing_of_a_prompt_is_named(prepared, template):
    with pytest.raises(UserError, match="line 1: the chat template writes nothing of the prompt"):
        prepared("grpo", [GOOD] * 4, template, False)


@pytest.mark.parametrize("template", [PRINTING, PRINTING.replace("['content']", "['content'] | tojson")])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_typed_parts_are_no_text(prepared, stage, template):
    parts = [{"type": "text", "text": "1 + 1?"}]
    with pytest.raises(UserError, match="line 1: the chat template writes typed parts as they are stored"):
        prepared(stage, [{**GOOD, "prompt": user(parts)}] * 4, template, False)


def test_missing_content_is_no_word(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "1"}}}
    tokenizer.chat_template = PRINTING.replace(
        "~ '<|im_end|>'", "~ (message.tool_calls | tojson if message.tool_calls else '') ~ '<|im_end|>'"
    )
    row = {**GOOD, "completion": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    text = tokenizer.decode(Encoder(tokenizer).answered(row, "completion").ids)
    assert '<|im_start|>assistant\n[{"type": "function"' in text and "None" not in text


@pytest.mark.parametrize(("column", "value"), [("tools", 5), ("tools", "5"), ("tools", '["f"]'), ("tools", ["f"])])
def test_tools_that_are_no_schemas_are_refused(tiny_model_path, column, value):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    with pytest.raises(UserError, match=r"`tools` is .*; write a list of schemas, or its JSON text"):
        Encoder(tokenizer).answered({**GOOD, column: value}, "completion")
    with pytest.raises(UserError, match="`chat_template_kwargs` is 'no'; write a mapping"):
        Encoder(tokenizer).answered({**GOOD, "chat_template_kwargs": "no"}, "completion")
