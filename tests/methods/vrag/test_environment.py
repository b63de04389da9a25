"""The environment on made pages and a real index: what is found, cut out, told, counted and paid."""

import math
import random
from fractions import Fraction

import pytest
from PIL import Image, ImageChops

from hpt_trl.data.messages import as_text
from hpt_trl.data.pages.source import pages
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.engine import open_engine
from hpt_trl.retrieval.index import build_index, load_index
from hpt_trl.retrieval.rankers import IndexSettings
from hpt_trl.rewards.functions import REWARDS
from tests.helpers.episodes import encoder_of, turn_ids
from tests.helpers.searching import AS_THEY_ARE, called, picture_of, said

LAYOUTS = ["table", "chart", "text", "form", "swatch", "disc"]
SCORED = ["answer_match", "answer_exact", "action_format", "page_ndcg", "page_recall", "crop_overlap"]


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def query_of(row) -> str:
    return row["completion"][0]["content"].split("<search>")[1].split("</search>")[0]


# The expert.


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


def test_another_answer_or_page_is_not_paid(searched, play):
    row, other = searched.rows[0], searched.rows[1]
    last = {"role": "assistant", "content": "<think>I can see it.</think><answer>nothing of the kind</answer>"}
    rewards, _ = play({**row, "completion": [*row["completion"][:-1], last]})
    assert (rewards["answer_match"], rewards["page_ndcg"]) == (0.0, 1.0)
    rewards, _ = play({**row, "completion": [*other["completion"][:-1], last]})
    assert (rewards["page_ndcg"], rewards["crop_overlap"]) == (0.0, 0.0)


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


# Crops.

SIZES = [(640, 480), (97, 61), (1501, 903), (61, 1200), (4000, 90)]


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory):
    """Pages whose pixels say where they are: red and green their coordinates modulo 256, blue what is above."""
    folder = tmp_path_factory.mktemp("coordinates")
    (folder / "pages").mkdir()
    lines = []
    for number, (width, height) in enumerate(SIZES):
        across = Image.linear_gradient("L").rotate(90).resize((256, 1), Image.Resampling.NEAREST)
        assert list(across.tobytes()) == list(range(256))
        image = Image.frombytes(
            "RGB",
            (width, height),
            bytes(
                part
                for y in range(height)
                for x in range(width)
                for part in (x % 256, y % 256, x // 256 * 16 + y // 256)
            ),
        )
        image.save(folder / "pages" / f"size_{number}.png")
        lines.append(f'{{"image": "size_{number}.png", "text": "number{number}"}}\n')
    (folder / "pages" / "pages.jsonl").write_text("".join(lines))
    build_index(folder / "pages", folder / "index", IndexSettings())
    engine = open_engine(folder / "index")

    def show(number: int, **limits):
        options = VragOptions(str(folder / "index"), **limits)
        environment = PageSearch(engine, options, turns=100)
        environment.start({})
        return environment, picture_of(environment.act(said(f"<search>number{number}</search>")))

    return show


def region(image: Image.Image) -> tuple[int, int, int, int]:
    """Where on the page an image that was not resized was cut out, by its own pixels."""

    def place(pixel) -> tuple[int, int]:
        red, green, blue = pixel
        return red + 256 * (blue // 16), green + 256 * (blue % 16)

    left, top = place(image.getpixel((0, 0)))
    right, bottom = place(image.getpixel((image.width - 1, image.height - 1)))
    return left, top, right + 1, bottom + 1


def covering(box, shown: tuple[int, int], raw: tuple[int, int]) -> tuple[int, ...]:
    """The smallest whole box of the raw page that holds what a box of the shown one covers."""
    found = []
    for place, value in enumerate(box):
        exact = Fraction(value) * raw[place % 2] / shown[place % 2]
        found.append(exact.numerator // exact.denominator if place < 2 else -(-exact.numerator // exact.denominator))
    return max(found[0], 0), max(found[1], 0), min(found[2], raw[0]), min(found[3], raw[1])


LIMITS = {
    "as they are": {"min_pixels": 784, "max_pixels": 10_000_000},
    "smaller": {"min_pixels": 784, "max_pixels": 60_000},
    "larger": {"min_pixels": 1_500_000, "max_pixels": 1_600_000},
    "VRAG's": {},
}


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("limits", LIMITS)
def test_a_crop_is_the_region_of_the_raw_page(coordinates, number, limits):
    environment, page = coordinates(number, **LIMITS[limits])
    (width, height), raw = page.image.size, SIZES[number]
    options = environment.options
    assert page.raw_size == raw
    if limits in ("smaller", "larger"):
        assert options.min_pixels <= width * height <= options.max_pixels
        assert (width, height) != raw or raw[0] * raw[1] < options.max_pixels
    generator = random.Random(f"{number} {limits}")
    boxes = [
        (0, 0, width, height),
        (0, 0, width / 2, height / 2),
        (width / 2, height / 2, width, height),
        (width - 1, height - 1, width, height),
        (0, 0, 1, 1),
        (0, height - 1, width, height),
        # Outside on all sides: clamped.
        (-50, -7.5, width + 50, height + 1e9),
        (width - 0.5, -3, width + 3, 2),
    ]
    for _ in range(8):
        x1, y1 = generator.uniform(-20, width - 1), generator.uniform(-20, height - 1)
        box = (x1, y1, x1 + generator.uniform(0.5, width), y1 + generator.uniform(0.5, height))
        boxes.append(tuple(round(side, generator.choice([0, 1, 6])) for side in box))
    raw_page = environment.engine.image(page.name)
    shown_whole = 0
    for box in boxes:
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        expected = covering(tuple(Fraction(repr(float(side))) for side in box), page.image.size, raw)
        wide, high = expected[2] - expected[0], expected[3] - expected[1]
        observation = environment.act(said(f"<bbox>{list(box)}</bbox>"))
        if min(wide, high) <= 0:
            assert "the box is outside of the page" in observation.text
            continue
        if max(wide, high) > 200 * min(wide, high):
            assert "the box is too narrow to be shown" in observation.text
            continue
        crop = picture_of(observation)
        assert (crop.name, crop.kind, crop.raw_size) == (page.name, "crop", raw)
        assert crop.box == expected, box
        assert environment.facts()["crops"][-1] == {"page": page.name, "box": list(expected)}
        pixels = crop.image.width * crop.image.height
        assert pixels <= options.max_pixels and min(crop.image.size) >= 28
        if crop.image.size == (wide, high):
            shown_whole += 1
            assert region(crop.image) == expected
            assert same_pixels(crop.image, raw_page.crop(expected))
        else:
            assert same_pixels(crop.image, raw_page.crop(expected).resize(crop.image.size, Image.Resampling.BICUBIC))
    assert shown_whole or limits in ("larger", "VRAG's")


def test_halves_of_a_page_shown_at_half_and_double_size_are_exact(searched):
    name = searched.rows[0]["reference_pages"][0]
    for factor, limits in (
        (0.5, {"min_pixels": 784, "max_pixels": 76_800}),
        (2, dict.fromkeys(LIMITS["larger"], 1_228_800)),
    ):
        environment = searched.environment(**limits)
        page = picture_of(environment.act(said(f"<search>{query_of(searched.rows[0])}</search>")))
        assert page.image.size == (640 * factor, 480 * factor)
        box = [100 * factor, 60 * factor, 200 * factor, 150 * factor]
        crop = picture_of(environment.act(said(f"<bbox>{box}</bbox>")))
        assert crop.box == (100, 60, 200, 150)
        wanted = searched.raw(name).crop((100, 60, 200, 150))
        if factor == 0.5:
            assert same_pixels(crop.image, wanted)
        # There and back: the box of the crop in pixels of the shown page is the one that was asked for.
        assert [side * factor for side in crop.box] == box


@pytest.mark.parametrize(
    "box",
    [[640, 0, 700, 10], [-20, 0, 0, 10], [0, 480, 10, 500], [0, -9, 10, 0], [1e9, 1e9, 1e10, 1e10], [-2, -2, -1, -1]],
)
def test_a_box_outside_of_the_page_is_told_with_its_size(searched, box):
    environment = searched.environment()
    environment.act(said(f"<search>{query_of(searched.rows[0])}</search>"))
    told = environment.act(said(f"<bbox>{box}</bbox>"))
    assert "the box is outside of the page, which has 640 x 480 pixels" in told.text
    assert environment.facts()["invalid_actions"] == 1 and environment.facts()["crops"] == []


def test_a_crop_needs_a_page(searched):
    environment = searched.environment()
    told = environment.act(said("<bbox>[1, 2, 30, 40]</bbox>"))
    assert "there is no page yet to look at closer; search first" in told.text
    environment.act(said("<search>zzz</search>"))
    assert "there is no page yet" in environment.act(said("<bbox>[1, 2, 30, 40]</bbox>")).text
    assert environment.measures()["vrag/crops"] == 0.0


def test_crops_are_of_the_last_page_and_not_of_one_another(searched):
    environment = searched.environment()
    for row in searched.rows[:3]:
        environment.act(said(f"<search>{query_of(row)}</search>"))
        for _ in range(2):
            crop = picture_of(environment.act(said("<bbox>[100, 60, 200, 150]</bbox>")))
            assert (crop.name, crop.box) == (row["reference_pages"][0], (100, 60, 200, 150))
            assert same_pixels(crop.image, searched.raw(crop.name).crop(crop.box))
    # What is told in between changes nothing.
    environment.act(said("<search>zzz</search>"))
    assert picture_of(environment.act(said("<bbox>[0, 0, 100, 100]</bbox>"))).name == row["reference_pages"][0]
    assert environment.measures()["vrag/crops"] == 7.0


def test_crops_can_be_left_out(searched):
    for vocabulary, turn in (
        ("tags", said("<bbox>[1, 2, 30, 40]</bbox>")),
        ("tools", called("crop", {"bbox": [1, 2, 3, 4]})),
    ):
        environment = searched.environment(crops=False, vocabulary=vocabulary)
        assert [tool["function"]["name"] for tool in environment.tools] == (
            [] if vocabulary == "tags" else ["search", "answer"]
        )
        told = environment.act(turn).text
        assert "pages are not cut here" in told and "bbox" not in told and "crop," not in told
        assert environment.facts()["invalid_actions"] == 1


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
    assert "there was none of" in searched.environment().act(called("answer", {"text": "12"})).text
    assert environment.act(called("answer", {"text": "12"})) == "answer"


# Instructions.


@pytest.mark.parametrize("vocabulary", ["tags", "tools"])
@pytest.mark.parametrize("crops", [True, False])
def test_the_prompt_says_how_to_act_and_how_long(searched, vocabulary, crops):
    environment = searched.environment(turns=7, images=3, vocabulary=vocabulary, crops=crops)
    messages = [{"role": "user", "content": "How many pears?"}]
    system, user = environment.prompt(messages)
    assert user == messages[0] and system["role"] == "system"
    text = system["content"]
    assert "You have 7 turns." in text
    assert "You see the last 3 images; an older one is replaced by its name." in text
    tags = ["<search>", "<bbox>", "<answer>"]
    assert [tag in text for tag in tags] == ([True, crops, True] if vocabulary == "tags" else [False] * 3)
    words = ["search shows", "crop shows", "answer ends"]
    assert [word in text for word in words] == ([False] * 3 if vocabulary == "tags" else [True, crops, True])
    assert messages == [{"role": "user", "content": "How many pears?"}]
    assert environment.prompt(messages) == [system, user]


def test_without_a_limit_of_images_no_rule_is_told(searched):
    text = searched.environment(turns=4).prompt([{"role": "user", "content": "?"}])[0]["content"]
    assert "You have 4 turns." in text and "replaced" not in text


def test_instructions_stand_before_those_of_the_row(searched):
    own = {"role": "system", "content": "Answer in French."}
    parts = {"role": "system", "content": [{"type": "text", "text": "Answer in French."}]}
    user = {"role": "user", "content": "?"}
    for system in (own, parts):
        first, second = searched.environment().prompt([system, user])
        assert second == user
        assert as_text([first]).split("\n\n")[-1].strip() == "Answer in French."
        assert as_text([first]).startswith("Answer the question by looking at pages")
    assert parts["content"] == [{"type": "text", "text": "Answer in French."}]


def test_instructions_can_be_left_out(searched):
    messages = [{"role": "user", "content": "?"}]
    assert searched.environment(instructions=False).prompt(messages) is messages


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
