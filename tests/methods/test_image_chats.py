"""SFT on conversations about an image: every answer has a loss, and what is shown by `check` is what is trained."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hpt_trl.cli import main
from hpt_trl.planning.check import check
from hpt_trl.runs import runner


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


CHAT = [user("Which color?"), assistant("It is shade 1."), user("Bright?"), assistant("Rather dark.")]


SPLITS = {"dataset_test_split": "test", "test_split_size": None}


def image(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (shade * 40, 255 - shade * 40, 128))


@pytest.fixture
def folder(tmp_path):
    """Writes rows with images as a saved dataset, and returns its folder."""

    def write(rows: list[dict]) -> str:
        splits = {"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:4])}
        DatasetDict(splits).save_to_disk(tmp_path / "rows")
        return str(tmp_path / "rows")

    return write


def held_out_loss(recipe, vlm_path, tmp_path, data: str, *words: str) -> float:
    changes = {"dataset_name": data, "model_name_or_path": vlm_path, "max_steps": 1} | SPLITS
    path = recipe("sft", per_device_train_batch_size=2, **changes)
    runner.run(path, ["--overwrite", "true", *words])
    return json.loads((tmp_path / "sft" / "results.json").read_text())["before"]["held_out"]["loss"]


def oracle(vlm_path: str, picture: Image.Image | None, turns: list[int]) -> float:
    """Mean negative log-likelihood of the named turns' tokens, in float64, each after all that stands before it."""
    model = AutoModelForImageTextToText.from_pretrained(vlm_path, dtype=torch.float64).eval()
    processor = AutoProcessor.from_pretrained(vlm_path)
    parts = [{"type": "image"}] if picture else []
    first = {"role": "user", "content": [*parts, {"type": "text", "text": CHAT[0]["content"]}]}
    messages, losses = [first, *CHAT[1:]], []
    for place in turns:
        before = processor.apply_chat_template(messages[:place], add_generation_prompt=True)
        whole = processor.apply_chat_template(messages[: place + 1])
        answer = len(processor.tokenizer(whole[len(before) :])["input_ids"])
        inputs = processor(images=[picture] if picture else None, text=whole, return_tensors="pt")
        if picture:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        with torch.no_grad():
            logps = torch.log_softmax(model(**inputs).logits[0, :-1], -1)
        targets = inputs["input_ids"][0, 1:]
        losses.append(-logps[torch.arange(len(targets)), targets][-answer:])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("column", ["image", "images"])
def test_every_answer_is_trained(recipe, vlm_path, folder, tmp_path, capsys, column):
    picture = image(1)
    data = folder([{"messages": CHAT, column: picture if column == "image" else [picture]} for _ in range(8)])
    every = held_out_loss(recipe, vlm_path, tmp_path, data)
    assert every == pytest.approx(oracle(vlm_path, picture, [1, 3]), rel=1e-5)
    last = held_out_loss(recipe, vlm_path, tmp_path, data, "--train_on_turns", "last")
    assert last == pytest.approx(oracle(vlm_path, picture, [3]), rel=1e-5)
    check(str(tmp_path / "sft.yaml"), ["--overwrite", "true"])
    said = capsys.readouterr().out
    assert "⟦It is shade 1.<|im_end|>" in said and "⟦Rather dark.<|im_end|>" in said and "⟦Bright" not in said
    assert "2 turns on average, every assistant turn trained" in said


def test_rows_of_a_processor_without_images_are_trained_alike(recipe, vlm_path, folder, tmp_path):
    data = folder([{"messages": CHAT}] * 8)
    for turns, places in (("all", [1, 3]), ("last", [3])):
        loss = held_out_loss(recipe, vlm_path, tmp_path, data, "--train_on_turns", turns)
        assert loss == pytest.approx(oracle(vlm_path, None, places), rel=1e-5)


def test_an_image_after_the_first_answer_is_refused(recipe, vlm_path, folder, capsys):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "And this one?"}]
    first = [{"type": "image", "text": None}, {"type": "text", "text": "Which color?"}]
    chat = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    data = folder([{"messages": chat, "images": [image(1), image(2)]}] * 8)
    path = recipe("sft", dataset_name=data, model_name_or_path=vlm_path, **SPLITS)
    assert main(["check", path]) == 2
    assert "an image stands after the first answer" in capsys.readouterr().err
    assert main(["check", path, "--train_on_turns", "last"]) == 0


def test_tools_beside_images_are_refused(recipe, vlm_path, folder, capsys):
    rows = [{"messages": CHAT, "image": image(1), "tools": json.dumps([{"name": "zoom"}])}] * 8
    assert main(["check", recipe("sft", dataset_name=folder(rows), model_name_or_path=vlm_path, **SPLITS)]) == 2
    assert "`tools` beside images" in capsys.readouterr().err


@pytest.mark.parametrize("pictured", [True, False], ids=["images", "text"])
def test_comparisons_about_an_image_are_encoded_before_training(recipe, vlm_path, folder, capsys, pictured):
    answers = {"chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]}
    rows = [
        {"prompt": [user("Which color?")], **answers, **({"image": image(1)} if pictured else {})} for _ in range(8)
    ]
    keys = {"model_name_or_path": vlm_path, "max_steps": 1, **SPLITS}
    assert main(["run", recipe("dpo", dataset_name=folder(rows), **keys)]) == 0
    rows[6]["prompt"] = [user("Which color?"), assistant("It is")]
    path = recipe("dpo", dataset_name=folder(rows), **keys)
    capsys.readouterr()
    for command in ("check", "run"):
        assert main([command, path, "--overwrite", "true"]) == 2
        assert "row 7: `prompt` ends with a turn of the assistant" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "said"), [("reward", "a processor for images"), ("rho1", "rows with images")])
def test_stages_that_read_text_alone_refuse_images(recipe, vlm_path, folder, tmp_path, capsys, stage, said):
    answers = {name: [assistant(f"{name}.")] for name in ("completion", "chosen", "rejected")}
    rows = folder([{"prompt": [user("Which color?")], **answers, "image": image(1)}] * 8)
    keys = {"selection": "full", "dataset_layout": "demonstrations"} if stage == "rho1" else {}
    path = recipe(stage, dataset_name=rows, model_name_or_path=vlm_path, **SPLITS, **keys)
    for command in ("check", "run"):
        assert main([command, path]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    assert not (tmp_path / stage).exists()
