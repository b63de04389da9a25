"""The rewards of episodes: what they give, and what they say where something is missing."""

import inspect
import time

import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.boxes import boxes_of, overlap
from hpt_trl.rewards.columns import FACTS
from hpt_trl.rewards.functions import REQUIRED_COLUMNS, REWARDS
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.loading import check_columns, columns_read, load_rewards
from hpt_trl.rewards.searching import (
    action_format,
    answer_exact,
    answer_match,
    crop_overlap,
    page_ndcg,
    page_recall,
)
from hpt_trl.rewards.success import reward_range

SEARCH = "<think>Look it up.</think><search>revenue 2019</search>"
BBOX = "<think>Zoom in.\nThe table.</think>\n<bbox>[10, 20, 300, 400]</bbox>"
ANSWER = "<think>It says 12.</think> <answer>12 < 13</answer>"


def said(*texts, **more):
    """An episode: the model's turns with the environment's between them."""
    turns = []
    for text in texts:
        turns += [{"role": "assistant", "content": text, **more}, {"role": "user", "content": "<think>not mine"}]
    return turns[:-1]


def test_answers():
    columns = {
        "completions": [""] * 7,
        "answer": ["12", ["Paris", "City of Light"], "total revenue", "12", None, 12, "x"],
        "final_answer": ["12.0", "city of light", "total revenu", None, "12", "13", " "],
    }
    assert answer_match(**columns) == [1.0, 1.0, pytest.approx(1 - 1 / 13), 0.0, None, 0.0, 0.0]
    assert answer_exact(**columns) == [1.0, 1.0, 0.0, 0.0, None, 0.0, 0.0]


def test_pages():
    columns = {
        "completions": [""] * 5,
        "reference_pages": [["a"], ["a", "b"], ["a"], [], None],
        "retrieved_pages": [["c", "a", "c"], ["b"], [], ["a"], ["a"]],
    }
    assert page_ndcg(**columns) == [pytest.approx(0.6309298), pytest.approx(0.6131472), 0.0, None, None]
    assert page_recall(**columns) == [1.0, 0.5, 0.0, None, None]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),
        ([0, 0, 10, 10], [5, 0, 15, 10], 50 / 150),
        ([0, 0, 10, 10], [2, 2, 4, 4], 4 / 100),
        ([3, 3, 3, 9], [0, 0, 10, 10], 0.0),
        ([9, 9, 1, 1], [0, 0, 10, 10], 0.0),
    ],
)
def test_overlap_of_boxes(one, two, expected):
    assert overlap(one, two) == pytest.approx(expected) and overlap(two, one) == pytest.approx(expected)


def test_crops_are_held_against_boxes_of_their_own_page():
    boxes = [{"page": "a", "box": [0, 0, 10, 10]}, {"page": "b", "box": [0, 0, 4, 4]}]
    crops = [
        [{"page": "a", "box": [5, 0, 15, 10]}, {"page": "a", "box": [0, 0, 10, 5]}, {"page": "c", "box": [0, 0, 4, 4]}],
        [],
        [{"page": "a", "box": [0, 0, 1, 1]}],
        [],
    ]
    values = crop_overlap(completions=[""] * 4, reference_boxes=[boxes, boxes, [], None], crops=crops)
    assert values == [pytest.approx((0.5 + 0) / 2), 0.0, None, None]


NO_BOXES = [
    [0, 0, 10],
    [5, 0, 5, 10],
    [0, 9, 10, 1],
    [0, 0, float("nan"), 1],
    [-9, -9, -1, 5],
    [-9, 0, 0, 5],
    [0, -9, 5, 0],
]
NO_BOXES += [["a", "b", "c", "d"], [True, 0, 5, 5], None, "0, 0, 5, 5", [[0, 0, 5, 5]]]


@pytest.mark.parametrize(
    "entries",
    [
        *([{"page": "a", "box": box}] for box in NO_BOXES),
        [{"box": [0, 0, 5, 5]}],
        [{"page": None, "box": [0, 0, 5, 5]}],
        [{"page": 3, "box": [0, 0, 5, 5]}],
        [{"page": "a"}],
        [[0, 0, 5, 5]],
        [0, 0, 5, 5],
        ["a"],
        [None],
        "a",
        {"page": "a", "box": [0, 0, 5, 5]},
        5,
    ],
)
def test_a_reference_box_that_is_none_is_named_with_its_row_and_the_form(entries):
    with pytest.raises(
        UserError, match=r'row 7: `reference_boxes` holds .* write a list of {"page": "report_1", "box"'
    ):
        guard(crop_overlap)(
            prompts=["?"], completions=[""], reference_boxes=[entries], crops=[[]], _row=[7], completion_ids=[[]]
        )


def test_reference_boxes_may_begin_outside_of_their_page():
    assert boxes_of([{"page": "a", "box": [-5, -0.5, 3, 2.5]}]) == [("a", (-5, -0.5, 3, 2.5))]
    assert boxes_of(None) == boxes_of([]) == []


FINE = [
    said(SEARCH, BBOX, ANSWER),
    said(ANSWER),
    [{"role": "assistant", "content": [{"type": "text", "text": SEARCH}]}],
    f"{SEARCH}\n\n{BBOX}{ANSWER}\n",
    said("<answer>12</answer>", reasoning_content="It says 12."),
    said('<think>Look.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'),
    said("<think>Look.</think>", tool_calls=[{"function": {"name": "search", "arguments": {"query": "x"}}}]),
    said("", reasoning_content="Look.", tool_calls=[{"function": {"name": "search", "arguments": {"query": "x"}}}]),
]
NOT_FINE = [
    "",
    [],
    [{"role": "user", "content": SEARCH}],
    said("It is 12."),
    said("<answer>12</answer>"),
    said("<think>It is 12.</think>"),
    said("<think></think><answer>12</answer>"),
    said("<think>a</think><answer> \n</answer>"),
    said("<think>a</think><answer>12</answer> Done."),
    said("Well: <think>a</think><answer>12</answer>"),
    said("<think>a</think> so <answer>12</answer>"),
    said("<think>a</think><think>b</think><answer>12</answer>"),
    said("<think>a</think><search>b</search><answer>12</answer>"),
    said("<think>a <search>b</search></think><answer>12</answer>"),
    said("<think>a</think><answer><answer>12</answer></answer>"),
    said("<think>a</think><answer>12</search>"),
    said("<think>a</think><answer>12"),
    said("<think>a</think><zoom>12</zoom>"),
    said("<search>b</search><think>a</think>"),
    said("<THINK>a</THINK><answer>12</answer>"),
    said(SEARCH, "<think>a</think>", ANSWER),
    said(None),
    said("<think>a</think><tool_call>{}</tool_call><tool_call>{}</tool_call>"),
    said("<think>a</think><tool_call>{}</tool_call><answer>12</answer>"),
    f"{SEARCH} and {ANSWER}",
    said("", tool_calls=[{}]),
    said("<think>a</think>", tool_calls=[{}, {}]),
    said("<think>a</think> text", tool_calls=[{}]),
    said("<think>a</think>", reasoning_content="b", tool_calls=[{}]),
    said(SEARCH, reasoning_content="b"),
    said("text", reasoning_content="b", tool_calls=[{}]),
]


@pytest.mark.parametrize("completion", FINE)
def test_well_formed_turns(completion):
    assert action_format(completions=[completion] * 2, invalid_actions=[0, 1]) == [1.0, 0.0]


@pytest.mark.parametrize("completion", NOT_FINE)
def test_turns_that_are_not_well_formed(completion):
    assert action_format(completions=[completion], invalid_actions=[0]) == [0.0]


def test_the_form_of_a_long_text_is_told_at_once():
    start = time.perf_counter()
    hostile = ["<think>" * 5000, "<think>a" + "</think" * 20000, (SEARCH + " " * 300) * 200 + "<", "\n" * 200_000]
    assert action_format(completions=hostile, invalid_actions=[0] * 4) == [0.0] * 4
    assert action_format(completions=[SEARCH * 3000], invalid_actions=[0]) == [1.0]
    assert time.perf_counter() - start < 5


EPISODES = (
    "answer_match",
    "answer_exact",
    "judged_answer",
    "action_format",
    "page_ndcg",
    "page_recall",
    "crop_overlap",
)


def test_rewards_of_episodes_are_known_as_such():
    told = {name for name, reward in REWARDS.items() if {*FACTS} & {*inspect.signature(reward).parameters}}
    assert told == set(EPISODES)
    assert all(reward_range(guard(REWARDS[name])) == (0.0, 1.0) for name in EPISODES)
    read = columns_read(load_rewards(["crop_overlap", "answer_match"]))
    assert read is not None and {"reference_boxes", "answer"} <= read


@pytest.mark.parametrize("name", sorted(set(EPISODES) & set(REQUIRED_COLUMNS)))
def test_a_missing_column_and_missing_facts_are_named(name):
    column = REQUIRED_COLUMNS[name]
    with pytest.raises(UserError, match=f"`{name}` reads the column `{column}`"):
        check_columns([name], ["prompt"], "pages.jsonl")
    with pytest.raises(UserError, match=f"`{name}` reads the column `{column}`"):
        guard(REWARDS[name])(prompts=["a"], completions=["b"])
    with pytest.raises(UserError, match=f"`{name}` scores episodes of an environment and reads"):
        guard(REWARDS[name])(prompts=["a"], completions=["b"], **{column: [None]})


def test_the_form_needs_an_environment_as_well():
    with pytest.raises(
        UserError, match="`action_format` scores episodes of an environment and reads `invalid_actions`"
    ):
        action_format(completions=[SEARCH])
