"""Environments that recipes name: every mistake in keys, rows, pages and services is told with its place."""

import base64
import json
import shutil
import time
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from hpt_trl.errors import UserError
from hpt_trl.retrieval.index import load_index
from hpt_trl.runs.preparation import prepare
from tests.helpers.searching import AS_THEY_ARE
from tests.helpers.servers import send, serve

HERE = "tests.helpers.own_environments"


@pytest.fixture
def acted(tmp_path, vlm_path, searched):
    """Prepares a recipe over questions about pages; None drops a key."""

    def prepared(stage: str = "sft", rows: list[dict[str, Any]] | None = None, **changes: Any):
        data = tmp_path / "questions.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in (rows or searched.rows)))
        values = {
            "stage": stage,
            "model_name_or_path": vlm_path,
            "dtype": "float32",
            "dataset_name": str(data),
            "output_dir": str(tmp_path / "output"),
            "environment": "vrag",
            "search_index": str(searched.index),
            "environment_options": dict(AS_THEY_ARE),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        }
        if stage != "evaluate":
            values |= {"eval_strategy": "no", "max_steps": 1, "per_device_train_batch_size": 2}
        else:
            values = {name: value for name, value in values.items() if name != "report_to"}
        if stage != "sft":
            values |= {"reward_funcs": ["answer_match", "page_ndcg"], "max_completion_length": 64}
        if stage in ("grpo", "hpt"):
            values |= {"num_generations": 2}
        values |= changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return prepare(str(path), [])

    return prepared


def refused(acted, *parts: str, **keys: Any) -> str:
    with pytest.raises(UserError) as told:
        acted(**keys)
    message = str(told.value)
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize("stage", ["sft", "grpo", "hpt", "evaluate"])
def test_sound_recipes_are_prepared(acted, stage):
    prepared = acted(stage, max_images=2, max_turns=5)
    assert prepared.acting is not None
    assert (prepared.acting.limits.turns, prepared.acting.limits.images) == (5, 2)


# Keys.


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"vocabular": "tags"}, ["`vocabular`: unknown", "Did you mean `vocabulary`"]),
        ({"max_pixels": "many"}, ["`max_pixels: many`; allowed: a whole number"]),
        ({"max_pixels": 400000.5}, ["`max_pixels: 400000.5`; allowed: a whole number"]),
        ({"max_pixels": True}, ["`max_pixels: True`; allowed: a whole number"]),
        ({"crops": 1}, ["`crops: 1`; allowed: true or false"]),
        ({"crops": "false"}, ["`crops: false`; allowed: true or false"]),
        ({"timeout": "soon"}, ["`timeout: soon`; allowed: a number"]),
        ({"timeout": False}, ["`timeout: False`; allowed: a number"]),
        ({"timeout": 0}, ["`timeout: 0`; allowed: a number of seconds above 0"]),
        ({"timeout": float("nan")}, ["`timeout: nan`; allowed"]),
        ({"timeout": float("inf")}, ["`timeout: inf`; allowed"]),
        ({"retries": -1}, ["`retries: -1` is too small"]),
        ({"rerank_depth": 0}, ["`rerank_depth: 0` is too small"]),
        ({"reranker": 3}, ["`reranker: 3`; allowed: a text, or null"]),
        ({"vocabulary": "tag"}, ["`vocabulary: tag`; allowed: tags, tools", "Did you mean `tags`"]),
        ({"vocabulary": None}, ["`vocabulary: None`; allowed: a text"]),
        ({"min_pixels": 100}, ["`min_pixels: 100` and `max_pixels", "at least 784"]),
        ({"min_pixels": 500_000}, ["`min_pixels: 500000` and `max_pixels", "the first at most the second"]),
        ({"max_pixels": 2_000_000_000}, ["`max_pixels: 2000000000`; allowed: at least 784 and at most 80000000"]),
        ({"min_pixels": 2_000_000_000, "max_pixels": 2_000_000_000}, ["allowed: at least 784 and at most 80000000"]),
        ({"index": "pages"}, ["`index`: write it as the key `search_index`"]),
        ({"images": "pages"}, ["`images` is of a search service"]),
        ({"timeout": 3}, ["`timeout` is of a search service"]),
        ({"retries": 0}, ["`retries` is of a search service"]),
        ({"rerank_depth": 5}, ["`rerank_depth` says nothing without `reranker`"]),
        ("crops", ["allowed: a mapping, or null"]),
        ([1], ["allowed: a mapping"]),
    ],
)
def test_options_of_the_environment(acted, options, parts):
    refused(acted, "environment_options", *parts, environment_options=options)


def test_options_that_are_known(acted):
    message = refused(acted, "environment_options", environment_options={"zzz": 1})
    assert message.endswith(
        "Known: vocabulary, min_pixels, max_pixels, crops, instructions, reranker, rerank_depth, timeout, retries, "
        "images."
    )


def test_rerankers_that_cannot_be_loaded(acted, vlm_path, tmp_path):
    for name, parts in (
        (f"query_likelihood:{vlm_path}", ["cannot be loaded as a causal language model", "Idefics3Config"]),
        ("query_likelihood:", ["names no model"]),
        (f"query_likelihood:{tmp_path / 'nowhere'}", ["nowhere"]),
        (str(tmp_path / "nowhere"), ["nowhere", "CrossEncoder"]),
    ):
        options = {**AS_THEY_ARE, "reranker": name}
        message = refused(acted, "`environment_options`: ", *parts, environment_options=options)
        assert len(message) < 800 and "search_index" not in message


def test_an_index_that_is_none(acted, tmp_path, searched):
    refused(acted, "search_index", "needs it", "hpt-trl index PAGES INDEX", search_index=None)
    refused(acted, "search_index", "holds no index", search_index=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused(acted, "search_index", "holds no index", search_index=str(tmp_path / "empty"))
    refused(acted, "search_index", "holds no index", search_index=str(searched.pages))
    for nothing in ("", "  "):
        refused(acted, "`search_index`: `environment: vrag` needs it", search_index=nothing)
    refused(acted, "search_index", "http", search_index="http://")
    damaged = tmp_path / "damaged"
    shutil.copytree(searched.index, damaged)
    lines = (damaged / "pages.jsonl").read_text().splitlines(keepends=True)
    (damaged / "pages.jsonl").write_text("".join(lines[1:]))
    refused(acted, "search_index", "is damaged", search_index=str(damaged))
    (damaged / "pages.jsonl").write_text("")
    refused(acted, "search_index", "it has no pages", search_index=str(damaged))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("environment_options", {"crops": False}),
        ("search_index", "pages"),
        ("max_turns", 3),
        ("max_turn_length", 30),
        ("max_context_length", 300),
        ("max_images", 2),
    ],
)
def test_keys_without_an_environment(acted, key, value):
    keys = {"environment": None, "search_index": None, "environment_options": None, key: value}
    refused(acted, key, "it says nothing without `environment`", **keys)


@pytest.mark.parametrize("key", ["max_turns", "max_turn_length", "max_context_length", "max_images"])
@pytest.mark.parametrize("value", [0, -3, "many"])
def test_limits_out_of_range(acted, key, value):
    refused(acted, key, **{key: value})


def test_rewards_of_rollouts_need_an_environment(acted):
    keys = {"environment": None, "search_index": None, "environment_options": None}
    refused(
        acted,
        "reward_funcs",
        "`page_ndcg` reads `retrieved_pages`, which an environment tells",
        stage="grpo",
        reward_funcs=["page_ndcg"],
        **keys,
    )


def test_tools_need_a_template_with_their_calls(acted):
    options = {**AS_THEY_ARE, "vocabulary": "tools"}
    refused(acted, "environment", "`vocabulary: tags`", stage="grpo", environment_options=options)


# Environments of one's own.

OWN = {"search_index": None, "environment_options": None}


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("vragg", None, ["there is no environment `vragg`", "Did you mean `vrag`", "dotted path"]),
        ("Shop", None, ["there is no environment `Shop`"]),
        (f"{HERE}.Missing", None, [f"{HERE} has no `Missing`"]),
        (f"{HERE}.NO_ENVIRONMENT", None, [f"`{HERE}.NO_ENVIRONMENT` is no class or function"]),
        ("tests.helpers.nowhere.Shop", None, ["the module tests.helpers.nowhere cannot be imported"]),
        ("broken_module_of_tests.Shop", None, ["cannot be imported: ZeroDivisionError"]),
        ("broken_syntax_of_tests.Shop", None, ["cannot be imported: SyntaxError"]),
        (f"{HERE}.WithoutUnseen", None, ["WithoutUnseen has no method `unseen`"]),
        (f"{HERE}.WithoutTools", None, ["WithoutTools has no list `tools`"]),
        ("builtins.str", None, ["environment"]),
        ("builtins.dict", None, ["environment"]),
        (f"{HERE}.NotMade", None, ["NotMade raised OSError: the shelf is locked (", "own_environments.py, line "]),
        ("leaving_module_of_tests.Shop", None, ["cannot be imported: SystemExit: 0"]),
        (f"{HERE}.LeavesAtOnce", None, ["LeavesAtOnce raised SystemExit: 0 (", "own_environments.py, line "]),
        (f"{HERE}.MeasuresWords", None, ["line 1: `measures` of MeasuresWords returned {'sound/word': 'loud'}"]),
        (f"{HERE}.Moody", None, ["questions.jsonl: `measures` of the environment tells `moody/", "of some rollouts"]),
        (f"{HERE}.NotMadeSaid", None, ["the shelf is locked; unlock it."]),
        (f"{HERE}.Sound", {"word": "a"}, ["takes no `word`", "Did you mean `words`", "It takes: words, limit"]),
        (f"{HERE}.Needy", None, ["Needy needs `shelf`"]),
        (f"{HERE}.FailsToBegin", None, ["line 4: `start` of the environment FailsToBegin raised KeyError: 'shelf'"]),
    ],
)  # fmt: skip
def test_environments_of_ones_own(acted, searched, tmp_path, monkeypatch, name, options, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module_of_tests.py").write_text("1 / 0\n")
    (tmp_path / "leaving_module_of_tests.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "broken_syntax_of_tests.py").write_text("class Shop\n")
    rows = [{**row, "answer": str(number)} for number, row in enumerate(searched.rows)]
    refused(acted, *parts, stage="grpo", rows=rows, environment=name, **{**OWN, "environment_options": options})


def test_sound_environments_of_ones_own(acted):
    for name, options in (("Sound", {"words": "so"}), ("Any_", {"anything": 1}), ("Needy", {"shelf": "A"})):
        keys = {**OWN, "environment": f"{HERE}.{name}", "environment_options": options}
        prepared = acted("grpo", reward_funcs=["tests.helpers.stage_runs.remainder"], **keys)
        assert prepared.acting.episode(prepared.splits.train[0]).facts() == {"heard": 0, "turns": 0, "ended": ""}


def test_facts_may_need_the_start(acted, searched):
    keys = {**OWN, "environment": f"{HERE}.NeedsItsStart", "reward_funcs": ["tests.helpers.stage_runs.remainder"]}
    prepared = acted("grpo", **keys)
    assert prepared.acting.episode(prepared.splits.train[0]).facts()["place"] == searched.rows[0]["answer"]


def test_an_index_is_for_vrag_alone(acted):
    refused(
        acted,
        "search_index",
        "`environment: vrag` alone reads it",
        environment=f"{HERE}.Sound",
        environment_options=None,
    )


# Rows.


def changed(searched, **columns: Any) -> list[dict[str, Any]]:
    """The rows with the third one changed."""
    rows = [dict(row) for row in searched.rows]
    rows[2] |= columns
    return rows


@pytest.mark.parametrize("name", ["searches", "final_answer", "turns", "ended", "crops"])
def test_columns_with_the_name_of_a_fact(acted, searched, name):
    rows = [{**row, name: "1"} for row in searched.rows]
    refused(acted, "questions.jsonl", f"the column `{name}` has the name of something", "column_mapping", rows=rows)


def test_prompts_that_are_text(acted, searched):
    rows = [
        {**row, "prompt": row["prompt"][0]["content"], "completion": "<answer>12</answer>"} for row in searched.rows
    ]
    for stage in ("grpo", "sft"):
        message = refused(acted, "conversational: true", rows=rows, stage=stage, conversational=False)
        assert "an environment needs prompts that are messages" in message


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (
            [turn("<search>harvest</search>"), user("a page"), turn("<answer>12</answer>")],
            ["is no trajectory", "role `assistant` alone"],
        ),
        ([user("12")], ["message 1 has the role 'user'; a demonstration begins with 'assistant'"]),
        ([{"role": "tool", "content": "12"}, turn("<answer>12</answer>")], ["message 1 has the role 'tool'"]),
        ([turn("<search>zzz</search>")] * 5, ["has 5 turns, a rollout 4 (`max_turns`)"]),
        (
            [turn("<answer>12</answer>"), turn("<search>more</search>")],
            ["goes on after turn 1, which ends the rollout (answer): '<search>more</search>'. Drop what follows it."],
        ),
        ([turn("<search>zzz</search>"), turn("<answer>12</answer>"), turn("And so on.")], ["goes on after turn 2"]),
        ([turn("<think>open<answer>12</answer>")], ["never closed"]),
        ([turn("<answer>12</answer><|im_end|> more")], ["goes on after an end-of-sequence token"]),
        ([turn("<search>zzz</search>"), turn("I see <image> here.<answer>12</answer>")], ["stands for an image"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["sft", "hpt"])
def test_trajectories_that_are_none(acted, searched, stage, completion, parts):
    rows = changed(searched, completion=completion)
    refused(acted, "questions.jsonl, line 3", *parts, rows=rows, stage=stage)


def test_trajectories_that_cannot_be_read(acted, searched):
    for completion in (["<answer>12</answer>"], [3], [None], [{"content": "12"}], [{"role": "assistant"}]):
        refused(acted, "questions.jsonl", rows=[{**row, "completion": completion} for row in searched.rows])


def test_a_prompt_longer_than_the_context(acted, searched):
    rows = changed(searched, prompt=[user("How many pears? " * 200)])
    message = refused(
        acted, "questions.jsonl, line 3", "the prompt has ", rows=rows, stage="grpo", max_context_length=600
    )
    assert "leaves no room for a turn (`max_context_length` 600)" in message
    # What the model takes is a limit too.
    rows = changed(searched, prompt=[user("How many pears? " * 2000)])
    refused(acted, "questions.jsonl, line 3", rows=rows, stage="grpo")


def test_a_trajectory_without_room_is_trained_as_far_as_it_goes(acted, searched):
    prepared = acted()
    row = prepared.splits.train[0]
    whole = prepared.acting.demonstration(row, "completion")
    [segment] = whole.segments
    cut = acted(max_context_length=len(segment) - 1).acting.demonstration(row, "completion")
    assert (whole.ended, whole.turns, cut.ended, cut.turns) == ("answer", 3, "context", 2)
    [shorter] = cut.segments
    assert torch.equal(shorter.ids, segment.ids[: len(shorter)]) and shorter.drawn[-1]


def test_trajectories_that_look_odd_are_told(acted, searched, caplog):
    rows = changed(searched, completion=[turn("<search>zzz</search>"), turn("<answer>12</answer>")])
    rows[4]["completion"] = rows[4]["completion"][:1]
    rows[5]["completion"] = [turn("12"), *rows[5]["completion"]]
    acted(rows=rows)
    said = [record.message for record in caplog.records if "trajectories" in record.message]
    assert [message.partition(": ")[2] for message in said] == [
        "1 of the first 16 trajectories hold turns that are no valid actions, and are trained on.",
        "1 of the first 16 trajectories have no turn that ends the rollout, and are trained on.",
        "1 of the first 16 trajectories do not find all of their `reference_pages` with this search, and are trained "
        "on.",
    ]
    assert [message.partition(":")[0].rpartition("row ")[2] for message in said] == ["6", "5", "3"]


def test_turns_of_the_assistant_in_a_prompt_are_no_trajectory(acted, searched):
    # Rows of `messages` are split before their last turn.
    rows = [
        {"messages": [*row["prompt"], row["completion"][0], user("a page"), row["completion"][-1]]}
        for row in searched.rows
    ]
    refused(acted, "questions.jsonl, line 1", "the prompt holds a turn of the assistant", "`prompt`", rows=rows)


def test_lengths_of_rows_without_images_do_not_bound_trajectories(acted):
    assert acted().acting.limits.context == acted("hpt").acting.limits.context
    refused(acted, "line ", "`max_length`", "`max_context_length` bounds what is read", max_length=200)


def late(searched, **columns: Any) -> list[dict[str, Any]]:
    """More rows than are played, with the twentieth changed."""
    rows = [dict(row) for row in [*searched.rows, *searched.rows]]
    rows[19] |= columns
    return rows


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"completion": [turn("<search>a</search>"), user("b"), turn("<answer>1</answer>")]}, ["is no trajectory"]),
        ({"completion": [turn("<search>a</search>")] * 5}, ["has 5 turns, a rollout 4 (`max_turns`)"]),
        (
            {"completion": [turn("<think>a</think><answer>1</answer>"), turn("<search>more</search>")]},
            ["goes on after turn 1, which ends the rollout (answer): '<search>more</search>'. Drop what follows it."],
        ),
        ({"completion": [turn("<search>a<image></search>")]}, ["stands for an image"]),
        ({"completion": [turn("<answer>1</answer><|im_end|> more")]}, ["after an end-of-sequence token"]),
        ({"prompt": [user("a"), turn("b"), user("c")]}, ["the prompt holds a turn of the assistant"]),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "hpt"])
def test_trajectories_behind_those_that_are_played(acted, searched, stage, columns, parts):
    refused(acted, "questions.jsonl, line 20", *parts, rows=late(searched, **columns), stage=stage)


def test_images_of_prompts_behind_those_that_are_begun(acted, searched, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "there.png")
    there = base64.b64encode((tmp_path / "there.png").read_bytes()).decode()
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    rows = [{**row, "prompt": prompt, "images": [str(tmp_path / "there.png")]} for row in late(searched)]
    rows[17]["images"] = [there]
    assert acted("grpo", rows) is not None
    rows[19]["images"] = ["nowhere.png"]
    for stage in ("grpo", "hpt"):
        refused(acted, "questions.jsonl, line 20: the image nowhere.png is no file", rows=rows, stage=stage)
    rows[19]["images"] = []
    refused(acted, "questions.jsonl, line 20", "Give `images` one for each part", rows=rows, stage="grpo")


def test_turns_that_no_rollout_may_draw_are_told(acted, caplog):
    acted("hpt", max_completion_length=5, reward_funcs=["page_ndcg"])
    assert "no turn of a trajectory is as short as a rollout's must be: the shortest has " in caplog.text
    assert "a rollout's at most 5 (`max_turn_length`, `max_completion_length`)" in caplog.text
    caplog.clear()
    acted("hpt", max_completion_length=200, max_turn_length=100)
    assert "as short as" not in caplog.text


# Reference pages and boxes.


@pytest.mark.parametrize("pages", ["table_1", [["table_1"]], [3], {"page": "table_1"}])
def test_reference_pages_that_are_no_names(acted, searched, pages):
    rows = [{**row, "reference_pages": pages} for row in searched.rows]
    for stage in ("sft", "grpo", "evaluate"):
        refused(acted, "questions.jsonl, line 1", "`reference_pages`", "is no list of names", rows=rows, stage=stage)


def test_reference_pages_that_the_index_lacks(acted, searched, caplog):
    rows = [{**row, "reference_pages": [f"{row['reference_pages'][0]}.png"]} for row in searched.rows]
    first = rows[0]["reference_pages"][0]
    for stage in ("sft", "hpt", "evaluate"):
        refused(
            acted,
            f"questions.jsonl, line 1, `reference_pages`: the index has no page `{first}`",
            "its pages are called like `",
            f"It has none of the {len(rows)} pages",
            rows=rows,
            stage=stage,
        )
    rows = changed(searched, reference_pages=["nowhere", *searched.rows[2]["reference_pages"]])
    acted(rows=rows, stage="grpo")
    assert "line 3, `reference_pages`: the index has no page `nowhere`" in caplog.text
    assert "It lacks 1 pages that rows name, which no rollout can find." in caplog.text
    acted(rows=[{**row, "reference_pages": None} for row in searched.rows], stage="grpo")


def boxed(searched, page: str | None = None, box: Any = (0, 0, 30, 30)) -> list[dict[str, Any]]:
    """Rows with a box each, the twentieth another."""
    rows = late(searched)
    rows = [{**row, "reference_boxes": [{"page": row["reference_pages"][0], "box": [0, 0, 30, 30]}]} for row in rows]
    rows[19]["reference_boxes"] = [{"page": page or rows[19]["reference_pages"][0], "box": box}]
    return rows


def test_reference_boxes_of_use(acted, searched):
    for stage in ("grpo", "sft"):
        assert acted(stage, boxed(searched)) is not None


@pytest.mark.parametrize("box", [[-9, -9, -1, -1], [5, 0, 5, 10], [0, 0, 10], None])
def test_reference_boxes_that_are_none(acted, searched, box):
    rows = boxed(searched, box=box)
    for stage in ("sft", "grpo", "evaluate"):
        refused(acted, "questions.jsonl, line 20: `reference_boxes` holds", "write a list of", rows=rows, stage=stage)


@pytest.mark.parametrize("boxes", ["0, 0, 5, 5", [[0, 0, 5, 5]], [{"box": [0, 0, 5, 5]}], [{"page": "table_1"}]])
def test_reference_boxes_of_another_form(acted, searched, boxes):
    rows = [{**row, "reference_boxes": boxes} for row in searched.rows]
    refused(
        acted,
        "questions.jsonl, line 1: `reference_boxes` holds",
        rows=rows,
        reward_funcs=["crop_overlap"],
        stage="grpo",
    )


def test_reference_boxes_on_pages_that_the_index_lacks(acted, searched, caplog):
    acted("grpo", boxed(searched, page="nowhere"))
    assert "line 20, `reference_boxes`: the index has no page `nowhere`" in caplog.text
    rows = [{**row, "reference_boxes": [{"page": "nowhere", "box": [0, 0, 5, 5]}]} for row in searched.rows]
    refused(
        acted, "`reference_boxes`: the index has no page `nowhere`", "has none of the 1 pages", rows=rows, stage="grpo"
    )


def test_reference_boxes_outside_of_their_pages(acted, searched):
    page = searched.rows[2]["reference_pages"][0]
    rows = changed(searched, reference_boxes=[{"page": page, "box": [4000, 10, 4100, 20]}])
    message = refused(
        acted, "questions.jsonl, line 3: `reference_boxes` holds [4000, 10, 4100, 20]", rows=rows, stage="grpo"
    )
    width, height = searched.raw(page).size
    assert f"outside of the page {page} of {width} x {height} pixels" in message


# Pages.


@pytest.fixture
def broken_index(searched, tmp_path):
    """A copy of the index, one page image of which is another."""

    def broken(content: bytes | None) -> str:
        folder = tmp_path / "broken-index"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(searched.index, folder)
        name = searched.rows[2]["reference_pages"][0]
        [file] = [folder / page.image for page in load_index(folder).pages if page.name == name]
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        return str(folder)

    return broken


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_page_images_that_were_replaced(acted, searched, broken_index, content):
    message = refused(acted, "questions.jsonl, line 3", "is not the image", search_index=broken_index(content))
    assert message.count(f"page {searched.rows[2]['reference_pages'][0]}: ") == 1


def test_page_images_that_are_missing(acted, broken_index):
    refused(acted, "search_index", "is damaged: 1 of 12 images are missing", search_index=broken_index(None))


def test_a_page_with_extreme_sides(acted, searched):
    def answer(handler, asked):
        content = BytesIO()
        Image.new("RGB", (4040, 20)).save(content, format="PNG")
        strip = {"image_file": "strip.png", "image_base64": base64.b64encode(content.getvalue()).decode()}
        hits = searched.engine.search(asked.params["queries"], 10)
        found = [[{"image_file": f"img/{hit.name}.png"} for hit in row] for row in hits]
        asked_for = zip(asked.params["queries"], found, strict=True)
        send(handler, [[strip] if query == "the strip" else row for query, row in asked_for])

    completion = [turn("<search>the strip</search>"), turn("<answer>12</answer>")]
    rows = changed(searched, completion=completion, reference_pages=["strip"])
    rows = [{**row, "reference_boxes": None} for row in rows]
    with serve(answer) as server:
        options = {**AS_THEY_ARE, "images": str(searched.pages / "images")}
        settings = {"search_index": server.address, "environment_options": options}
        message = refused(acted, "questions.jsonl, line 3", rows=rows, **settings)
    assert "page strip: an image cannot be shown: it has 4040 x 20 pixels" in message


# Services.


def test_a_service_answers_as_an_index_does(acted, searched):
    def answer(handler, asked):
        hits = searched.engine.search(asked.params["queries"], 10)
        send(handler, [[{"image_file": f"img/{hit.name}.png"} for hit in row] for row in hits])

    with serve(answer) as server:
        options = {**AS_THEY_ARE, "images": str(searched.pages / "images")}
        prepared = acted(search_index=server.address, environment_options=options)
        own = acted()
        for row in prepared.splits.train.select(range(4)):
            ours, theirs = (one.acting.demonstration(row, "completion") for one in (prepared, own))
            assert [segment.ids.tolist() for segment in ours.segments] == [
                segment.ids.tolist() for segment in theirs.segments
            ]
    assert server.asked[0].path == "/search"


def slow(handler, asked):
    time.sleep(0.5)
    # Who asked is gone.
    with suppress(BrokenPipeError):
        send(handler, [])


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (slow, ["does not answer: asked 2 times", "time-out 0.2 s"]),
        (lambda handler, asked: send(handler, {"error": "busy"}, 503), ["does not answer: asked 2 times", "503"]),
        (lambda handler, asked: send(handler, {"error": "no"}, 404), ["404"]),
        (lambda handler, asked: send(handler, b"<html>"), ["with no JSON"]),
        (lambda handler, asked: send(handler, {"hits": []}), ["where a list of 1 rankings is due"]),
        (lambda handler, asked: send(handler, [[{"file": "a.png"}]]), ["image_file"]),
        (lambda handler, asked: send(handler, [[{"image_file": "nowhere/a.png"}]]), ["there is no such image"]),
    ],
)
def test_services_that_are_slow_or_broken(acted, answer, parts):
    with serve(answer) as server:
        options = {**AS_THEY_ARE, "timeout": 0.2, "retries": 1}
        refused(acted, "questions.jsonl, line 1", *parts, search_index=server.address, environment_options=options)


def test_a_service_that_is_down(acted):
    with serve(slow) as server:
        address = server.address
    options = {**AS_THEY_ARE, "timeout": 0.5, "retries": 0}
    refused(acted, "questions.jsonl, line 1", "does not answer", search_index=address, environment_options=options)
