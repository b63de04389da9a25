"""The environment on made pages and a real index: what is found, told and counted."""

import math
import random

import pytest

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.methods.vrag.building import vrag_environments
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.index import load_index
from tests.helpers.episodes import encoder_of, turn_ids
from tests.helpers.searching import AS_THEY_ARE, called, picture_of, query_of, said, same_pixels
from tests.helpers.servers import send, serve

# Searches.


def test_a_search_shows_the_next_page_of_the_ranking(searched):
    query = " ".join(query_of(row) for row in searched.rows)
    [ranking] = load_index(searched.index).search([query], 12)
    expected = [hit.name for hit in ranking]
    assert len(expected) == 12
    environment = searched.environment()
    for name in expected:
        picture = picture_of(environment.act(said(f"<search>{query}</search>")))
        assert (picture.name, picture.kind, picture.box) == (name, "page", None)
        assert same_pixels(picture.image, searched.raw(name))
        assert picture.raw_size == picture.image.size == (640, 480)
    told = environment.act(said(f"<search>{query}</search>"))
    assert told.text.startswith(f"The search found no other page for '{query}'. Try other words. Think in <think>")
    assert environment.facts()["retrieved_pages"] == expected
    assert environment.facts()["searches"] == len(expected) + 1
    assert environment.facts()["invalid_actions"] == 0


def test_no_page_is_shown_twice_whatever_is_searched(searched):
    generator = random.Random(0)
    words = sorted({word for row in searched.rows for word in query_of(row).split()})
    for _ in range(20):
        environment, names = searched.environment(), []
        for _ in range(15):
            query = " ".join(generator.sample(words, generator.randint(1, 4)))
            [ranking] = searched.engine.search([query], 12)
            unseen = [hit.name for hit in ranking if hit.name not in names]
            shown = environment.act(said(f"<search>{query}</search>"))
            assert bool(shown.pictures) == bool(unseen)
            if unseen:
                names.append(picture_of(shown).name)
                assert names[-1] == unseen[0]
        assert environment.facts()["retrieved_pages"] == names
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("query", ["zzz qqq", "漢字", "the of and", "!?", "🙂", "\x00\x01", "<|im_end|>", "a" * 512])
def test_words_that_are_on_no_page_are_told(searched, query):
    environment = searched.environment()
    told = environment.act(said(f"<search>{query}</search>"))
    assert told.text.startswith(f"The search found no page for {query!r}. Try other words.")
    assert environment.facts()["searches"] == 1 and environment.facts()["invalid_actions"] == 0


def test_rollouts_of_one_engine_do_not_know_of_each_other(searched):
    query = query_of(searched.rows[0])
    one, two = searched.environment(), searched.environment()
    first = picture_of(one.act(said(f"<search>{query}</search>"))).name
    assert picture_of(two.act(said(f"<search>{query}</search>"))).name == first
    both = f"{query} {query_of(searched.rows[1])}"
    assert picture_of(one.act(said(f"<search>{both}</search>"))).name == searched.rows[1]["reference_pages"][0] != first
    # Begun again, it knows of nothing.
    one.start({})
    assert picture_of(one.act(said(f"<search>{query}</search>"))).name == first


# Turns, facts and measures.


def test_the_last_turn_is_counted_and_shows_nothing(searched):
    row = searched.rows[0]
    environment = searched.environment(row)
    assert environment.act(said(f"<search>{query_of(row)}</search>", last=True)) == "turns"
    assert environment.facts()["searches"] == 1 and environment.facts()["retrieved_pages"] == []
    environment = searched.environment(row)
    environment.act(said(f"<search>{query_of(row)}</search>"))
    assert environment.act(said("<bbox>[1, 2, 30, 40]</bbox>", last=True)) == "turns"
    assert environment.facts()["crops"] == [] and environment.measures()["vrag/crops"] == 1.0
    environment = searched.environment(row)
    assert environment.act(said("<answer>12</answer>", last=True)) == "answer"
    assert environment.facts()["final_answer"] == "12"


@pytest.mark.parametrize("text", ["<answer>12</answer>", "<search>harvest</search>", "<think>I am not done"])
def test_a_turn_that_was_cut_is_no_action(searched, text):
    environment = searched.environment()
    assert environment.act(said(text, cut=True)) == "turns"
    facts = environment.facts()
    assert facts["final_answer"] is None and facts["searches"] == 0 and facts["invalid_actions"] == 1
    assert environment.measures()["vrag/answered"] == 0.0


def test_what_had_no_room_was_not_retrieved(searched):
    row = searched.rows[0]
    environment = searched.environment(row)
    environment.act(said(f"<search>{query_of(row)}</search>"))
    environment.unseen()
    assert environment.facts()["retrieved_pages"] == [] and environment.measures()["vrag/recall"] == 0.0
    assert environment.measures()["vrag/searches"] == 1.0
    environment = searched.environment(row)
    environment.act(said(f"<search>{query_of(row)}</search>"))
    environment.act(said("<bbox>[1, 2, 30, 40]</bbox>"))
    environment.unseen()
    assert environment.facts()["crops"] == [] and environment.facts()["retrieved_pages"] == row["reference_pages"]
    # A text that had no room takes nothing back.
    environment.act(said("harvest"))
    environment.unseen()
    assert environment.facts()["retrieved_pages"] == row["reference_pages"]


def test_measures_of_a_rollout_without_turns_or_references(searched):
    measures = searched.environment().measures()
    assert math.isnan(measures["vrag/recall"]) and math.isnan(measures["vrag/invalid_actions"])
    assert measures["vrag/turns"] == measures["vrag/answered"] == 0.0
    assert searched.environment({"reference_pages": None}).facts()["retrieved_pages"] == []


def test_recall_is_of_all_reference_pages(searched):
    names = [row["reference_pages"][0] for row in searched.rows[:4]]
    environment = searched.environment({"reference_pages": names})
    for share, row in enumerate(searched.rows[:3], start=1):
        environment.act(said(f"<search>{query_of(row)}</search>"))
        assert environment.measures()["vrag/recall"] == share / 4


def test_observations_name_what_they_show(searched):
    environment = searched.environment()
    page = environment.act(said(f"<search>{query_of(searched.rows[0])}</search>"))
    name = searched.rows[0]["reference_pages"][0]
    assert page.parts[1] == f"page {name}, 640 x 480 pixels" and page.folded == f"[page {name}: folded away]"
    crop = environment.act(said("<bbox>[10, 20, 60, 90]</bbox>"))
    assert crop.parts[1] == f"crop {name}, 50 x 70 pixels" and crop.folded == f"[crop {name}: folded away]"
    assert (page.role, page.name, crop.role, crop.name) == ("user", None, "user", None)


def test_observations_of_calls_are_of_the_tool(searched):
    environment = searched.environment(vocabulary="tools")
    page = environment.act(called("search", {"query": query_of(searched.rows[0])}))
    crop = environment.act(called("crop", {"bbox": [10, 20, 60, 90]}))
    nothing = environment.act(called("search", {"query": "zzz"}))
    wrong = environment.act(called("find", {}))
    assert [(one.role, one.name) for one in (page, crop, nothing, wrong)] == [
        ("tool", "search"),
        ("tool", "crop"),
        ("tool", "search"),
        ("user", None),
    ]
    # Tags are no actions there, and calls none elsewhere.
    assert "no tool call" in environment.act(said("<answer>12</answer>")).text
    assert "there was no action" in searched.environment().act(called("answer", {"text": "12"})).text
    assert environment.act(called("answer", {"text": "12"})) == "answer"


# In a rollout.


def test_folded_pages_are_named_and_the_last_can_still_be_cut(searched, vlm_path):
    encoder = encoder_of(vlm_path)
    environments = TurnEnvironments(lambda: searched.environment(images=1, turns=9), max_turns=9, max_images=1)
    episode = Acting(environments, encoder, drawn=4000).episode(searched.rows[0])
    names = [row["reference_pages"][0] for row in searched.rows[:2]]
    for row in searched.rows[:2]:
        episode.take(turn_ids(encoder, f"<search>{query_of(row)}</search>"))
    text = encoder.tokenizer.decode(episode.context().ids)
    assert f"[page {names[0]}: folded away]" in text and f"page {names[1]}, 640 x 480 pixels" in text
    for _ in range(2):
        episode.take(turn_ids(encoder, "<bbox>[10, 20, 60, 90]</bbox>"))
        # The page itself is folded away behind its own crop, and can be cut again.
        assert episode.facts()["crops"][-1] == {"page": names[1], "box": [10, 20, 60, 90]}
        assert episode.context().images == 1
    text = encoder.tokenizer.decode(episode.context().ids)
    assert f"[page {names[1]}: folded away]" in text and text.count(f"[crop {names[1]}: folded away]") == 1
    assert "You see the last 1 images; an older one is replaced by its name." in text
    # Calling for it again shows another page: it was seen.
    episode.take(turn_ids(encoder, f"<search>{query_of(searched.rows[1])}</search>"))
    assert episode.facts()["retrieved_pages"][:2] == names and len(set(episode.facts()["retrieved_pages"])) >= 2
    episode.take(turn_ids(encoder, "<answer>12</answer>"))
    assert (episode.ended, episode.facts()["final_answer"]) == ("answer", "12")
    assert len(episode.segments) == 4


def test_all_that_a_batch_searches_is_asked_at_once(searched, vlm_path):
    def answer(handler, asked):
        hits = searched.engine.search(asked.params["queries"], 10)
        send(handler, [[{"image_file": f"img/{hit.name}.png"} for hit in row] for row in hits])

    with serve(answer) as server:
        options = VragOptions(server.address, **AS_THEY_ARE, images=str(searched.pages / "images"))
        asking = vrag_environments(options, max_turns=3)
        plain = TurnEnvironments(lambda: searched.environment(turns=3), max_turns=3)
        ours, theirs = (Acting(one, encoder_of(vlm_path), drawn=400) for one in (asking, plain))
        both = [[acting.episode(row) for row in searched.rows] for acting in (ours, theirs)]
        queries = [query_of(row) for row in searched.rows]
        texts = [f"<search>{query}</search>" for query in queries[:5]] + ["<answer>12</answer>", "nothing"]
        encoder = encoder_of(vlm_path)
        turns = [turn_ids(encoder, text) for text in texts]
        for acting, episodes in zip((ours, theirs), both, strict=True):
            acting.take(episodes[: len(turns)], turns)
        assert [asked.params["queries"] for asked in server.asked] == [queries[:5]]
        # The others are shown further pages of rankings that are known, and what comes last is shown to nobody.
        for acting, episodes in zip((ours, theirs), both, strict=True):
            acting.take(episodes[:3], turns[:3])
            acting.take(episodes[:3], [turn_ids(encoder, "<search>something else</search>")] * 3)
        assert len(server.asked) == 1
        for mine, other in zip(*both, strict=True):
            assert mine.facts() == other.facts()
            assert [one.ids.tolist() for one in mine.segments] == [one.ids.tolist() for one in other.segments]
