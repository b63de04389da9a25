"""What is held out is no training row's like: by prompt and picture, or by the answers where all share one prompt."""

import pytest
from datasets import Dataset
from PIL import Image

from tests.helpers.datasets import chat, load, refused, write_jsonl

QUESTION = "How many objects are there?"


@pytest.mark.parametrize("column", ["image", "images"])
def test_one_question_about_several_pictures_is_several_rows(tmp_path, column):
    def row(number: int) -> dict:
        # Each picture comes twice.
        picture = Image.new("RGB", (8, 8), (number // 2, 0, 0))
        answer = {"completion": chat("assistant", str(number // 2))}
        return {"prompt": chat(content=QUESTION), column: picture if column == "image" else [picture]} | answer

    Dataset.from_list([row(number) for number in range(20)]).save_to_disk(tmp_path / "rows")
    splits = load(tmp_path / "rows", test_split_size=4)
    assert len(splits.test) == 4
    held_out, trained = ({row["completion"][0]["content"] for row in part} for part in (splits.test, splits.train))
    assert not held_out & trained and len(splits.train) == 20 - 2 * len(held_out)


def test_one_prompt_for_all_rows_is_told_apart_by_the_answers(tmp_path):
    rows = [{"prompt": "Write a poem.", "completion": f"Poem {number // 2}"} for number in range(20)]
    splits = load(write_jsonl(tmp_path / "rows.jsonl", rows), test_split_size=4)
    held_out, trained = (set(part["completion"]) for part in (splits.test, splits.train))
    assert len(splits.test) == 4 and not held_out & trained and len(splits.train) >= 12


def test_rows_that_are_all_the_same_cannot_be_held_out(tmp_path):
    rows = [{"prompt": "Write a poem.", "completion": "A poem"}] * 20
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "test_split_size: every prompt of" in refused(path, test_split_size=4)


def test_white_space_makes_no_other_row(tmp_path):
    rows = [{"prompt": f"What is {number // 2}?" + " " * (number % 2), "completion": "x"} for number in range(20)]
    splits = load(write_jsonl(tmp_path / "rows.jsonl", rows), test_split_size=4)
    held_out, trained = ({prompt.strip() for prompt in part["prompt"]} for part in (splits.test, splits.train))
    assert not held_out & trained


@pytest.mark.parametrize("greeting", [[], chat("assistant", "How can I help?")], ids=["asked", "greeted"])
def test_conversations_are_compared_by_their_first_question(tmp_path, greeting):
    """All of their turns are trained, so that a held-out one with the same question is no new row."""
    rows = [
        {
            "messages": [
                *greeting,
                *chat(content=f"{i // 2}?"),
                *chat("assistant", f"{i}"),
                *chat(),
                *chat("assistant", f"{i}!"),
            ]
        }
        for i in range(20)
    ]
    splits = load(write_jsonl(tmp_path / "rows.jsonl", rows), test_split_size=4, layout="demonstrations")
    held_out, trained = (
        {row["prompt"][len(greeting)]["content"] for row in part} for part in (splits.test, splits.train)
    )
    assert not held_out & trained and len(splits.test) == 4
