"""The scripted expert of made pages gets full reward in the environment, and nobody else does."""

import json
import math
import re

import pytest

from hpt_trl.data.pages.source import pages
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.models.tiny_vlm.model import TinyVlm
from hpt_trl.rewards.functions import REWARDS
from tests.helpers.episodes import encoder_of, with_ends
from tests.helpers.searching import AS_THEY_ARE

LAYOUTS = ["table", "chart", "text", "form", "swatch", "disc"]
SCORED = ["answer_match", "answer_exact", "action_format", "page_ndcg", "page_recall", "crop_overlap"]


@pytest.fixture(scope="module")
def play(vlm_path, searched):
    """The rewards of a row's trajectory, played."""
    encoder = encoder_of(vlm_path)

    def play(row, options=AS_THEY_ARE, engine=searched.engine):
        settings = VragOptions(str(searched.index), **options)
        environments = TurnEnvironments(lambda: PageSearch(engine, settings, turns=4), max_turns=4)
        episode = Acting(environments, encoder, drawn=4000).demonstration(row, "completion")
        assert episode.ended == "answer"
        columns = {name: [value] for name, value in {**row, **episode.facts()}.items() if name != "completion"}
        return {name: REWARDS[name](completions=[episode.completion()], **columns)[0] for name in SCORED}, episode

    return play


def test_every_layout_is_among_the_rows(searched):
    assert sorted({row["layout"] for row in searched.rows}) == sorted(LAYOUTS)


def test_the_expert_gets_full_reward(searched, play):
    for row in searched.rows:
        rewards, episode = play(row)
        assert rewards == dict.fromkeys(SCORED, 1.0), row["layout"]
        assert episode.measures() == {
            "vrag/turns": 3.0,
            "vrag/searches": 1.0,
            "vrag/crops": 1.0,
            "vrag/invalid_actions": 0.0,
            "vrag/answered": 1.0,
            "vrag/recall": 1.0,
        }


@pytest.mark.parametrize(
    ("shown", "options", "least"),
    [
        ([320, 240], {"min_pixels": 28 * 28, "max_pixels": 320 * 240}, 0.9),
        ([1280, 960], {"min_pixels": 1280 * 960, "max_pixels": 1280 * 960}, 1.0),
        # VRAG's own limits: 401408 pixels at most, which the pages are below.
        ([640, 480], {}, 1.0),
    ],
)
def test_the_expert_looks_at_the_same_place_whatever_the_size(searched, play, tmp_path, shown, options, least):
    folder = str(searched.pages)
    rows, _ = pages({"size": 12, "test_size": 0, "folder": folder, "shown_size": shown}, seed=0)
    for row in rows:
        rewards, _ = play(row, options)
        assert rewards["crop_overlap"] >= least
        assert {**rewards, "crop_overlap": 1.0} == dict.fromkeys(SCORED, 1.0)


def test_an_expert_that_missed_first_has_less_of_the_pages_alone(searched, play):
    options = {"size": 12, "test_size": 0, "folder": str(searched.pages), "misses": 1.0}
    rows, _ = pages(options, seed=0)
    for row in rows:
        rewards, episode = play(row)
        assert episode.facts()["searches"] == 2
        assert rewards["page_ndcg"] == pytest.approx(1 / math.log2(3))
        assert {**rewards, "page_ndcg": 1.0} == dict.fromkeys(SCORED, 1.0)


def as_calls(turn: dict[str, str]) -> dict:
    """A turn in tags as one with a tool call."""
    thought, name, value = re.fullmatch(r"(<think>.*</think>)<(\w+)>(.*)</\2>", turn["content"]).groups()
    names = {"search": ("search", "query"), "bbox": ("crop", "bbox"), "answer": ("answer", "text")}
    tool, argument = names[name]
    arguments = {argument: json.loads(value) if name == "bbox" else value}
    call = {"type": "function", "function": {"name": tool, "arguments": arguments}}
    return {"role": "assistant", "content": thought, "tool_calls": [call]}


def test_the_expert_gets_full_reward_by_tool_calls(searched):
    encoder = with_ends(TinyVlm().tokenizer())
    environments = TurnEnvironments(lambda: searched.environment(vocabulary="tools"), max_turns=4)
    acting = Acting(environments, encoder, drawn=4000)
    for row in searched.rows:
        row = {**row, "completion": [as_calls(turn) for turn in row["completion"]]}
        episode = acting.demonstration(row, "completion")
        columns = {name: [value] for name, value in {**row, **episode.facts()}.items() if name != "completion"}
        rewards = {name: REWARDS[name](completions=[episode.completion()], **columns)[0] for name in SCORED}
        assert rewards == dict.fromkeys(SCORED, 1.0)
        prompt = encoder.tokenizer.decode(episode.prompt.ids)
        assert '"name": "crop"' in prompt and "First think, then call one tool" in prompt


def test_another_answer_or_page_is_not_paid(searched, play):
    row, other = searched.rows[0], searched.rows[1]
    last = {"role": "assistant", "content": "<think>I can see it.</think><answer>nothing of the kind</answer>"}
    rewards, _ = play({**row, "completion": [*row["completion"][:-1], last]})
    assert (rewards["answer_match"], rewards["page_ndcg"]) == (0.0, 1.0)
    rewards, _ = play({**row, "completion": [*other["completion"][:-1], last]})
    assert (rewards["page_ndcg"], rewards["crop_overlap"]) == (0.0, 0.0)
