"""The dataset `pages`: rows that a search can answer, and experts who act as they must."""

import json
import re
from fractions import Fraction

import pytest

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.loading import load_splits
from hpt_trl.data.pages.expert import expert_turns, shown_box
from hpt_trl.data.pages.source import pages
from hpt_trl.errors import UserError

ACTION = re.compile(r"<think>[^<>]+</think><(search|bbox|answer)>([^<>]+)</\1>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pages") / "made")


def actions(row) -> list[tuple[str, str]]:
    return [ACTION.fullmatch(message["content"]).groups() for message in row["completion"]]


def test_rows_are_of_disjoint_pages_of_one_folder(folder):
    train, test = pages({"size": 40, "test_size": 10, "folder": folder}, seed=5)
    assert (len(train), len(test)) == (40, 10)
    names = [row["reference_pages"][0] for rows in (train, test) for row in rows]
    assert len(set(names)) == 50
    with open(f"{folder}/pages.jsonl") as file:
        assert {json.loads(line)["image"] for line in file} == {f"images/{name}.png" for name in names}
    for row in train:
        (box,) = row["reference_boxes"]
        kinds = [kind for kind, _ in actions(row)]
        assert kinds == ["search", "bbox", "answer"]
        assert box["page"] == row["reference_pages"][0]
        assert json.loads(actions(row)[1][1]) == box["box"]
        assert actions(row)[2][1] == row["answer"]
        assert [message["role"] for message in row["completion"]] == ["assistant"] * 3
    # The recipe's seed draws nothing: an index of the pages serves every run.
    assert pages({"size": 40, "test_size": 10, "folder": folder}, seed=6)[0].to_list() == train.to_list()


def test_experts_may_miss_and_need_not_crop(folder):
    train, _ = pages({"size": 40, "test_size": 10, "folder": folder, "misses": 0.5, "crops": False}, seed=0)
    missed = [row for row in train if len(row["completion"]) == 3]
    assert 8 < len(missed) < 32
    for row in train:
        kinds = [kind for kind, _ in actions(row)]
        assert kinds == ["search"] * (len(kinds) - 1) + ["answer"] and len(kinds) in (2, 3)
        queries = [text for kind, text in actions(row) if kind == "search"]
        assert len(set(queries)) == len(queries)
        # The last query is for the page that is asked about, an earlier one for another.
        asked = row["prompt"][0]["content"].lower()
        assert [query.lower() in asked for query in queries] == [False] * (len(queries) - 1) + [True]
    every = pages({"size": 40, "test_size": 10, "folder": folder, "misses": 1}, seed=0)[0]
    assert all([kind for kind, _ in actions(row)] == ["search", "search", "bbox", "answer"] for row in every)
    # No training expert sees a held-out page.
    own = {actions(row)[1][1] for row in every}
    assert {actions(row)[0][1] for row in every} <= own


def test_boxes_of_experts_are_those_of_the_shown_image(folder):
    options = {"size": 40, "test_size": 10, "folder": folder, "shown_size": [73, 55]}
    for row in pages(options, seed=0)[0]:
        x1, y1, x2, y2 = json.loads(actions(row)[1][1])
        assert 0 <= x1 < x2 <= 73 and 0 <= y1 < y2 <= 55


def test_a_shown_box_covers_the_box_as_tightly_as_it_can():
    for page_size, shown_size in (((640, 480), (73, 55)), ((640, 480), (640, 480)), ((100, 80), (333, 271))):
        for box in ((0, 0, *page_size), (1, 1, 2, 2), (33, 17, 64, 80), (99, 79, 100, 80)):
            shown = shown_box(box, page_size, shown_size)
            for axis in (0, 1):
                scale = Fraction(shown_size[axis], page_size[axis])
                low, high = box[axis] * scale, box[axis + 2] * scale
                assert shown[axis] <= low < shown[axis] + 1
                assert shown[axis + 2] - 1 < high <= shown[axis + 2]
    assert shown_box((0, 0, 640, 480), (640, 480), (73, 55)) == [0, 0, 73, 55]


def test_turns_are_told_by_their_arguments_alone():
    assert [message["content"] for message in expert_turns("Card of Norwick", "red")] == [
        "<think>I need a page.</think><search>Card of Norwick</search>",
        "<think>I can see it.</think><answer>red</answer>",
    ]


def test_a_lexical_index_finds_every_page_by_the_experts_query(tmp_path):
    bm25s = pytest.importorskip("bm25s")
    train, test = pages({"size": 300, "test_size": 60, "folder": str(tmp_path / "pages")}, seed=0)
    with open(tmp_path / "pages" / "pages.jsonl") as file:
        lines = [json.loads(line) for line in file]
    index = bm25s.BM25()
    index.index(bm25s.tokenize([line["text"] for line in lines], show_progress=False), show_progress=False)
    first = 0
    for row in (*train, *test):
        query = bm25s.tokenize(actions(row)[0][1], show_progress=False)
        (found,), _ = index.retrieve(query, k=5, show_progress=False)
        names = [lines[place]["name"] for place in found]
        assert row["reference_pages"][0] in names
        first += names[0] == row["reference_pages"][0]
    # A short page with two words of a title may stand before a long one with all three.
    assert first >= 0.98 * (len(train) + len(test))


def test_a_recipe_reads_them_from_the_cache_where_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    options = {"size": 6, "test_size": 3, "layouts": "swatch", "test_layouts": ["chart"]}
    arguments = DataArguments(dataset_name="pages", dataset_options=options)
    splits = load_splits(arguments, seed=0, needs_demonstration=True)
    assert set(splits.train["layout"]) == {"swatch"} and set(splits.test["layout"]) == {"chart"}
    assert splits.train[0]["completion"][0]["role"] == "assistant"
    assert len(list(tmp_path.glob("pages/*/pages.jsonl"))) == 1
    load_splits(
        DataArguments(dataset_name="pages", dataset_options={**options, "seed": 1}), seed=0, needs_demonstration=True
    )
    assert len(list(tmp_path.glob("pages/*/pages.jsonl"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_size": 3}, "did you mean `test_size`?"),
        ({"folder": 3}, "`folder: 3`"),
        ({"folder": " "}, "must be the path of a folder"),
        ({"crops": "yes"}, "`crops: yes` must be true or false"),
        ({"crops": 1}, "`crops: 1`"),
        ({"misses": 1.5}, "write 0 to 1"),
        ({"misses": True}, "write 0 to 1"),
        ({"misses": "half"}, "write 0 to 1"),
        ({"shown_size": 640}, "width and height"),
        ({"shown_size": "640x480"}, "width and height"),
        ({"shown_size": [640]}, "width and height"),
        ({"shown_size": [640, 0]}, "width and height"),
        ({"shown_size": [640, 480.5]}, "width and height"),
        ({"size": -3}, "`size: -3`"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    with pytest.raises(UserError) as refused:
        pages(options, seed=0)
    assert message in str(refused.value) and str(refused.value).startswith("dataset_options of pages: ")
    assert not list(tmp_path.iterdir())
