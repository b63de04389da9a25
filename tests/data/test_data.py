"""Data: generated tasks, local files, the three layouts, columns and messages."""

import gzip
import json
import time

import pytest
from datasets import Dataset, DatasetDict

from hpt_trl.data.loading import to_conversational, validate_rows
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import validate_lengths
from hpt_trl.errors import UserError
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.rewards.functions import math_answer
from tests.helpers.datasets import chat, load, refused, write_jsonl
from tests.helpers.processes import ROOT

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
GSM8K_MAPPING = {"prompt": "question", "completion": "answer", "answer": "answer"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2-135m")


# The three layouts


def test_arithmetic(tokenizer):
    splits = load("arithmetic", dataset_options={"size": 300, "test_size": 100, "operators": ["+", "-"]})
    assert (len(splits.train), len(splits.test)) == (300, 100)
    for row in [*splits.train, *splits.test]:
        expression = row["prompt"].removeprefix("Calculate ").removesuffix(".")
        assert eval(expression) == int(row["answer"]) >= 0
        assert 2 <= len(expression.split()[::2]) <= 4
        *steps, last = row["completion"].split("\n")
        assert last == f"#### {row['answer']}"
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
    assert math_answer(completions=splits.train["completion"], answer=splits.train["answer"]) == [1.0] * 300
    longest = max(len(tokenizer(text)["input_ids"]) for text in splits.train["completion"])
    assert longest < 48


def test_arithmetic_holds_out_problems_not_rows():
    def problems(rows):
        return {tuple(sorted(prompt[10:-1].split(" + "))) for prompt in rows["prompt"]}

    splits = load("arithmetic", dataset_options={"size": 500, "test_size": 200, "operators": ["+"]})
    assert len(problems(splits.train)) == 500 and len(problems(splits.test)) == 200
    assert not problems(splits.train) & problems(splits.test)
    assert splits.train[:] == load("arithmetic", dataset_options='{"size": 500, "operators": ["+"]}').train[:]
    assert splits.train[:] != load("arithmetic", seed=1, dataset_options={"size": 500, "operators": ["+"]}).train[:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 5}, "did you mean `size`"),
        ({"size": 0}, "`size: 0` must be a whole number of at least 1"),
        ({"terms": [4, 2]}, r"write \[2, 4\]"),
        ({"terms": 3}, "the least and greatest"),
        ({"operators": ["*"]}, "some of"),
        ({"largest": 2, "terms": [2, 2]}, "different problems"),
        ("{size: 5}", "is not JSON"),
        ("[5]", "must be a mapping"),
    ],
)
def test_arithmetic_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        load("arithmetic", dataset_options=options)


def test_gsm8k_layout(tmp_path):
    path = write_jsonl(
        tmp_path / "gsm8k.jsonl",
        [
            {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\nSo $<<24+1,000=1024>>1,024.\n#### 1,024"},
            {"question": "And now?", "answer": "cout << 1 stays.\n#### 7"},
        ],
    )
    splits = load(path, column_mapping=GSM8K_MAPPING)
    assert splits.train[:] == {
        "prompt": ["How many?", "And now?"],
        "completion": ["48/2 = 24 clips.\nSo $1,024.\n#### 1,024", "cout << 1 stays.\n#### 7"],
        "answer": ["1,024", "7"],
        "_row": [1, 2],
    }
    assert splits.test is None


@pytest.mark.skipif(not GSM8K.exists(), reason=f"the real GSM8K file is not at {GSM8K}")
def test_gsm8k_file():
    splits = load(GSM8K, column_mapping=GSM8K_MAPPING, test_split_size=500)
    assert (len(splits.train), len(splits.test)) == (6973, 500)
    assert math_answer(completions=splits.train["completion"], answer=splits.train["answer"]) == [1.0] * len(
        splits.train
    )
    assert not any("<<" in text for text in splits.train["completion"])


def openr1_rows(count):
    return [
        {
            "data_source": "math",
            "prompt": [
                {"role": "system", "content": "Think first."},
                {"role": "user", "content": f"What is {n} + 1?"},
            ],
            "target": [{"role": "assistant", "content": f"<think>\n…</think> \\boxed{{{n + 1}}}"}],
            "ability": "math",
            "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "jsonl.gz", "saved", "saved splits"])
def test_openr1_layout_from_every_kind_of_file(tmp_path, kind, tokenizer):
    rows, path = openr1_rows(5), tmp_path / f"openr1.{kind}"
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "jsonl":
        write_jsonl(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif kind == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    else:
        DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2])).save_to_disk(path)
    mapping = {"completion": "target", "answer": "reward_model.ground_truth"}
    splits = load(path, column_mapping=mapping)
    assert splits.train[4]["prompt"] == rows[4]["prompt"]
    assert splits.train[4]["completion"] == rows[4]["target"]
    assert splits.train["answer"] == ["1", "2", "3", "4", "5"]
    assert splits.train["_row"] == [1, 2, 3, 4, 5]
    assert splits.train[0]["reward_model"] == {"ground_truth": "1", "style": "rule"}
    assert (splits.test is None) == (kind != "saved splits")

    # The official preparation drops the system message.
    without = to_conversational(splits, tokenizer, RecipeArguments(system_prompt=""))
    assert without.train[0]["prompt"] == [{"role": "user", "content": "What is 0 + 1?"}]
    other = to_conversational(
        splits, tokenizer, RecipeArguments(system_prompt="Go.", prompt_template="{prompt} Box it.")
    )
    assert other.train[0]["prompt"] == [
        {"role": "system", "content": "Go."},
        {"role": "user", "content": "What is 0 + 1? Box it."},
    ]
    # The same through another name for the demonstrations.
    kept = load(path, column_mapping={"answer": "reward_model.ground_truth"}, demonstration_column="target")
    assert kept.train[0]["target"] == rows[0]["target"]


# reasoning-gym


def test_reasoning_gym_rows():
    splits = load("reasoning_gym:chain_sum", dataset_options={"size": 20, "test_size": 5, "max_terms": 3})
    assert len(splits.train) == 20 and len(splits.test) == 5
    assert not set(splits.train["prompt"]) & set(splits.test["prompt"])
    assert splits.train[0]["completion"] == f"#### {splits.train[0]['answer']}"
    assert json.loads(splits.train[0]["metadata"])["options"] == {"max_terms": 3}


def test_reasoning_gym_refuses():
    assert "Nearest: chain_sum" in refused("reasoning_gym:chain_sums")
    assert "did you mean `max_terms`" in refused("reasoning_gym:chain_sum", dataset_options={"max_term": 3})
    assert "is refused" in refused("reasoning_gym:chain_sum", dataset_options={"min_terms": 5, "max_terms": 3})
    # A task without a single answer has no demonstrations.
    message = refused("reasoning_gym:graph_color", dataset_options={"size": 3, "test_size": 0})
    assert "row 1: the demonstration (`completion`) is missing" in message
    load("reasoning_gym:graph_color", needs_demonstration=False, dataset_options={"size": 3, "test_size": 1})


# Columns


def test_a_missing_column_is_answered_with_the_mapping(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"question": "1 + 1?", "solutions": "#### 2"}])
    message = refused(path, layout="demonstrations")
    assert "has no column `prompt`; it has question, solutions." in message
    assert "column_mapping: {prompt: question, completion: solutions}" in message
    message = refused(path, column_mapping={"prompt": "question"})
    assert "has no column `completion`" in message and "{prompt: question, completion: solutions}" in message
    message = refused(path, column_mapping={"prompt": "qestion"})
    assert "has no column `qestion`" in message and "{prompt: question}" in message
    splits = load(path, needs_demonstration=False, column_mapping='{"prompt": "question"}')
    assert splits.train.column_names == ["prompt", "solutions", "_row"]


def test_dotted_paths(tmp_path):
    rows = [{"prompt": "a", "meta": {"gold": {"value": 3}}, "a.b": "x", "completion": "c"}]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    splits = load(path, column_mapping={"answer": "meta.gold.value", "hint": "a.b"})
    assert (splits.train[0]["answer"], splits.train[0]["hint"]) == ("3", "x")
    assert "has `meta`, but it holds gold" in refused(path, column_mapping={"answer": "meta.silver"})
    assert "has `prompt`, but it is not a struct" in refused(path, column_mapping={"answer": "prompt.x"})


def test_a_mapping_may_swap_columns(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "answer", "completion": "question"}])
    row = load(path, column_mapping={"prompt": "completion", "completion": "prompt"}).train[0]
    assert (row["prompt"], row["completion"]) == ("question", "answer")


def test_a_column_with_the_name_of_a_reward_argument_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b", "completions": "c"}])
    assert "column_mapping: {source_completions: completions}" in refused(path)
    assert load(path, column_mapping={"others": "completions"}).train[0]["others"] == "c"


def test_text_beside_messages_becomes_messages(tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    row = load(write_jsonl(tmp_path / "a.jsonl", [{"prompt": messages, "completion": "Hello"}])).train[0]
    assert row["completion"] == [{"role": "assistant", "content": "Hello"}]
    target = [{"role": "assistant", "content": "Hello"}]
    row = load(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "Hi", "completion": target}])).train[0]
    assert row["prompt"] == messages


# Held-out rows


def test_held_out_rows_are_not_trained_on(tmp_path, caplog):
    rows = [{"prompt": f"question {n % 20}", "completion": "b"} for n in range(30)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    splits = load(path, test_split_size=5)
    assert len(splits.test) == 5
    assert not set(splits.train["prompt"]) & set(splits.test["prompt"])
    assert len(splits.train) + len(splits.test) + sum("repeat" in record.message for record in caplog.records) <= 30
    assert load(path, test_split_size=5).test["_row"] == splits.test["_row"]
    assert len(load(path, test_split_size=0.2).test) == 6
    for size in (30, 0, -1, 2.5):
        assert "test_split_size" in refused(path, test_split_size=size)


# Messages


def test_to_conversational(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "1 + {x}?", "completion": "2"}] * 4)
    splits = load(path)
    row = to_conversational(
        splits, tokenizer, RecipeArguments(prompt_template="Q: {prompt}", system_prompt="Go.")
    ).train[0]
    assert row["prompt"] == [{"role": "system", "content": "Go."}, {"role": "user", "content": "Q: 1 + {x}?"}]
    assert row["completion"] == [{"role": "assistant", "content": "2"}]
    row = to_conversational(
        splits, tokenizer, RecipeArguments(conversational=False, prompt_template="{prompt}\n")
    ).train[0]
    assert (row["prompt"], row["completion"]) == ("1 + {x}?\n", "2")


@pytest.mark.parametrize(
    ("template", "warned"),
    [("{prompt}\\n", True), ("{prompt}\\n\\n", True), ("{prompt}\n", False), ("{prompt} \\neq 0", False)],
)
def test_a_template_with_a_written_out_line_break_is_told(tokenizer, tmp_path, caplog, template, warned):
    splits = load(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}]))
    to_conversational(splits, tokenizer, RecipeArguments(conversational=False, prompt_template=template))
    assert ("a backslash and an `n`" in caplog.text) is warned


def test_to_conversational_refuses(tokenizer, tmp_path):
    text = load(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}]))
    messages = load(write_jsonl(tmp_path / "b.jsonl", [{"prompt": chat(), "completion": "b"}]))
    plain = load_tokenizer("smollm2-135m")
    plain.chat_template = None
    assert to_conversational(text, plain, RecipeArguments()).train[0]["prompt"] == "a"
    for splits, which, arguments, message in [
        (text, tokenizer, RecipeArguments(prompt_template="Q:"), r"must hold `\{prompt\}`"),
        (text, plain, RecipeArguments(conversational=True), "has no chat template"),
        (messages, plain, RecipeArguments(), r"prompts of .*b\.jsonl are messages"),
        (messages, tokenizer, RecipeArguments(conversational=False), "are messages already; write true"),
        (text, tokenizer, RecipeArguments(conversational=False, system_prompt="Go."), "system_prompt: string prompts"),
    ]:
        with pytest.raises(UserError, match=message):
            to_conversational(splits, which, arguments)


def test_a_prompt_that_is_too_long_is_named(tokenizer, tmp_path):
    rows = [{"prompt": "word " * n, "completion": "b"} for n in (5, 300, 100)]
    splits = to_conversational(load(write_jsonl(tmp_path / "a.jsonl", rows)), tokenizer, RecipeArguments())
    validate_lengths(splits.train, splits.source, Encoder(tokenizer), longest=400, reason="the model's 8192 - 7792")
    with pytest.raises(UserError, match=r"line 2: the prompt has 3\d\d tokens, more than 50 .*2 of 3 prompts"):
        validate_lengths(splits.train, splits.source, Encoder(tokenizer), longest=50, reason="the model's 8192 - 8142")


def test_many_rows_are_checked_in_seconds():
    text = "x" * 8000
    rows = [{"prompt": chat(), "completion": chat("assistant", text), "_row": n} for n in range(500)]
    dataset = Dataset.from_list(rows)
    start = time.perf_counter()
    validate_rows(dataset, "data", needs_demonstration=True)
    per_row = (time.perf_counter() - start) / len(dataset)
    assert per_row * 46_000 < 20
