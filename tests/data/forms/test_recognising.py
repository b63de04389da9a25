"""Rows as people have them become the columns that a stage reads, or are refused by name; the right ones by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_trl.data.loading import to_conversational
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.recipes.arguments import RecipeArguments
from tests.helpers.datasets import chat, load, refused, write_jsonl

USER, SAID = chat("user", "Hi"), chat("assistant", "Hello.")
AGAIN, MORE = chat("user", "And?"), chat("assistant", "More.")
LONG = [*USER, *SAID, *AGAIN, *MORE]


def sharegpt(*turns, **keys):
    return {"conversations": [{"from": speaker, "value": said} for speaker, said in turns], **keys}


HI = [("human", "Hi"), ("gpt", "Hello."), ("human", "And?"), ("gpt", "More.")]
WEATHER = [
    ("system", "Be brief."),
    ("human", "Is it warm in Rome?"),
    ("function_call", '{"name": "weather", "arguments": {"city": "Rome"}}'),
    ("observation", '{"degrees": 31}'),
    ("gpt", "Yes."),
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\nReally?\n\nAssistant:"
ASKED = [*USER, *SAID, *chat("user", "And?\nReally?")]


@pytest.mark.parametrize(
    "form, row, prompt, completion",
    [
        ("messages", {"messages": LONG}, LONG[:3], MORE),
        ("messages", {"messages": json.dumps(LONG)}, LONG[:3], MORE),
        ("messages", {"messages": str(LONG)}, LONG[:3], MORE),
        ("messages", {"dialogue": LONG}, LONG[:3], MORE),
        (
            "messages",
            {"messages": [{"role": "human", "content": "Hi"}, {"role": "model", "content": "Hello."}]},
            USER,
            SAID,
        ),
        ("messages", {"messages": [{"role": m["role"], "value": m["content"]} for m in LONG]}, LONG[:3], MORE),
        ("messages", {"messages": [{"from": m["role"], "content": m["content"]} for m in LONG]}, LONG[:3], MORE),
        ("messages", {"messages": [{"role": m["role"], "text": m["content"]} for m in LONG]}, LONG[:3], MORE),
        (
            "messages",
            {
                "messages": [
                    *USER,
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                    {"role": "function", "name": "f", "content": "3"},
                    *SAID,
                ]
            },
            [
                *USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
                },
                {"role": "tool", "name": "f", "content": "3"},
            ],
            SAID,
        ),
        (
            "capybara",
            {"conversation": [{"input": "Hi", "output": "Hello."}, {"input": "And?", "output": "More."}]},
            LONG[:3],
            MORE,
        ),
        ("lima", {"conversations": ["Hi", "Hello.", "And?", "More."], "source": "x"}, LONG[:3], MORE),
        ("sharegpt", sharegpt(*HI), LONG[:3], MORE),
        ("sharegpt", {"messages": sharegpt(*HI)["conversations"]}, LONG[:3], MORE),
        ("sharegpt", {"conversations": json.dumps(sharegpt(*HI)["conversations"])}, LONG[:3], MORE),
        (
            "sharegpt",
            sharegpt(*WEATHER),
            [
                *chat("system", "Be brief."),
                *chat("user", "Is it warm in Rome?"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                *chat("tool", '{"degrees": 31}'),
            ],
            chat("assistant", "Yes."),
        ),
        ("sharegpt", sharegpt(*HI[:2], system="Be brief."), [*chat("system", "Be brief."), *USER], SAID),
        ("ultrachat", {"prompt": "Hi", "messages": LONG}, LONG[:3], MORE),
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
        ("alpaca", {"instruction": "Add.", "input": "", "output": "3", "text": "whole"}, "Add.", "3"),
        (
            "alpaca",
            {
                "instruction": "Add.",
                "input": "1 2",
                "output": "3",
                "history": [["Hi", "Hello."]],
                "system": "Be brief.",
            },
            [*chat("system", "Be brief."), *USER, *SAID, *chat("user", "Add.\n\n1 2")],
            chat("assistant", "3"),
        ),
        (
            "alpaca",
            {"instruction": "And?", "output": "More.", "history": '[["Hi", "Hello."]]'},
            LONG[:3],
            MORE,
        ),
        ("dolly", {"instruction": "When?", "context": "In May.", "response": "May"}, "When?\n\nIn May.", "May"),
        ("question-answer", {"question": "1 + 1?", "answer": "It is 2."}, "1 + 1?", "It is 2."),
        ("question-answer", {"problem": "1 + 1?", "solution": "So 2.", "answer": "2"}, "1 + 1?", "So 2."),
        ("question-answer", {"input": "1 + 1?", "output": "2"}, "1 + 1?", "2"),
        (
            "question-answer",
            {"system_prompt": "Be brief.", "question": "Hi", "response": "Hello."},
            [*chat("system", "Be brief."), *USER],
            SAID,
        ),
        (
            "question-answer",
            {"question": "When?", "context": ["It rained.", "In May."], "answer": "May"},
            "When?\n\nIt rained.\n\nIn May.",
            "May",
        ),
        ("alpaca", {"instruction": "When?", "context": "In May.", "output": "May"}, "When?\n\nIn May.", "May"),
        ("ultrachat", {"prompt": USER, "messages": LONG}, LONG[:3], MORE),
        ("demonstrations", {"prompt": "Hi", "completion": "Hello."}, "Hi", "Hello."),
        ("question-answer", {"prompt": "The one.", "instruction": "i", "output": "o"}, "The one.", "o"),
        ("messages", {"messages": LONG, "input": "meta.txt"}, LONG[:3], MORE),
        ("sharegpt", sharegpt(*HI, input="meta.txt"), LONG[:3], MORE),
        ("question-answer", {"Question": "1 + 1?", "Response": "2", "Level": "easy"}, "1 + 1?", "2"),
        ("alpaca", {"Instruction": "Add.", "Input": "1 2", "OUTPUT": "3"}, "Add.\n\n1 2", "3"),
        ("alpaca", {"instruction": "Add.", "Input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
        ("messages", {"messages": {key: [m[key] for m in LONG] for key in ("role", "content")}}, LONG[:3], MORE),
        ("messages", {"Messages": LONG}, LONG[:3], MORE),
        ("demonstrations", {"prompt": json.dumps(USER), "completion": json.dumps(SAID)}, USER, SAID),
        ("demonstrations", {"prompt": "[1, 2] is a list?", "completion": "Yes."}, "[1, 2] is a list?", "Yes."),
    ],
)
def test_demonstrations(tmp_path, form, row, prompt, completion):
    path = write_jsonl(tmp_path / "data.jsonl", [row, row])
    for named in {None, form}:
        splits = load(path, layout=("demonstrations", "documents"), dataset_layout=named)
        assert (splits.form, splits.layout) == (form, "demonstrations")
        assert splits.train["prompt"][:] == [prompt] * 2 and splits.train["completion"][:] == [completion] * 2
    whole = form in ("messages", "sharegpt", "ultrachat", "capybara", "lima")
    assert splits.train.to_dict().get("whole_conversation", [False])[0] is whole


@pytest.mark.parametrize(
    "form, row, chosen, rejected, prompt",
    [
        ("comparisons", {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}, "Hello.", "No.", "Hi"),
        ("orca", {"question": "Hi", "chosen": "Hello.", "rejected": "No."}, "Hello.", "No.", "Hi"),
        (
            "orca",
            {"system": "Be brief.", "question": "Hi", "chosen": "Hello.", "rejected": "Be it so."},
            SAID,
            chat("assistant", "Be it so."),
            [*chat("system", "Be brief."), *USER],
        ),
        ("orca", {"instruction": "Hi", "chosen_response": "Hello.", "rejected_response": "No."}, "Hello.", "No.", "Hi"),
        ("orca", {"prompt": "Hi", "chosen_response": "Hello.", "rejected_response": "No."}, "Hello.", "No.", "Hi"),
        ("comparisons", {"Prompt": "Hi", "Chosen": "Hello.", "Rejected": "No."}, "Hello.", "No.", "Hi"),
        (
            "hh-rlhf",
            {"chosen": f"{HUMAN} The one.", "rejected": f"{HUMAN} The other."},
            chat("assistant", "The one."),
            chat("assistant", "The other."),
            ASKED,
        ),
        ("whole-conversations", {"chosen": LONG, "rejected": [*LONG[:3], *SAID]}, MORE, SAID, LONG[:3]),
        (
            "whole-conversations",
            {"prompt": "Hi", "chosen": [*USER, *SAID], "rejected": [*USER, *MORE], "score_chosen": 9.0},
            SAID,
            MORE,
            USER,
        ),
        (
            "whole-conversations",
            {"chosen": json.dumps([*USER, *SAID]), "rejected": json.dumps([*USER, *MORE])},
            SAID,
            MORE,
            USER,
        ),
        (
            "llama-factory",
            sharegpt(("human", "Hi"))
            | {"chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "More."}},
            SAID,
            MORE,
            USER,
        ),
    ],
)
def test_comparisons(tmp_path, form, row, chosen, rejected, prompt):
    splits = load(write_jsonl(tmp_path / "data.jsonl", [row, row]), layout=("comparisons",))
    assert (splits.form, splits.layout) == (form, "comparisons")
    for name, expected in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        assert splits.train[name][:] == [expected] * 2


@pytest.mark.parametrize(
    "row, prompt, demonstration",
    [
        ({"question": "1 + 1?", "answer": "So 2.\n#### 2"}, "1 + 1?", None),
        ({"problem": "1 + 1?", "solution": "So 2.", "answer": "2"}, "1 + 1?", "So 2."),
        (sharegpt(*HI), LONG[:3], MORE),
        ({"messages": LONG[:3]}, LONG[:3], None),
        ({"prompt": "Hi", "messages": LONG}, "Hi", None),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, "Add.\n\n1 1", "2"),
        ({"question": "1 + 1?", "target": 2}, "1 + 1?", None),
        ({"problem": "1 + 1?", "solution": ["a", "b"]}, "1 + 1?", None),
    ],
)
def test_prompts(tmp_path, row, prompt, demonstration):
    rows = load(write_jsonl(tmp_path / "data.jsonl", [row, row]), needs_demonstration=False).train
    assert rows["prompt"][0] == prompt and "whole_conversation" not in rows.column_names
    assert rows.to_dict().get("completion", [None])[0] == demonstration
    assert all(rows[name][0] == row[name] for name in ("target", "solution", "output") if name in row)
    # What the rewards compare with is the final answer.
    assert rows.to_dict().get("answer", ["2"])[0] == "2"


def test_documents_are_read_where_nothing_else_fits(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "Once.", "meta": 1}])
    assert load(path, layout=("demonstrations", "documents")).layout == "documents"
    both = write_jsonl(tmp_path / "both.jsonl", [{"text": "Once.", "prompt": "a", "completion": "b"}])
    assert load(both, layout=("demonstrations", "documents")).layout == "demonstrations"
    assert load(both, layout=("documents", "demonstrations")).layout == "documents"
    assert load(both, layout=("demonstrations", "documents"), dataset_layout="documents").layout == "documents"


def test_a_table_gives_messages_keys_that_are_null(tmp_path):
    turns = [{"from": "human", "value": "Hi", "weight": None}, {"from": "gpt", "value": "Hello.", "weight": 0}]
    pq.write_table(pa.table({"conversations": [turns]}), tmp_path / "data.parquet")
    row = load(tmp_path / "data.parquet", layout="demonstrations").train[0]
    assert row["prompt"] == [{"role": "user", "content": "Hi", "weight": None}]
    assert row["completion"] == [{"role": "assistant", "content": "Hello.", "weight": 0}]


@pytest.mark.parametrize(
    "row, layouts, keys, said",
    [
        (
            {"instruction": "a", "output": "b", "conversations": sharegpt(*HI)["conversations"]},
            ("demonstrations",),
            {},
            "`dataset_layout: sharegpt` (`messages` or `conversations`",
        ),
        (
            {"question": "a", "problem": "b", "output": "c"},
            ("demonstrations",),
            {},
            "`question` and `problem` may each be",
        ),
        (
            {"question": "2+2?", "instruction": "Answer the question.", "output": "4"},
            ("demonstrations",),
            {},
            "`question` and `instruction` may each be",
        ),
        (
            {"instruction": "a", "output": "b", "problem_id": 1, "is_correct": False},
            ("demonstrations",),
            {},
            "`is_correct` is false (or 0), as in 1 of 1 rows",
        ),
        (
            {"prompt": "a", "conversations": LONG},
            ("demonstrations",),
            {},
            "own `prompt` would be lost; if that is meant",
        ),
        (
            {"question": "a", "response": "b", "output": "c"},
            ("demonstrations",),
            {},
            "column_mapping: {completion: response}",
        ),
        ({"question": "a", "chosen": "b"}, ("comparisons",), {}, "Nearly of the form orca, without `rejected`"),
        (
            {"question": "a", "chosen": "b", "rejected": "c"},
            ("demonstrations",),
            {},
            "The rows are a question and two answers",
        ),
        ({"prompt": "a", "completion": "b"}, ("documents",), {}, "The rows are prompt and completion, from which"),
        ({"question": "a", "answer": "b"}, ("prompts",), {}, "the rows have no demonstration, which this stage needs"),
        ({"messages": LONG[:3]}, ("prompts",), {}, "no row has a demonstration, which this stage needs"),
        ({"prompt": "You are a pirate.", "messages": LONG}, ("demonstrations",), {}, "line 1: `prompt` ('You are a p"),
        (
            {"prompt": [*chat("system", "Be."), *USER], "chosen": [*USER, *SAID], "rejected": [*USER, *MORE]},
            ("comparisons",),
            {},
            "is not in what `chosen` and `rejected` begin with",
        ),
        (
            sharegpt(*HI),
            ("comparisons",),
            {},
            "The rows are ShareGPT conversations, from which this stage makes no comp",
        ),
        ({"chosen": "b", "rejected": "c"}, ("demonstrations",), {}, "has no column `prompt`"),
        ({"prompt": "a", "completion": "b", "label": True}, ("comparisons",), {}, "which are unpaired"),
        (
            {"instruction": "a", "output": "b"},
            ("demonstrations",),
            {"dataset_layout": "sharegpt"},
            "dataset_layout: sharegpt has",
        ),
        (
            {"conversations": LONG},
            ("demonstrations",),
            {"dataset_layout": "sharegpt"},
            "whose first rows look otherwise",
        ),
        (
            sharegpt(*HI[:3]),
            ("demonstrations",),
            {},
            "line 1: `conversations` must hold a prompt and end with a message",
        ),
        (sharegpt(("human", "Hi"), ("narrator", "x")), ("demonstrations",), {}, "message 2 has the role 'narrator'"),
        (
            sharegpt(("human", "Hi"), ("function_call", "no JSON")),
            ("demonstrations",),
            {},
            "has the role 'function_call'",
        ),
        ({"instruction": "a", "output": "b", "history": ["x"]}, ("demonstrations",), {}, "line 1: `history`, entry 1"),
        ({"chosen": f"{HUMAN} One.", "rejected": HUMAN}, ("comparisons",), {}, "line 1: `rejected` must be a dialogue"),
        (
            {"chosen": [*USER, *SAID], "rejected": [*AGAIN, *SAID]},
            ("comparisons",),
            {},
            "do not begin with the same prompt",
        ),
    ],
)
def test_what_is_no_form_is_refused(tmp_path, row, layouts, keys, said):
    assert said in refused(write_jsonl(tmp_path / "data.jsonl", [row]), layout=layouts, **keys)


@pytest.mark.parametrize(
    "row, layouts, said",
    [
        ({"question": "a", "answer": None}, ("demonstrations",), "the demonstration (`answer`) is missing"),
        ({"Question": None, "Answer": "b"}, ("demonstrations",), "`Question` is missing (None)"),
        ({"query": " ", "output": "b"}, ("demonstrations",), "`query` is empty"),
        (
            {"question": "a", "chosen_response": "b", "rejected_response": "b"},
            ("comparisons",),
            "`rejected_response` are",
        ),
        ({"question": "", "chosen": "b", "rejected": "c"}, ("comparisons",), "`question` is empty"),
        ({"Question": "a", "Response": "b", "Label": 0}, ("demonstrations",), "{source_Label: Label}"),
        ({"Conversations": LONG[:3]}, ("demonstrations",), "`Conversations` must hold a prompt and end"),
    ],
)
def test_a_faulty_row_is_named_by_the_column_of_its_file(tmp_path, row, layouts, said):
    good = {"question": "x", "query": "x", "answer": "y", "chosen": "y", "Question": "x", "Answer": "y"}
    rows = [{name: good.get(name, value) for name, value in row.items()}, row]
    assert said in refused(write_jsonl(tmp_path / "data.jsonl", rows), layout=layouts)
    mapped = write_jsonl(tmp_path / "mapped.jsonl", [{"q": "x", "body": {"a": "y"}}, {"q": "x", "body": {"a": ""}}])
    message = refused(mapped, layout="demonstrations", column_mapping={"prompt": "q", "completion": "body.a"})
    assert "line 2: the demonstration (`body.a`) is empty" in message


@pytest.mark.parametrize(
    "row, layouts, said",
    [
        ({"problem": "a", "generated_solution": "b"}, ("demonstrations",), "{prompt: problem, completion: generated_"),
        (
            {"prompt": "a", "canonical_solution": "b", "rots": 1},
            ("demonstrations",),
            "{completion: canonical_solution}",
        ),
        ({"context": "a", "response": "b", "rots": ["c"]}, ("demonstrations",), "{prompt: <column>, completion: resp"),
        ({"question": "a", "response_j": "b", "response_k": "c"}, ("comparisons",), "{chosen: response_j, rejected: r"),
        ({"question": "a", "response_j": "b", "response_k": "c"}, ("demonstrations",), "n, completion: <column>}"),
        ({"prompt": "a", "response_0": "b", "response_1": "c"}, ("comparisons",), "another column says which it is"),
        ({"chat": "USER: a\nASSISTANT: b"}, ("demonstrations",), "`chat` holds 'USER: a\\nASSISTANT: b', which is no"),
        ({"dialog": ["a", "b", "c"]}, ("demonstrations",), "which is no conversation that is read"),
        ({"messages": [{"speaker": "a", "text": "b"}]}, ("prompts",), "which is no conversation that is read"),
        (
            {"conversation": [{"input": "a", "output": "b", "tone": "c"}]},
            ("demonstrations",),
            "which is no conversation",
        ),
        ({"conversations": ["a", "b"], "prompt": "c"}, ("demonstrations",), "write `dataset_layout: lima`"),
        ({"prompt": "a", "question": "b", "chosen": "c"}, ("comparisons",), "{rejected: <column>}"),
        ({"messages": [{"role": "Anna", "text": "b"}]}, ("prompts",), "which is no conversation that is read"),
        ({"Question": "a", "question": "b", "Response": "c"}, ("demonstrations",), "completion: Response}"),
    ],
)
def test_what_to_write_is_said(tmp_path, row, layouts, said):
    assert said in refused(write_jsonl(tmp_path / "data.jsonl", [row]), layout=layouts)


def test_names_that_somebody_writes_keep_their_capitals(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"Question": "a", "Response": "b", "Level": 1}])
    template = "{Question}\n({Level})"
    assert "has no column" in refused(path, layout="demonstrations", prompt_template=template + "{prompt}")
    made = load(path, layout="demonstrations", column_mapping={"prompt": "Question", "Hard": "Level"}).train
    assert (made[0]["completion"], made[0]["Hard"]) == ("b", 1)


def test_judgements_are_counted(tmp_path):
    rows = [{"prompt": prompt, "completion": "x", "label": label} for prompt, label in (("a", 1), ("a", 0), ("b", 1))]
    message = refused(write_jsonl(tmp_path / "data.jsonl", rows), layout="comparisons")
    assert "1 of 2 prompts have an answer of either label" in message


def test_a_mapping_stands_above_what_is_recognised(tmp_path):
    row = {"instruction": "a", "output": "b", "better": "c", "question": "d"}
    path = write_jsonl(tmp_path / "data.jsonl", [row])
    loaded = load(path, layout="demonstrations", column_mapping={"prompt": "question", "completion": "better"}).train
    assert (loaded[0]["prompt"], loaded[0]["completion"], loaded[0]["output"]) == ("d", "c", "b")
    # The answer alone is named: the question is still found.
    loaded = load(path, layout="demonstrations", column_mapping={"prompt": "question"}).train
    assert (loaded[0]["prompt"], loaded[0]["completion"]) == ("d", "b")


def test_a_template_may_write_the_whole_prompt(tmp_path):
    rows = [{"title": "Rain", "place": "Rome", "poem": "It rains."}]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    template = "A poem named {title}, of {place}."
    loaded = load(path, layout="demonstrations", prompt_template=template, column_mapping={"completion": "poem"}).train
    assert (loaded[0]["prompt"], loaded[0]["completion"]) == ("A poem named Rain, of Rome.", "It rains.")
    assert "has no column `completion`" in refused(path, layout="demonstrations", prompt_template=template)
    alpaca = write_jsonl(tmp_path / "alpaca.jsonl", [{"instruction": "Add.", "input": "1 2", "output": "3"}])
    loaded = load(alpaca, layout="demonstrations", prompt_template="### {instruction}\n{input}\n###").train
    assert (loaded[0]["prompt"], loaded[0]["completion"]) == ("### Add.\n1 2\n###", "3")


@pytest.mark.parametrize(
    "row, template, prompt",
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "### Instruction:\n{prompt}\n\n### Input:\n{input}",
            "### Instruction:\nAdd.\n\n### Input:\n1 2",
        ),
        (
            {"instruction": "When?", "context": "In May.", "response": "May"},
            "{prompt}\nContext: {context}",
            "When?\nContext: In May.",
        ),
        ({"question": "1 + 1?", "answer": "2"}, "Q: {question}\n({prompt})", "Q: 1 + 1?\n(1 + 1?)"),
        ({"question": "1 + 1?", "answer": "2"}, "Q: {question}\n", "Q: 1 + 1?\n"),
    ],
)
def test_a_template_takes_columns_that_a_form_reads(tmp_path, tiny_model_path, row, template, prompt):
    path = write_jsonl(tmp_path / "data.jsonl", [row, row])
    splits = load(path, layout="demonstrations", prompt_template=template)
    tokenizer = load_tokenizer(tiny_model_path)
    made = to_conversational(splits, tokenizer, RecipeArguments(conversational=False, prompt_template=template))
    assert made.train["prompt"][:] == [prompt] * 2


def test_a_template_that_names_no_column_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    message = refused(path, layout="demonstrations", prompt_template="Q: {qestion}")
    assert "must hold `{prompt}`" in message and "question, answer" in message


def test_faulty_rows_are_told_together(tmp_path):
    rows = [sharegpt(*HI), sharegpt(*HI[:3]), sharegpt(("human", ""), ("gpt", "x")), *[sharegpt(*HI[:1])] * 9]
    message = refused(write_jsonl(tmp_path / "data.jsonl", rows), layout="demonstrations")
    assert "line 2: `conversations` must hold" in message and "line 3: `conversations`, message 1 (user)" in message
    assert message.endswith("9 more of 12 rows are faulty.\n`on_bad_row: drop` leaves faulty rows out.")


@pytest.mark.parametrize(
    "bad, good, layout",
    [
        ({"conversations": []}, sharegpt(*HI), "demonstrations"),
        ({"messages": "oops"}, {"messages": json.dumps(LONG)}, "demonstrations"),
        ({"chosen": "x", "rejected": "y"}, {"chosen": f"{HUMAN} One.", "rejected": f"{HUMAN} Two."}, "comparisons"),
        ({"chosen": [], "rejected": []}, {"chosen": [*USER, *SAID], "rejected": [*USER, *MORE]}, "comparisons"),
    ],
)
def test_a_faulty_first_row_hides_no_form(tmp_path, bad, good, layout):
    path = write_jsonl(tmp_path / "data.jsonl", [bad, good, good])
    assert "line 1: " in refused(path, layout=layout)
    splits = load(path, layout=layout, on_bad_row="drop")
    assert (len(splits.train), splits.dropped) == (2, 1)


def test_documents_beside_other_texts_are_told(tmp_path, caplog):
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "Add two numbers.", "code": "a + b", "id": 1}])
    load(path, layout=("demonstrations", "documents"))
    assert "`text` is trained whole, and nothing of `code`." in caplog.text
    caplog.clear()
    load(path, layout=("demonstrations", "documents"), dataset_layout="documents")
    load(path, layout=("documents", "demonstrations"))
    assert not caplog.text


def test_pairs_of_responses_are_no_judgements(tmp_path):
    row = {"prompt": "a", "response_a": "b", "response_b": "c", "label": 1}
    assert "judgements" not in refused(write_jsonl(tmp_path / "data.jsonl", [row]), layout="comparisons")


def test_a_prompt_that_is_a_dialogue_becomes_messages(tmp_path, tiny_model_path):
    row = {"prompt": HUMAN, "chosen": " Hello.", "rejected": " No."}
    splits = load(write_jsonl(tmp_path / "data.jsonl", [row]), layout="comparisons")
    made = to_conversational(splits, load_tokenizer(tiny_model_path), RecipeArguments()).train[0]
    assert made["prompt"] == ASKED and made["chosen"] == SAID and made["rejected"] == chat("assistant", "No.")


@pytest.mark.parametrize("named", [None, "documents"])
def test_lines_of_json_in_a_file_of_texts_are_told(tmp_path, caplog, named):
    (tmp_path / "rows.txt").write_text('{"prompt": "Hi", "completion": "Hello."}\n' * 2)
    splits = load(tmp_path / "rows.txt", layout=("demonstrations", "documents"), dataset_layout=named)
    assert splits.layout == "documents" and ("name the file .jsonl" in caplog.text) is (named is None)
