"""Parts of a prompt in columns of their own are read, rows marked as bad are refused, other columns are named."""

import logging
import re

import pytest

from hpt_trl.data.prompt_parts import check_template
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.rewards.functions import math_answer
from hpt_trl.rewards.loading import columns_read
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.datasets import chat, load, refused, write_jsonl

ALPACA = [
    {"instruction": "Add the numbers.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]
ALPACA_MAPPING = {"prompt": "instruction", "completion": "output"}


@pytest.mark.parametrize("layout", ["prompts", "demonstrations"])
def test_alpacas_input_follows_the_instruction(tmp_path, caplog, layout):
    path = write_jsonl(tmp_path / "data.jsonl", ALPACA)
    with caplog.at_level(logging.WARNING):
        rows = load(path, layout=layout, column_mapping=ALPACA_MAPPING).train
    assert rows["prompt"][:] == ["Add the numbers.\n\n1 and 2", "Say hello."]
    assert "`input` is put after the prompt" in caplog.text
    left_out = load(path, layout=layout, column_mapping=ALPACA_MAPPING | {"source_input": "input"}).train
    assert left_out["prompt"][:] == ["Add the numbers.", "Say hello."]
    kept = load(path, layout=layout, column_mapping=ALPACA_MAPPING | {"input": "input"}).train
    assert kept["prompt"][:] == ["Add the numbers.", "Say hello."]


def test_an_input_goes_into_the_last_message_and_not_twice(tmp_path):
    rows = [
        {"prompt": chat(content="Add."), "completion": chat("assistant", "3"), "input": "1 2"},
        {"prompt": chat(content="Add.\n1 2\nBriefly."), "completion": chat("assistant", "3"), "input": "1 2"},
    ]
    loaded = load(write_jsonl(tmp_path / "data.jsonl", rows)).train
    assert loaded["prompt"][:] == [chat(content="Add.\n\n1 2"), chat(content="Add.\n1 2\nBriefly.")]
    rows[0]["prompt"] = [*rows[0]["prompt"], *chat("assistant", "Which?")]
    message = refused(write_jsonl(tmp_path / "data.jsonl", rows))
    assert "line 1: `input` belongs to the prompt, but the prompt does not end with a text of the user" in message


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_becomes_the_system_message(tmp_path, column):
    pairs = [
        {column: "Be brief.", "prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
        {column: "", "prompt": "Bye", "chosen": "Bye.", "rejected": "No."},
    ]
    rows = load(write_jsonl(tmp_path / "pairs.jsonl", pairs), layout="comparisons").train
    assert rows["prompt"][:] == [[*chat("system", "Be brief."), *chat()], chat(content="Bye")]
    assert rows["chosen"][0] == chat("assistant", "Hello.")
    messages = {column: "Be brief.", "messages": [*chat(), *chat("assistant", "Hello.")]}
    rows = load(write_jsonl(tmp_path / "data.jsonl", [messages]), layout="demonstrations").train
    assert rows["prompt"][0] == [*chat("system", "Be brief."), *chat()]
    own = {column: "Be brief.", "prompt": [*chat("system", "Be long."), *chat()]}
    message = refused(write_jsonl(tmp_path / "own.jsonl", [own]), needs_demonstration=False)
    assert f"line 1: `{column}` belongs to the prompt, but the prompt has a system message of its own" in message
    blank = write_jsonl(tmp_path / "blank.jsonl", [{column: " ", "prompt": "Hi"}, {column: None, "prompt": "Hi"}])
    assert load(blank, needs_demonstration=False).train["prompt"][:] == ["Hi", "Hi"]


def test_rows_marked_false_are_refused(tmp_path):
    rows = [{"prompt": "Hi", "completion": "x", "label": label} for label in (True, False, False)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    for layout in ("demonstrations", "prompts"):
        message = refused(path, layout=layout)
        assert f"{path}, line 2: `label` is false (or 0), as in 2 of 3 rows" in message
        assert "column_mapping: {source_label: label}" in message
    assert len(load(path, layout="demonstrations", column_mapping={"source_label": "label"}).train) == 3
    load(write_jsonl(path, [row | {"label": True} for row in rows]), layout="demonstrations")
    for labels in ((1, 0, 0), ("True", "False", "false")):
        write_jsonl(path, [row | {"label": label} for row, label in zip(rows, labels, strict=True)])
        assert "line 2: `label` is false (or 0), as in 2 of 3 rows" in refused(path, layout="demonstrations")
    # Classes of several kinds mark nothing.
    load(write_jsonl(path, [row | {"label": number} for number, row in enumerate(rows)]), layout="demonstrations")


def test_an_input_that_is_a_number_or_a_word_of_the_instruction_is_read(tmp_path):
    for text, prompt in ((7, "Add one to this:"), ("a", "Which is bigger, a or b?")):
        rows = [{"prompt": prompt, "input": text, "completion": "x"}] * 3
        loaded = load(write_jsonl(tmp_path / "data.jsonl", rows), layout="demonstrations").train
        assert loaded["prompt"][0] == f"{prompt}\n\n{text}"


@pytest.mark.parametrize("value", [{"x": 1}, ["Speak French"]], ids=str)
@pytest.mark.parametrize("column", ["input", "system"])
def test_parts_that_are_no_texts_are_unused(recipe, tmp_path, capsys, column, value):
    rows = [{"prompt": f"{i} + 1", column: value, "completion": "x"} for i in range(8)]
    check(recipe("sft", dataset_name=str(write_jsonl(tmp_path / "data.jsonl", rows)), test_split_size=2), [])
    said = capsys.readouterr().out
    assert column in next(line for line in said.splitlines() if line.startswith("unused"))


def reads_source(completions, source, **_):
    return [float(len(text)) for text in source]


def reads_named(completions, source):
    return [0.0] * len(completions)


def test_what_rewards_read_is_known_by_their_signature():
    assert columns_read([math_answer, reads_named]) >= {"answer", "source"}
    assert columns_read([math_answer, reads_source]) is None


def test_columns_that_nothing_reads_are_named(recipe, tmp_path, capsys):
    rows = [
        {"prompt": f"What is {n}?", "completion": f"It is {n}.", "source": "a", "context": "b", "tools": []}
        for n in range(24)
    ]
    data = str(write_jsonl(tmp_path / "data.jsonl", rows))
    path = recipe("sft", dataset_name=data, max_steps=1)
    check(path, [])
    line = "source, context (put it into the prompt where it belongs to it)"
    assert f"unused columns: {line}\n" in capsys.readouterr().out
    runner.run(path, [])
    assert capsys.readouterr().out.count(f"Columns that nothing reads: {line}\n") == 1
    # Rewards of the user's own may read any column.
    check(recipe("grpo", dataset_name=data, eval_samples=0), [])
    assert "unused columns" not in capsys.readouterr().out
    check(recipe("grpo", dataset_name=data, reward_funcs=["boxed_format"], eval_samples=0), [])
    printed = capsys.readouterr().out
    assert f"unused columns: completion, {line}, tools (rollouts do not show them to the model" in printed


def test_a_template_takes_other_columns(recipe, tmp_path, tiny_model_path, capsys):
    rows = [
        {
            "prompt": f"Add {n} and {{one}}.",
            "completion": "It is.",
            "tests": [f"assert f({n}) == {n + 1}", "assert f(0) == 1"],
            "one": 1,
            "none": None,
        }
        for n in range(8)
    ]
    data = str(write_jsonl(tmp_path / "data.jsonl", rows))
    template = "{prompt}\n{tests}\n{one}{none} Answer in \\boxed{}."
    path = recipe("sft", dataset_name=data, max_steps=1, test_split_size=None, prompt_template=template)
    prepared = prepare(path, [])
    expected = "Add 3 and {one}.\nassert f(3) == 4\nassert f(0) == 1\n1 Answer in \\boxed{}."
    assert prepared.splits.train[3]["prompt"] == [{"role": "user", "content": expected}]
    assert prepared.unused == []


@pytest.mark.parametrize(
    "template, message",
    [
        ("{prompt} {contxt}", "there is no column `contxt`; did you mean `{context}`?"),
        ("{promt}: {context}", "there is no column `promt`; did you mean `{prompt}`?"),
        ("{prompt} {meta.level}", "`{meta.level}` names a part of a column; give it a name of its own"),
    ],
)
def test_names_in_a_template_that_are_meant_for_a_column(template, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_template(template, ["prompt", "completion", "context", "meta"])


def test_braces_of_latex_stay_in_a_template():
    check_template(
        r"{prompt} \boxed{answers} {} \frac{a}{answers} x^{answers} {{answers}} {other}", ["prompt", "answer"]
    )


def test_a_mapping_the_other_way_round(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"q": "a", "a": "b"}])
    message = refused(path, column_mapping={"q": "prompt", "a": "completion"})
    assert "stands first, e.g. column_mapping: {prompt: q, completion: a}" in message


def test_what_rollouts_do_not_read_of_a_row_is_said(recipe, tmp_path, caplog):
    row = {"prompt": "Hi", "tools": [{"name": "clock"}], "chat_template_kwargs": {"enable_thinking": False}}
    data = str(write_jsonl(tmp_path / "data.jsonl", [row] * 4))
    prepare(recipe("grpo", dataset_name=data, test_split_size=None), [])
    assert "the column `tools`: rollouts do not show them to the model" in caplog.text
    assert "the column `chat_template_kwargs`: rollouts take those of the recipe alone" in caplog.text
