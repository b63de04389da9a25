"""Tool schemas, call arguments and other objects: what the model is shown is what the file holds."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, Value
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from hpt_trl.data.loading import to_conversational
from hpt_trl.data.messages import as_text
from hpt_trl.recipes.arguments import RecipeArguments
from tests.helpers.datasets import load, refused, write_jsonl

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Other keys, another order of them, another type for one name, fractions beside integers, none at all.
ARGUMENTS = [{"city": "Rome", "n": 1}, {"n": 2.5, "city": "Bonn"}, {"n": "two", "deep": [{"a": 1}, {"b": None}]}, {}]


def example(arguments: dict) -> dict:
    properties = {name: {"type": "string"} for name in arguments}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}},
        {"type": "function", "function": {"name": "g", "parameters": {"enum": [1, 2], "default": None}}},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    prompt = [{"role": "user", "content": f"What is {len(arguments)}?"}]
    answer = [{"role": "assistant", "tool_calls": [call]}]
    return {
        "prompt": prompt,
        "completion": answer,
        "chosen": answer,
        "rejected": [{"role": "assistant", "content": "No."}],
        "messages": prompt + answer,
        "tools": tools,
    }


ROWS = [example(arguments) for arguments in ARGUMENTS]


def same(found, expected) -> bool:
    """Equal also in the order of keys and the types of numbers."""
    return json.dumps(found) == json.dumps(expected)


def of_columns(folder, *columns):
    return write_jsonl(folder / "data.jsonl", [{name: row[name] for name in columns} for row in ROWS])


@pytest.fixture
def tokenizer(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def rendered(tokenizer):
    """Ids of prompt and answer, by the chat template, of the objects as Python has them."""
    return [
        tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=True, return_dict=False)
        for row in ROWS
    ]


@pytest.mark.parametrize("columns", [("prompt", "completion", "tools"), ("messages", "tools")])
def test_sft_trains_on_the_objects_of_the_file(tiny_model_path, tmp_path, tokenizer, rendered, columns):
    splits = load(of_columns(tmp_path, *columns), layout="demonstrations")
    splits = to_conversational(splits, tokenizer, RecipeArguments(system_prompt=""))
    for name in ("prompt", "completion", "tools"):
        assert same(splits.train[name][:], [row[name] for row in ROWS])
    settings = SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer(tiny_model_path, settings, train_dataset=splits.train, processing_class=tokenizer)
    assert trainer.train_dataset["input_ids"][:] == rendered


def test_comparisons_show_the_objects_of_the_file(tiny_model_path, tmp_path, tokenizer, rendered):
    splits = load(of_columns(tmp_path, "prompt", "chosen", "rejected", "tools"), layout="comparisons")
    settings = {"use_cpu": True, "bf16": False, "report_to": "none"}
    arguments = {"train_dataset": splits.train, "processing_class": tokenizer}
    dpo = DPOTrainer(tiny_model_path, args=DPOConfig(str(tmp_path / "dpo"), **settings), **arguments)
    rows = dpo.train_dataset[:]
    pairs = zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)
    assert [prompt + answer for prompt, answer in pairs] == rendered
    reward = RewardTrainer(tiny_model_path, args=RewardConfig(str(tmp_path / "reward"), **settings), **arguments)
    assert reward.train_dataset["chosen_ids"][:] == rendered


def test_columns_that_rewards_read_keep_their_objects(tmp_path):
    facts = [{"a": 1}, {"b": [1, 2.5, "x"]}, {"a": {"c": None}}, {}]
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "Hi", "facts": value, "gold": value} for value in facts])
    splits = load(path, needs_demonstration=False, column_mapping={"answer": "gold.a"})
    assert same(splits.train["facts"][:], facts) and splits.train["answer"][:] == ["1", None, "{'c': None}", None]


def test_objects_of_one_shape_stay_structs_and_mixed_columns_are_named(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "Hi", "facts": {"a": n, "b": None}} for n in range(3)])
    assert "struct" in str(load(path, needs_demonstration=False).train.data.schema.field("facts").type)
    path = write_jsonl(tmp_path / "mixed.jsonl", [{"prompt": "Hi"}, {"prompt": [{"role": "user", "content": "Hi"}]}])
    assert "line 2: `prompt` is [{'role'" in refused(path, needs_demonstration=False)
    path = write_jsonl(tmp_path / "big.jsonl", [{"prompt": "Hi", "x": {"a": 1}}, {"prompt": "Hi", "x": {"a": 2**70}}])
    said = refused(path, needs_demonstration=False)
    assert "line 2: `x` holds 1180591620717411303424, which has more than 64 bits" in said


@pytest.mark.parametrize("kind", ["parquet", "saved", "json"])
def test_nulls_that_a_table_put_into_objects_are_named(tmp_path, caplog, kind):
    columns = {"prompt": [row["prompt"] for row in ROWS[:2]], "completion": [row["completion"] for row in ROWS[:2]]}
    # The same types, as Arrow wants them.
    columns["tools"] = [[row["tools"][0]] for row in ROWS[:1]] + [[ROWS[0]["tools"][0], {"type": "other"}]]
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        Dataset.from_dict(columns).to_parquet(path)
    elif kind == "saved":
        DatasetDict(train=Dataset.from_dict(columns)).save_to_disk(path)
    else:
        rows = [{name: columns[name][place] for name in columns} for place in range(2)]
        path.write_text(json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        splits = load(path, layout="demonstrations")
    found = splits.train["tools"][1][1]
    if kind == "json":
        assert found == {"type": "other"} and "null" not in caplog.text
    else:
        assert found == {"type": "other", "function": None}
        assert "the objects in `tools` have keys that are null (function)" in caplog.text


def test_objects_stored_as_json_come_through_a_parquet_file(tmp_path, caplog):
    features = Features({"prompt": List({"role": Value("string"), "content": Value("string")}), "tools": List(Json())})
    dataset = Dataset.from_list([{name: row[name] for name in features} for row in ROWS], features=features)
    dataset.to_parquet(tmp_path / "data.parquet")
    splits = load(tmp_path / "data.parquet", needs_demonstration=False)
    assert same(splits.train["tools"][:], [row["tools"] for row in ROWS]) and not caplog.text


def test_an_answer_that_is_a_call_can_be_shown():
    assert as_text(ROWS[0]["messages"]).endswith('"arguments": {"city": "Rome", "n": 1}}}]')
