"""Streams (`dataset_streaming`): the trainer gets of them what it gets of the same rows read before the training."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, Features, Json, List
from PIL import Image
from safetensors.torch import load_file

from hpt_trl.data import streaming
from hpt_trl.errors import UserError
from hpt_trl.planning.facts import facts
from hpt_trl.recipes.early import check_early
from hpt_trl.runs import runner
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.preparation import prepare
from tests.helpers.pretraining import MODEL
from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import KEYS, results, weights
from tests.helpers.templates import WITH_TOOLS


def talk(i: int) -> dict[str, Any]:
    turns = [("human", f"What is {i} + 1?"), ("gpt", f"It is {i + 1}."), ("human", "Sure?"), ("gpt", f"Yes, {i + 1}.")]
    return {"conversations": [{"from": who, "value": said} for who, said in turns], "id": i}


def task(i: int) -> dict[str, Any]:
    # A column that the first rows lack.
    return {"instruction": f"Add 1 to {i}.", "output": f"{i + 1}"} | ({"input": f"Number {i}"} if i > 20 else {})


def story(i: int) -> dict[str, Any]:
    return {"text": f"Once there were {i} birds. " * (i % 5 + 1)}


def pair(i: int) -> dict[str, Any]:
    asked, right, wrong = [{"role": "user", "content": f"What is {i} + 1?"}], f"It is {i + 1}.", f"Is it {i}?"
    said = {"chosen": [*asked, answer(right)], "rejected": [*asked, answer(wrong)]}
    return said | {"margin": float(i % 3), "note": i} | ({"weight": 1.0} if i > 20 else {})


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def called(i: int) -> dict[str, Any]:
    """Two answers about tools, whose schemas differ from row to row."""
    schema = {"type": "object", "properties": {f"n{i % 3}": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": schema}}]
    row = {"prompt": [{"role": "user", "content": f"Add 1 to {i}."}], "tools": tools}
    return row | {"chosen": [answer(f"{i + 1}")], "rejected": [answer(f"{i}")]}


ROWS = {"talks": talk, "tasks": task, "stories": story, "pairs": pair, "called": called}
PRETRAIN = {"stage": "pretrain", "model_config": MODEL, "model_name_or_path": None, "max_length": 64}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(streaming, "HEAD", 6)
    monkeypatch.setattr(streaming, "PIECE", 7)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe and returns its path."""

    def of(data: Any, name: str = "a", **changes: Any) -> str:
        values = {**KEYS, "stage": "sft", "dataset_name": data, "model_name_or_path": tiny_model_path}
        values |= {
            "output_dir": str(tmp_path / name),
            "train_sampling_strategy": "sequential",
            "max_steps": 8,
        } | changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return of


def batches(path: str, count: int) -> list[tuple[Any, ...]]:
    """Ids and labels of the first rows that the trainer gets; of comparisons each answer is one."""
    trainer: Any = build_trainer(prepare(path, []), [])
    rows = (
        tuple(row[there.bool()].tolist() for row in values) + tuple(margin.tolist() for margin in margins)
        for batch in trainer.get_train_dataloader()
        for *values, there, margins in zip(
            batch["input_ids"],
            batch["labels" if "labels" in batch else "completion_mask" if "completion_mask" in batch else "input_ids"],
            batch["attention_mask"],
            # Of chosen and rejected answers one.
            [*batch["margin"].reshape(-1, 1)] * 2 if "margin" in batch else [()] * len(batch["input_ids"]),
            strict=True,
        )
    )
    return list(islice(rows, count))


@pytest.mark.parametrize(
    ("kind", "ending", "changes"),
    [
        ("talks", ".jsonl", {}),
        ("talks", ".parquet", {}),
        ("tasks", ".jsonl", {"prompt_template": "Do: {prompt}"}),
        ("tasks", ".csv", {"system_prompt": "Be brief."}),
        ("tasks", ".jsonl", {"packing": True, "packing_strategy": "wrapped", "max_length": 128}),
        ("stories", ".jsonl", {}),
        ("pairs", ".jsonl", {"stage": "dpo", "truncation_mode": "keep_start", "max_length": 64}),
        ("pairs", ".parquet", {"stage": "dpo", "system_prompt": "Be brief."}),
        ("called", ".jsonl", {"stage": "dpo"}),
        ("pairs", ".jsonl", {"stage": "reward"}),
        ("called", ".jsonl", {"stage": "reward", "prompt_template": "Do: {prompt}"}),
        ("stories", ".txt", PRETRAIN | {"tokenizer_vocab_size": 265, "tokenizer_training_rows": 40}),
    ],
)
def test_a_stream_trains_what_rows_do_that_are_read_before(recipe, tmp_path, monkeypatch, kind, ending, changes):
    rows = [ROWS[kind](i) for i in range(40)]
    # Two files: a row is numbered through them.
    files = [write(tmp_path / f"{name}{ending}", some) for name, some in (("1", rows[:17]), ("2", rows[17:]))]
    if ending == ".txt":
        for file, some in zip(files, (rows[:17], rows[17:]), strict=True):
            file.write_text("".join(row["text"] + "\n" for row in some))
    names, packed = [str(file) for file in files], ending == ".txt" or "packing" in changes
    read = batches(recipe(names, **changes), 80)
    # The last block of the data that are read before is not full.
    read = read[:-1] if packed else read
    # Two answers each.
    whole = 80 if "chosen" in rows[0] else 40
    if packed:
        monkeypatch.setattr(streaming, "PIECE", 200)
    assert batches(recipe(names, dataset_streaming=True, **changes), len(read)) == read
    assert len(read) == whole or (packed and len(read) > 5)


def test_a_stream_begins_anew_and_is_shuffled_by_the_seed(recipe, tmp_path):
    data = str(write(tmp_path / "a.jsonl", [talk(i) for i in range(10)]))
    order = batches(recipe(data, dataset_streaming=True), 20)
    assert order[:10] == order[10:] and len({tuple(ids) for ids, _ in order}) == 10
    drawn = {"dataset_streaming": True, "train_sampling_strategy": "random", "shuffle_buffer": 8}
    first, again, other = (batches(recipe(data, seed=seed, **drawn), 30) for seed in (1, 1, 2))
    assert first == again and first != other and first[:10] != order[:10]
    assert {tuple(ids) for ids, _ in first} == {tuple(ids) for ids, _ in order}


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_a_resumed_stream_goes_on_where_it_was(recipe, tmp_path, stage):
    data = str(write(tmp_path / "a.jsonl", [(talk if stage == "sft" else pair)(i) for i in range(14)]))
    # Also beyond the end of the data, after which it begins anew.
    keys = {"dataset_streaming": True, "train_sampling_strategy": "random", "shuffle_buffer": 5, "max_steps": 6}
    keys |= {"lr_scheduler_type": "constant", "stage": stage}
    runner.run(recipe(data, "straight", **keys), [])
    path = recipe(data, "stopped", **keys, save_strategy="steps", save_steps=4)
    runner.run(path, ["--max_steps", "4"])
    runner.run(path, ["--resume_from_checkpoint", "true"])
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    assert results(tmp_path / "straight")["rows"] == {"training": None, "held_out": 0}


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pretrain", "dpo", "reward"))]
)
def test_two_processes_train_what_one_does(recipe, tmp_path, stage):
    rows = {"sft": talk, "pretrain": story}.get(stage, pair)
    data = str(write(tmp_path / "a.jsonl", [rows(i) for i in range(14)]))
    keys = {"dataset_streaming": True, "train_sampling_strategy": "random", "shuffle_buffer": 5, "max_steps": 6}
    keys |= {"stage": stage, "global_batch_size": 4, "per_device_train_batch_size": 2, "use_cpu": None}
    keys |= PRETRAIN | {"tokenizer_vocab_size": 265} if stage == "pretrain" else {}
    path = recipe(data, **keys)
    for processes in (1, 2):
        words = ["run", path, "--output_dir", str(tmp_path / str(processes)), "--accelerate", "cpu"]
        done = hpt_trl(*words, "--num_processes", str(processes))
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    apart = max((two[name] - weight).abs().max().item() for name, weight in one.items())
    runner.run(path, ["--seed", "2", "--use_cpu", "true", "--output_dir", str(tmp_path / "others")])
    others = load_file(tmp_path / "others" / "model.safetensors")
    # Other rows, or the same in another order, make far more of a difference.
    assert apart < 2e-5 < 1e-3 < max((others[name] - weight).abs().max().item() for name, weight in one.items())


def test_faulty_rows_of_a_stream(recipe, tmp_path, caplog):
    rows = [json.dumps(talk(i)) for i in range(30)]
    rows[14], rows[15] = json.dumps({"conversations": []}), '{"conversations": '
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(rows) + "\n")
    path = recipe(str(data), dataset_streaming=True, max_steps=2)
    # The training ends before it.
    runner.run(path, ["--output_dir", str(tmp_path / "before")])
    with pytest.raises(UserError, match=rf"{data}, line 15: `conversations` "):
        runner.run(path, ["--max_steps", "5"])
    caplog.clear()
    runner.run(path, ["--max_steps", "5", "--on_bad_row", "drop", "--output_dir", str(tmp_path / "dropped")])
    assert f"{data}, line 16: not valid JSON" in caplog.text and "2 of the " in caplog.text
    assert results(tmp_path / "dropped")["faulty_rows"] == {"training": 2, "held_out": 0}
    good = recipe(str(write(tmp_path / "b.jsonl", [talk(i) for i in range(30) if i not in (14, 15)])), "good")
    dropped = batches(recipe(str(data), "again", dataset_streaming=True, on_bad_row="drop"), 28)
    assert dropped == batches(good, 28)


def test_faulty_comparisons_of_a_stream(recipe, tmp_path):
    rows = [called(i) for i in range(30)]
    rows[14]["chosen"] += [{"role": "user", "content": "Sure?"}, answer("Yes.")]
    rows[15]["prompt"][0]["content"] = "Add " * 100
    data = str(write(tmp_path / "a.jsonl", rows))
    keys = {"stage": "dpo", "dataset_streaming": True, "max_length": 90, "truncation_mode": "keep_start"}
    path = recipe(data, **keys)
    with pytest.raises(UserError, match=rf"{data}, line 15: `chosen` holds a message of the user"):
        runner.run(path, [])
    del rows[14]
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=rf"{data}, line 15: the prompt has \d+ tokens, which leaves no room"):
        runner.run(path, [])
    dropped = ["--on_bad_row", "drop", "--test_split_size", "3"]
    runner.run(path, [*dropped, "--overwrite", "true"])
    assert results(tmp_path / "a")["faulty_rows"] == {"training": 1, "held_out": 0}
    reward = recipe(data, "reward", **keys | {"stage": "reward", "truncation_mode": None})
    runner.run(reward, dropped)
    assert len((tmp_path / "reward" / "scores.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_comparisons_give_a_template_what_is_stored_as_text_or_not_there(recipe, tmp_path, tiny_model_path, stage):
    rows = [called(i) for i in range(20)]
    model = shutil.copytree(tiny_model_path, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ shout is defined }}" + WITH_TOOLS)
    for row in rows[::3]:
        row["tools"] = None
    for row in rows[::2]:
        row["chat_template_kwargs"] = {"shout": True}
    keys = {"stage": stage, "model_name_or_path": str(model), "max_length": 2000}
    as_lists = batches(recipe(str(write(tmp_path / "lists.jsonl", rows)), **keys), 40)
    stored = [
        row | {"tools": "" if row["tools"] is None else (json.dumps, repr)[place % 2](row["tools"])}
        for place, row in enumerate(rows)
    ]
    data = str(write(tmp_path / "texts.jsonl", stored))
    assert len({tuple(ids) for ids, *_ in as_lists}) == 40
    assert batches(recipe(data, "read", **keys), 40) == as_lists
    assert batches(recipe(data, "streamed", dataset_streaming=True, **keys), 40) == as_lists
    stored[14]["tools"] = "clock"
    data = str(write(tmp_path / "wrong.jsonl", stored))
    path = recipe(data, "wrong", dataset_streaming=True, **keys)
    with pytest.raises(UserError, match=rf"{data}, line 15: `tools` is 'clock'; write a list of schemas"):
        runner.run(path, [])


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("dpo", {"prompt": [{"role": "user", "content": "Hi"}, answer("Well")]}, "`prompt` ends with a turn of the"),
        ("reward", {"prompt": [{"role": "user", "content": "Hi"}, answer("Well")]}, "`prompt` ends with a turn of the"),
        ("dpo", {"chosen": [answer("Well. " * 300)]}, "prompt and `chosen` have .* more than the model takes"),
        ("reward", {"margin": 1.0}, "`margin` is there, which the first rows of the stream do not have"),
    ],
)
def test_a_late_comparison_that_would_be_trained_otherwise(recipe, tmp_path, stage, changes, said):
    rows = [called(i) for i in range(22)]
    # The last row of a piece of its own.
    rows[21] |= changes
    data = str(write(tmp_path / "a.jsonl", rows))
    keys = {"stage": stage, "dataset_streaming": True, "on_bad_row": "drop"}
    # More than the model takes, which then is the limit.
    keys |= {"max_length": 4096} if stage == "dpo" else {}
    with pytest.raises(UserError, match=rf"{data}, line 22: {said}"):
        runner.run(recipe(data, **keys | {"on_bad_row": "error"}), [])
    # The row is left out, and the stream begins anew.
    order = batches(recipe(data, "dropped", **keys), 48)
    assert order == batches(recipe(str(write(tmp_path / "b.jsonl", rows[:21])), "good", **keys), 48)


def test_a_reward_model_is_not_trained_on_longer_rows(recipe, tmp_path):
    rows = [called(i) for i in range(13)]
    rows[8]["chosen"] = [answer("Well. " * 40)]
    keys = {"stage": "reward", "max_length": 200}
    read = batches(recipe(str(write(tmp_path / "a.jsonl", rows)), **keys), 26)
    # Two answers of each of the others.
    assert len(read) == 24 and batches(recipe(str(tmp_path / "a.jsonl"), dataset_streaming=True, **keys), 24) == read


def test_held_out_rows_among_lines_that_are_no_json(recipe, tmp_path):
    path = write(tmp_path / "data.jsonl", [task(i) for i in range(9)])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{\n", *lines[2:]]))
    path = recipe(str(path), dataset_streaming=True, test_split_size=4, on_bad_row="drop")
    splits = prepare(path, []).splits
    assert len(splits.test) == 4 and splits.test_dropped == 1 and splits.train["_row"][:] == [6, 7, 8, 9, 10]
    with pytest.raises(UserError, match=r": 10, but .* has 9 rows"):
        prepare(path, ["--test_split_size", "10"])


def test_held_out_rows_and_slices_of_a_stream(recipe, tmp_path):
    data = str(write(tmp_path / "a.jsonl", [talk(i) for i in range(20)]))
    splits = prepare(recipe(data, dataset_streaming=True, test_split_size=4), []).splits
    assert splits.test is not None and splits.test["_row"][:] == [1, 2, 3, 4] and splits.train["_row"][0] == 5
    # Rows that are held out as well are not trained, among the first ones and after them.
    twice = str(write(tmp_path / "b.jsonl", [talk(i) for i in (0, 1, 0, *range(2, 12), 1, 12)]))
    order = batches(recipe(twice, "twice", dataset_streaming=True, test_split_size=2), 12)
    assert order == batches(recipe(data, dataset_train_split="train[2:13]"), 11) + order[:1]
    slices = {"dataset_train_split": "train[3:9]", "dataset_test_split": "train[9:]"}
    prepared = prepare(recipe(data, dataset_streaming=True, **slices), [])
    assert prepared.splits.test["_row"][:] == list(range(10, 21))
    assert "streamed, of which the first 6 rows were looked at" in facts(prepared)
    read = batches(recipe(data, **slices), 6)
    assert batches(recipe(data, dataset_streaming=True, **slices), 6) == read
    for wrong, said in [
        ({"dataset_train_split": "train[:50%]"}, "cannot be streamed"),
        ({"dataset_train_split": "train[:5]", "dataset_test_split": "train[4:]"}, "shares rows"),
        ({"dataset_train_split": "trian"}, "has no split `trian`"),
    ]:
        with pytest.raises(UserError, match=said):
            prepare(recipe(data, dataset_streaming=True, **wrong), [])


def test_a_folder_that_datasets_reads_is_streamed_by_it(recipe, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    write(folder / "rows.jsonl", [talk(i) for i in range(20)])
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: easy\n  data_files: rows.jsonl\n---\n")
    named = {"dataset_config": "easy"}
    read = batches(recipe(str(folder), **named), 20)
    assert batches(recipe(str(folder), dataset_streaming=True, **named), 20) == read


def test_comparisons_of_a_model_of_texts_leave_pictures_out(recipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "dot.png")
    rows = [called(i) for i in range(12)]
    expected = batches(recipe(str(write(tmp_path / "a.jsonl", rows)), stage="dpo"), 24)
    data = str(write(tmp_path / "b.jsonl", [row | {"images": ["dot.png"]} for row in rows]))
    for streams in (False, True):
        assert batches(recipe(data, stage="dpo", dataset_streaming=streams), 24) == expected


def test_objects_that_datasets_stores_as_json_are_objects_in_a_stream(recipe, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    rows = [called(i) for i in range(20)]
    objects = Features({name: List(Json()) for name in rows[0]})
    Dataset.from_list(rows, features=objects).to_parquet(folder / "rows.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: easy\n  data_files: rows.parquet\n---\n")
    expected = batches(recipe(str(write(tmp_path / "a.jsonl", rows)), stage="dpo"), 40)
    for name, keys in [(str(folder), {"dataset_config": "easy"}), (str(folder / "rows.parquet"), {})]:
        assert batches(recipe(name, stage="dpo", dataset_streaming=True, **keys), 40) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stage": "rho1"},
            "the stage `rho1` needs all its rows before the training; those that stream are pretrain, sft, dpo, reward",
        ),
        ({"max_steps": None}, "max_steps"),
        ({"stage": "dpo", "precompute_ref_log_probs": True}, "cannot be computed beforehand"),
        ({"train_sampling_strategy": "group_by_length"}, "sorts all rows"),
        ({"dataloader_num_workers": 2}, "read by the process that trains"),
        ({"test_split_size": 0.1}, "write a count"),
        ({"dataset_name": None, "datasets": [{"path": "arithmetic"}]}, "does not go with `datasets`"),
        ({"dataset_name": "arithmetic"}, "is made in memory"),
    ],
)
def test_what_does_not_go_with_a_stream_is_told_early(recipe, tmp_path, changes, said):
    data = str(write(tmp_path / "a.jsonl", [talk(1)]))
    with pytest.raises(UserError) as caught:
        check_early(recipe(data, dataset_streaming=True, **changes), [])
    assert said in str(caught.value)


def test_few_rows_are_read_once(recipe, tmp_path, monkeypatch):
    path = recipe(str(write(tmp_path / "data.jsonl", [task(i) for i in range(5)])), dataset_streaming=True)
    prepared = prepare(path, [])
    trainer: Any = build_trainer(prepared, [])
    passes: list[int] = []
    opened = prepared.splits.stream.opened
    monkeypatch.setattr(prepared.splits.stream, "opened", lambda: passes.append(1) or opened())
    rows = [row["input_ids"] for row in islice(iter(trainer.train_dataset), 13)]
    assert rows[:5] == rows[5:10] and rows[:3] == rows[10:] and len(passes) == 1
