"""Every turn is one action or says what is wrong with it; what is wrong costs a turn and breaks nothing."""

import json
import random
from pathlib import Path

import pytest
import trl

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.methods.vrag.actions import LONGEST_QUERY, Answer, Crop, Invalid, Search, read_calls, read_tags
from hpt_trl.models.tiny_vlm.model import TinyVlm
from tests.helpers.episodes import PROMPT, turn_ids, with_ends
from tests.helpers.searching import called, query_of, said
from tests.helpers.tiny import build_tokenizer

LONG = "harvest " * (LONGEST_QUERY // 8 + 1)
MALFORMED = [
    # Nothing to do.
    "",
    " \n\t ",
    "The answer is 12.",
    "<think>I search now.</think>",
    "search: harvest",
    "search(harvest)",
    "[1, 2, 3, 4]",
    '{"name": "search", "arguments": {"query": "harvest"}}',
    "<tool_call>harvest</tool_call>",
    "<SEARCH>harvest</SEARCH>",
    "<Search>harvest</Search>",
    "< search >harvest</ search >",
    "<search query='harvest'>",
    "<search/>",
    "&lt;search&gt;harvest&lt;/search&gt;",
    "\uff1csearch\uff1eharvest\uff1c/search\uff1e",
    "<searching>harvest</searching>",
    "<box>[1, 2, 3, 4]</box>",
    "<final_answer>12</final_answer>",
    "\ufffd\ufffd\x00\x1b",
    "<" * 3000,
    # Marks that do not close.
    "<search>harvest",
    "harvest</search>",
    "</search>harvest<search>",
    "<search>harvest<search>",
    "<search>harvest</answer>",
    "<bbox>[1, 2, 3, 4]</search>",
    "<answer>12",
    "<answer>12</answer></answer>",
    "<search>harvest</search></bbox>",
    "<search>harvest</search",
    "<search>harvest<\\/search>",
    # Thoughts that do not close.
    "<think>I search.<search>harvest</search>",
    "I search.</think><search>harvest</search>",
    "<think>a<think>b</think>c</think><search>harvest</search>",
    "<think><search>harvest</search></think>",
    "<think>a</think></think><answer>12</answer>",
    "<search>harvest</search><think>",
    # More than one.
    "<search>harvest</search><search>oats</search>",
    "<search>harvest</search><answer>12</answer>",
    "<answer>12</answer><answer>13</answer>",
    "<answer><search>harvest</search></answer>",
    "<search><bbox>[1, 2, 3, 4]</bbox></search>",
    "<bbox>[1, 2, 3, 4]</bbox><bbox>[5, 6, 7, 8]</bbox>",
    # Empty ones.
    "<search></search>",
    "<search> \n </search>",
    "<answer></answer>",
    "<answer>\t\n</answer>",
    "<bbox></bbox>",
    "<bbox>[]</bbox>",
    f"<search>{LONG}</search>",
    f"<search>{'x' * 100_000}</search>",
    # Boxes that are none.
    "<bbox>1, 2, 3, 4</bbox>",
    "<bbox>(1, 2, 3, 4)</bbox>",
    "<bbox>{1, 2, 3, 4}</bbox>",
    "<bbox>[1, 2, 3]</bbox>",
    "<bbox>[1, 2, 3, 4, 5]</bbox>",
    "<bbox>[1, 2, 3, 4,]</bbox>",
    "<bbox>[1 2 3 4]</bbox>",
    "<bbox>[1; 2; 3; 4]</bbox>",
    "<bbox>[[1, 2], [3, 4]]</bbox>",
    "<bbox>[[1, 2, 3, 4]]</bbox>",
    "<bbox>[1, 2, 3, 4</bbox>",
    "<bbox>[a, b, c, d]</bbox>",
    "<bbox>[x1, y1, x2, y2]</bbox>",
    "<bbox>[1, 2, three, 4]</bbox>",
    "<bbox>[nan, 2, 3, 4]</bbox>",
    "<bbox>[1, 2, inf, 4]</bbox>",
    "<bbox>[1, 2, 1e999, 4]</bbox>",
    f"<bbox>[1, 2, {'9' * 400}, 4]</bbox>",
    "<bbox>[1, 2, 0x10, 4]</bbox>",
    "<bbox>[1, 2, 1_000, 4]</bbox>",
    "<bbox>[1.5.2, 2, 3, 4]</bbox>",
    "<bbox>[1, 2, 3, 4]px</bbox>",
    "<bbox>[1px, 2px, 3px, 4px]</bbox>",
    "<bbox>[10%, 10%, 90%, 90%]</bbox>",
    "<bbox>[1, 2, 3, 1+3]</bbox>",
    "<bbox>['1', '2', '3', '4']</bbox>",
    "<bbox>[null, 2, 3, 4]</bbox>",
    "<bbox>[true, 2, 3, 4]</bbox>",
    "<bbox>[,,,]</bbox>",
    "<bbox>[- 1, 2, 3, 4]</bbox>",
    # Turned round or empty.
    "<bbox>[5, 2, 5, 4]</bbox>",
    "<bbox>[5, 2, 1, 4]</bbox>",
    "<bbox>[1, 4, 5, 2]</bbox>",
    "<bbox>[1, 4, 5, 4]</bbox>",
    "<bbox>[0, 0, 0, 0]</bbox>",
]

# What a model writes as a call, and the calls that a parser may make of it.
CALLS = [
    {},
    {"tool_calls": None},
    {"tool_calls": []},
    {"content": "<search>harvest</search>"},
    {"tool_calls": [None]},
    {"tool_calls": ["search"]},
    {"tool_calls": [{}]},
    {"tool_calls": [{"function": None}]},
    {"tool_calls": [{"function": "search"}]},
    {"tool_calls": [{"function": {}}]},
    *(
        {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}
        for name, arguments in [
            (None, {"query": "harvest"}),
            ("", {"query": "harvest"}),
            (3, {"query": "harvest"}),
            (["search"], {"query": "harvest"}),
            ({"a": 1}, {"query": "harvest"}),
            ("Search", {"query": "harvest"}),
            ("find", {"query": "harvest"}),
            ("x" * 10_000, {}),
            ("search", None),
            ("search", {}),
            ("search", []),
            ("search", "harvest"),
            ("search", "{'query': 'harvest'}"),
            ("search", "[" * 100_000),
            ("search", '{"query": ' * 5_000),
            ("search", '"harvest"'),
            ("search", "null"),
            ("search", {"text": "harvest"}),
            ("search", {"query": "harvest", "top_k": 3}),
            ("search", {"query": None}),
            ("search", {"query": 3}),
            ("search", {"query": ["harvest"]}),
            ("search", {"query": " "}),
            ("search", {"query": LONG}),
            ("search", {"query": "harvest \ud800"}),
            ("answer", {"text": ""}),
            ("answer", {"text": 12}),
            ("answer", {"query": "12"}),
            ("answer", {"text": "\udcff 12"}),
            ("answer", '{"text": "\\ud83d"}'),
            ("crop", {"bbox": None}),
            ("crop", {"bbox": "1, 2, 3, 4"}),
            ("crop", {"bbox": [1, 2, 3]}),
            ("crop", {"bbox": [1, 2, 3, 4, 5]}),
            ("crop", {"bbox": [[1, 2, 3, 4]]}),
            ("crop", {"bbox": ["1", "2", "3", "4"]}),
            ("crop", {"bbox": [True, 2, 3, 4]}),
            ("crop", {"bbox": [float("nan"), 2, 3, 4]}),
            ("crop", {"bbox": [1, 2, float("inf"), 4]}),
            ("crop", {"bbox": [1, 2, 10**400, 4]}),
            ("crop", {"bbox": [5, 2, 1, 4]}),
            ("crop", {"bbox": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}),
            ("crop", {"x1": 1, "y1": 2, "x2": 3, "y2": 4}),
            ("crop", json.loads('{"bbox": ' + "[" * 500 + "]" * 500 + "}")),
        ]
    ),
    {
        "tool_calls": [
            {"function": {"name": "search", "arguments": {"query": "harvest"}}},
            {"function": {"name": "answer", "arguments": {"text": "12"}}},
        ]
    },
]


def test_there_are_as_many_as_are_asked_for():
    assert len(set(MALFORMED)) == len(MALFORMED) >= 60
    assert len(CALLS) >= 30


def check_is_told(environment, turn) -> None:
    """The model is told, it costs a turn, and the next action is taken as if nothing had been."""
    told = environment.act(turn)
    assert told.text.startswith("That was no valid action: ") and not told.pictures
    assert len(told.text) < 400
    told.text.encode()
    json.dumps(environment.facts())
    assert environment.facts() == {
        "final_answer": None,
        "retrieved_pages": [],
        "crops": [],
        "searches": 0,
        "invalid_actions": 1,
    }
    assert environment.measures()["vrag/invalid_actions"] == 1.0
    assert environment.measures()["vrag/turns"] == 1.0


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_tags_are_told(searched, text):
    assert isinstance(read_tags(text), Invalid)
    environment = searched.environment()
    check_is_told(environment, said(text))
    told = environment.act(said(text))
    assert "write one of <search>query</search>, <bbox>[x1, y1, x2, y2]</bbox>, <answer>answer</answer>." in told.text
    assert environment.act(said("<answer>12</answer>")) == "answer"
    assert environment.measures()["vrag/invalid_actions"] == pytest.approx(2 / 3)
    # On the last turn there is nobody to tell.
    assert searched.environment().act(said(text, last=True)) == "turns"


@pytest.mark.parametrize("message", CALLS, ids=range(len(CALLS)))
def test_malformed_calls_are_told(searched, message):
    message = {"role": "assistant", "content": "", **message}
    assert isinstance(read_calls(message), Invalid)
    environment = searched.environment(vocabulary="tools")
    turn = called("search", {})
    turn.message.clear()
    turn.message.update(message)
    check_is_told(environment, turn)
    assert "Call one tool: search, crop, or answer." in environment.act(turn).text
    assert environment.act(called("answer", {"text": "12"})) == "answer"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<search>harvest</search>", Search("harvest")),
        ("<think>I need it.</think><search>harvest</search>", Search("harvest")),
        ("  <think>\n\n a\n</think>\n\n\n<search>\n harvest   of\n\tOats \n</search>\n ", Search("harvest of Oats")),
        ("<search>\u00a0harvest\u2003oats\u3000</search>", Search("harvest oats")),
        ("So:<search>harvest</search> I wait.", Search("harvest")),
        ("<think><search>oats</search>, then <answer>1</answer>?</think><search>harvest</search>", Search("harvest")),
        ("<think></bbox> </search></think><search>harvest</search>", Search("harvest")),
        ("<think>a</think><search>harvest</search><think>b</think>", Search("harvest")),
        ("<search>2 < 3 & 4 > 1 </b> <i></search>", Search("2 < 3 & 4 > 1 </b> <i>")),
        ("<search>" + "x" * LONGEST_QUERY + "</search>", Search("x" * LONGEST_QUERY)),
        ("<search>漢字 🙂</search>", Search("漢字 🙂")),
        ("<search><|im_end|></search>", Search("<|im_end|>")),
        ("<bbox>[1, 2, 3, 4]</bbox>", Crop((1, 2, 3, 4))),
        ("<bbox>\n[ 1.5 ,2e0,\n+3.25 , 4E+2 ] </bbox>", Crop((1.5, 2, 3.25, 400))),
        ("<bbox>[-10, -0.5, 3, 4]</bbox>", Crop((-10, -0.5, 3, 4))),
        ("<bbox>[0,0,1e300,1e300]</bbox>", Crop((0, 0, 1e300, 1e300))),
        ("<answer>12</answer>", Answer("12")),
        ("<answer>\n 12  km \n</answer>", Answer("12  km")),
        ("<answer>a\nb</answer>", Answer("a\nb")),
        ("<think>[1, 2]</think> <answer>I think > it < is</answer>", Answer("I think > it < is")),
        ("<answer>" + "12 " * 5000 + "</answer>", Answer(("12 " * 5000).strip())),
    ],
)  # fmt: skip
def test_valid_tags(text, action):
    assert read_tags(text) == action


@pytest.mark.parametrize(
    ("name", "arguments", "action"),
    [
        ("search", {"query": " harvest \n of  Milshaw "}, Search("harvest of Milshaw")),
        ("search", '{"query": "harvest"}', Search("harvest")),
        ("search", ' {"query" : "\\u6f22"}\n', Search("漢")),
        ("answer", {"text": " 12 "}, Answer("12")),
        ("answer", {"text": "<search>harvest</search>"}, Answer("<search>harvest</search>")),
        ("answer", {"text": "\ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16")}, Answer("🙂")),
        ("crop", {"bbox": [1, 2.5, 3, 4]}, Crop((1, 2.5, 3, 4))),
        ("crop", {"bbox": "[1, 2, 3, 4]"}, Crop((1, 2, 3, 4))),
        ("crop", '{"bbox": [1e1, -2, 30, 4]}', Crop((10, -2, 30, 4))),
    ],
)
def test_valid_calls(name, arguments, action):
    message = called(name, arguments).message
    assert read_calls(message) == action
    # Some parsers leave out the level of the function.
    assert read_calls({"tool_calls": [message["tool_calls"][0]["function"]]}) == action


def test_any_text_is_read():
    generator = random.Random(0)
    marks = [f"<{slash}{tag}>" for tag in ("think", "search", "bbox", "answer") for slash in ("", "/")]
    parts = [*marks, "harvest", "[1, 2, 3, 4]", "[", "]", ",", "1", "e9", "\n", " ", "<", "\x00", "漢", "٣", "\ud800"]
    kinds = set()
    for _ in range(5000):
        text = "".join(generator.choice(parts) for _ in range(generator.randint(0, 7)))
        action = read_tags(text)
        kinds.add(type(action))
        if isinstance(action, Crop):
            assert action.box[0] < action.box[2] and action.box[1] < action.box[3]
    assert kinds == {Search, Crop, Answer, Invalid}


# Through a rollout, as a tokenizer's own parser takes turns apart.


def tool_encoders():
    qwen = build_tokenizer()
    qwen.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    return {"qwen2.5": with_ends(qwen), "tiny-vlm": with_ends(TinyVlm().tokenizer())}


WRITTEN = [
    "",
    "harvest",
    "<tool_call></tool_call>",
    "<tool_call>harvest</tool_call>",
    "<tool_call>{",
    "<tool_call>3</tool_call>",
    "<tool_call>null</tool_call>",
    "<tool_call>[]</tool_call>",
    "<tool_call>" + "[" * 1500 + "</tool_call>",
    '<tool_call>{"name": "search"</tool_call>',
    '<tool_call>{"name": "search"}</tool_call>',
    '<tool_call>{"name": ["search"], "arguments": {"query": "harvest"}}</tool_call>',
    '<tool_call>{"name": "search", "arguments": null}</tool_call>',
    '<tool_call>{"name": "search", "arguments": "harvest"}</tool_call>',
    '<tool_call>{"name": "search", "arguments": {"query": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "answer", "arguments": {"text": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "crop", "arguments": {"bbox": [NaN, 1, 2, 3]}}</tool_call>',
    '<tool_call>{"name": "crop", "arguments": {"bbox": [1' + "0" * 4500 + ", 1, 2, 3]}}</tool_call>",
    '<tool_call>{"name": "answer", "arguments": {"text": "12"}}</tool_call>' * 2,
    '</tool_call>{"name": "answer", "arguments": {"text": "12"}}<tool_call>',
]


@pytest.mark.parametrize("family", ["qwen2.5", "tiny-vlm"])
def test_written_calls_are_taken_apart_or_told(searched, family):
    encoder = tool_encoders()[family]
    environments = TurnEnvironments(lambda: searched.environment(vocabulary="tools"), max_turns=3)
    acting = Acting(environments, encoder, drawn=100_000)
    for text in WRITTEN:
        episode = acting.episode({"prompt": PROMPT})
        episode.take(turn_ids(encoder, text))
        assert episode.pending and episode.facts()["invalid_actions"] == 1, text
        assert "That was no valid action" in encoder.tokenizer.decode(episode.context().ids)
        title = query_of(searched.rows[0])
        call = json.dumps({"name": "search", "arguments": {"query": title}})
        if family == "qwen2.5":
            # A model of text sees no pages.
            episode.take(turn_ids(encoder, '<tool_call>{"name": "answer", "arguments": {"text": "12"}}</tool_call>'))
            assert (episode.ended, episode.facts()["final_answer"]) == ("answer", "12")
            continue
        episode.take(turn_ids(encoder, f"<think>A page.</think><tool_call>{call}</tool_call>"))
        assert episode.facts()["retrieved_pages"] == searched.rows[0]["reference_pages"]
        shown = encoder.tokenizer.decode(episode.context().ids)
        assert shown.rsplit("<|im_start|>", 2)[1].startswith("tool\n")
