"""Pictures by path, as bytes and in lists, and the places in the text where they stand."""

import base64
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hpt_trl.errors import UserError
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.datasets import chat, load, refused, write_jsonl


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (shade * 40, 255 - shade * 40, 128))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "seen").mkdir()
    for shade in range(3):
        picture(shade).save(tmp_path / "seen" / f"{shade}.png")
    return tmp_path


def test_paths_count_from_the_file(folder):
    rows = [{"prompt": "Which?", "completion": f"{n}", "image": f"seen/{n}.png"} for n in range(3)]
    read = load(write_jsonl(folder / "data.jsonl", rows)).train
    assert [one.getpixel((0, 0)) for one in read["image"]] == [picture(n).getpixel((0, 0)) for n in range(3)]
    lists = [{"prompt": "Which?", "completion": f"{n}", "images": ["seen/1.png"] * n} for n in range(1, 3)]
    read = load(write_jsonl(folder / "lists.jsonl", lists)).train
    assert [len(one) for one in read["images"]] == [1, 2]
    rows[1]["image"] = "seen/9.png"
    path = write_jsonl(folder / "data.jsonl", rows)
    assert "line 2: the image seen/9.png is no file" in refused(path)
    assert load(path, on_bad_row="drop").train["completion"][:] == ["0", "2"]


def test_bytes_without_a_type(folder):
    held = io.BytesIO()
    picture(2).save(held, "PNG")
    value = {"bytes": held.getvalue(), "path": None}
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "image": [value]}), folder / "data.parquet")
    assert load(folder / "data.parquet").train[0]["image"].getpixel((0, 0)) == picture(2).getpixel((0, 0))


def test_marks_become_places(folder):
    turns = [*chat("user", "Hi"), *chat("assistant", "Yes?"), *chat("user", "<image>\nWhich?"), *chat("assistant", "x")]
    row = {"messages": turns, "images": ["seen/0.png"]}
    read = load(write_jsonl(folder / "data.jsonl", [row]), layout="demonstrations").train[0]
    assert read["prompt"][0] == {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    assert read["prompt"][2]["content"] == [{"type": "image"}, {"type": "text", "text": "\nWhich?"}]
    message = refused(
        write_jsonl(folder / "data.jsonl", [row | {"images": ["seen/0.png"] * 2}]), layout="demonstrations"
    )
    assert "line 1: the text has 1 places for images (`<image>`), and the row 2 images" in message


def test_other_columns_of_the_name_stay(folder):
    rows = [{"prompt": "a", "completion": "b", "image": "https://example.org/1.png"}]
    assert load(write_jsonl(folder / "data.jsonl", rows)).train[0]["image"] == "https://example.org/1.png"


def test_a_model_is_trained_on_them(folder, recipe, vlm_path):
    rows = [{"prompt": f"Which? <image> {n}", "completion": f"{n}", "image": f"seen/{n % 3}.png"} for n in range(8)]
    data = str(write_jsonl(folder / "data.jsonl", rows))
    path = recipe("sft", dataset_name=data, model_name_or_path=vlm_path, max_steps=1, test_split_size=None)
    runner.run(path, [])
    assert (folder / "sft" / "results.json").is_file()


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_pictures_that_stand_in_the_text_itself(folder, head):
    written = [base64.b64encode((folder / "seen" / f"{n}.png").read_bytes()).decode() for n in range(3)]
    rows = [{"prompt": "Which?", "completion": f"{n}", "image": head + text} for n, text in enumerate(written)]
    read = load(write_jsonl(folder / "data.jsonl", [*rows, rows[0] | {"image": "seen/1.png"}])).train
    assert [one.getpixel((0, 0)) for one in read["image"]] == [picture(n).getpixel((0, 0)) for n in (0, 1, 2, 1)]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "seen/1.png"},
        {"type": "image_url", "image_url": {"url": "seen/1.png"}},
        {"type": "image", "path": "file://{folder}/seen/1.png"},
    ],
)
def test_pictures_in_the_parts_of_messages(folder, part):
    part = json.loads(json.dumps(part).replace("{folder}", str(folder)))
    asked = {"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}
    rows = [{"messages": [asked, *chat("assistant", "x")]}, {"messages": [*chat("user", "a"), *chat("assistant", "b")]}]
    read = load(write_jsonl(folder / "data.jsonl", rows), layout="demonstrations").train
    assert [[one.getpixel((0, 0)) for one in images] for images in read["images"]] == [
        [picture(1).getpixel((0, 0))],
        [],
    ]
    assert read[0]["prompt"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "Which?"}]
    asked["content"][0] = {"type": "image", "image": "https://example.org/1.png"}
    message = refused(write_jsonl(folder / "data.jsonl", rows), layout="demonstrations")
    assert "line 1: the image https://example.org/1.png is an address; write the path of a copy" in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_damaged_pictures_are_faulty_rows(folder, kind):
    held = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(held, kind)
    (folder / "whole").write_bytes(held.getvalue())
    (folder / "torn").write_bytes(held.getvalue()[: len(held.getvalue()) // 2])
    (folder / "none").write_text("<html>")
    rows = [{"prompt": "Which?", "completion": name, "image": {"path": name}} for name in ("whole", "torn", "none")]
    message = refused(write_jsonl(folder / "data.jsonl", rows))
    assert "line 2: the image " in message and "line 3: the image " in message and "line 1" not in message
    assert "cannot be read: it is of no known kind" in message
    values = [{"bytes": (folder / name).read_bytes(), "path": None} for name in ("whole", "torn")]
    table = Dataset.from_dict({"prompt": ["a"] * 2, "completion": ["b"] * 2, "image": values})
    table.cast_column("image", ImageFeature()).save_to_disk(folder / "saved")
    assert "row 2: the image cannot be read" in refused(folder / "saved")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "<image> Which?", "completion": "x"}, "has a place for an image (`<image>`), and the row no image"),
        ({"prompt": "Which?", "completion": "x", "image": "https://example.org/1.png"}, "1.png is no file"),
    ],
)
def test_a_model_of_images_gets_them(folder, recipe, vlm_path, row, message):
    path = recipe("sft", dataset_name=str(write_jsonl(folder / "data.jsonl", [row])), model_name_or_path=vlm_path)
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(path, ["--test_split_size", "null"])


def test_a_model_of_texts_reads_none(folder, recipe, caplog):
    row = {"prompt": "Which?", "completion": "x", "image": "seen/1.png"}
    path = recipe("sft", dataset_name=str(write_jsonl(folder / "data.jsonl", [row] * 2)), test_split_size=None)
    prepare(path, [])
    assert "the model reads no images: its answers are trained without those of `image`" in caplog.text
    write_jsonl(folder / "data.jsonl", [row | {"prompt": "<image> Which?"}] * 2)
    with pytest.raises(UserError, match="the row has images, and the model reads none"):
        prepare(path, [])


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rollouts_of_a_model_of_texts_leave_pictures_out(folder, recipe, stage):
    row = {"prompt": "Which?", "answer": "1", "image": "seen/1.png"}
    data = write_jsonl(folder / "data.jsonl", [row] * 8)
    runner.run(recipe(stage, dataset_name=str(data), test_split_size=None, max_steps=1, eval_samples=0), [])
    assert (folder / stage / "model.safetensors").is_file()
