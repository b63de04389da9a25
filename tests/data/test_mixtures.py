"""Mixtures: each entry is read by its own keys and form, and each row keeps its own name."""

import json

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from hpt_trl.data.reading.places import where
from hpt_trl.errors import UserError
from hpt_trl.planning.facts import facts
from hpt_trl.recipes.early import check_early
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import prepare_recipe
from tests.helpers.datasets import chat, load, write_jsonl


def entries(*items, **keys):
    return load("", **{"dataset_name": None, "datasets": list(items), **keys})


def refused(*items, **keys):
    with pytest.raises(UserError) as caught:
        entries(*items, **keys)
    return str(caught.value)


@pytest.fixture
def files(tmp_path):
    """ShareGPT conversations, Alpaca's columns, a table of other names, and rows of the trainer's own."""
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    write_jsonl(tmp_path / "talks.jsonl", [{"conversations": talk} for _ in range(3)])
    write_jsonl(
        tmp_path / "alpaca.jsonl", [{"instruction": f"Say {n}.", "input": "", "output": f"{n}."} for n in range(5)]
    )
    (tmp_path / "table.csv").write_text("q,a,split\n1?,one,x\n2?,two,y\n")
    Dataset.from_list([{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(40)]).to_parquet(
        tmp_path / "own.parquet"
    )
    return {path.name.split(".")[0]: str(path) for path in tmp_path.iterdir()}


def test_entries_of_several_forms_become_rows_of_one(files):
    splits = entries(
        {"path": files["talks"]},
        {"path": files["alpaca"], "split": "train[1:3]", "test_split": "train[3:]"},
        {"path": files["table"], "column_mapping": {"prompt": "q", "completion": "a"}},
        {"path": "arithmetic", "options": {"size": 4, "test_size": 2}},
        layout="demonstrations",
    )
    user, said = [{"role": "user", "content": "Say 1."}], [{"role": "assistant", "content": "1."}]
    assert len(splits.train) == 3 + 2 + 2 + 4 and len(splits.test) == 2 + 2
    assert (splits.train[3]["prompt"], splits.train[3]["completion"]) == (user, said)
    assert splits.train[0]["prompt"] == chat() and splits.train[5]["completion"] == chat("assistant", "one")
    places = [where(splits.source, row).rpartition("/")[2] for row in splits.train["_row"]]
    assert places[:7] == [
        *(f"talks.jsonl, line {n}" for n in (1, 2, 3)),
        *(f"alpaca.jsonl, line {n}" for n in (2, 3)),
        *(f"table.csv, line {n}" for n in (2, 3)),
    ]
    assert places[7] == "arithmetic (train), row 1"
    assert where(splits.test_source, splits.test["_row"][0]).endswith("alpaca.jsonl, line 4")
    names = [files["talks"], files["alpaca"], files["table"], "arithmetic"]
    assert splits.counted == (
        f"{names[0]} and 3 more, 11 rows ({names[0]} 3, {names[1]} 2, {names[2]} 2, arithmetic 4)"
    )


def test_rows_keep_their_place_where_pieces_before_them_give_none(tmp_path):
    paths = [
        str(write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}", "completion": "x"} for n in range(6)]))
        for name in "abc"
    ]
    splits = entries({"path": paths[:2], "fraction": 1}, {"path": paths[2], "fraction": 2})
    places = [where(splits.source, row).rpartition("/")[2] for row in splits.train["_row"]]
    assert places == [f"{name}.jsonl, line {n}" for name, count in (("a", 3), ("c", 6)) for n in range(1, count + 1)]
    assert "9 rows" in splits.counted and splits.counted.endswith(f" 3, {paths[2]} 6)")
    sliced = entries({"path": paths[:2], "split": "train[:2]"}, {"path": paths[2]}, {"path": paths[0]})
    places = [where(sliced.source, row).rpartition("/")[2] for row in sliced.train["_row"]]
    assert places[1:3] == ["a.jsonl, line 2", "c.jsonl, line 1"] and places[-1] == "a.jsonl, line 6"


def test_entries_of_one_path_are_counted_apart(files):
    splits = entries({"path": files["own"], "split": "train[:3]"}, {"path": files["own"], "split": "train[10:15]"})
    assert splits.counted.endswith(f" ({files['own']} (entry 1) 3, {files['own']} (entry 2) 5)")


def test_a_row_that_one_entry_holds_out_and_another_trains_on(files, tmp_path):
    own = {"path": files["own"], "split": "train[:30]", "test_split": "train[30:]"}
    said = refused(own, {"path": files["own"], "split": "train[20:32]"})
    assert "datasets: entry 1: 2 of its held-out rows are trained on by entry 2 (first " in said
    assert "own.parquet (train[20:32]), row 31)" in said
    assert len(entries(own, {"path": files["own"], "split": "train[20:30]"}, {"path": files["alpaca"]}).test) == 10
    drawn = {"path": "arithmetic", "options": {"size": 4, "test_size": 2}}
    assert "entry 1: 1 of its" in refused(drawn, {**drawn, "split": "test[:1]", "test_split": "train[:1]"})
    assert len(entries(drawn, {**drawn, "options": {"size": 4, "test_size": 2, "seed": 1}, "split": "test"}).test) == 2


def test_a_margin_of_some_comparisons_alone(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", [pair | more])) for n, more in enumerate([{"margin": 0.5}, {}])]
    said = refused({"path": paths[0]}, {"path": paths[1]}, layout="comparisons")
    assert "datasets: entry 2: " in said and "has no column `margin`, as entry 1 has" in said
    splits = entries({"path": paths[0], "columns": list(pair)}, {"path": paths[1]}, layout="comparisons")
    assert len(splits.train) == 2


def test_texts_alone_stay_texts(files):
    splits = entries({"path": files["own"]}, {"path": files["alpaca"]}, layout="demonstrations")
    assert {type(prompt) for prompt in splits.train["prompt"]} == {str}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (3, 1), (0.1, 0.4), (1, 0.05)])
def test_shares_are_those_of_trl(files, tmp_path, fractions):
    other = tmp_path / "other.parquet"
    Dataset.from_list([{"prompt": f"q{n}", "completion": f"d{n}"} for n in range(25)]).to_parquet(other)
    paths = [files["own"], str(other)]
    theirs = get_dataset(
        DatasetMixtureConfig(
            datasets=[
                DatasetConfig(path="parquet", data_files=path, fraction=share)
                for path, share in zip(paths, fractions, strict=True)
            ]
        )
    )["train"]
    ours = entries(*({"path": path, "fraction": share} for path, share in zip(paths, fractions, strict=True))).train
    assert ours["prompt"][:] == theirs["prompt"][:] and ours["completion"][:] == theirs["completion"][:]


def test_rows_held_out_of_a_mixture(files):
    splits = entries({"path": files["own"]}, {"path": files["alpaca"]}, layout="demonstrations", test_split_size=9)
    assert len(splits.test) == 9 and not set(splits.test["prompt"]) & set(splits.train["prompt"])
    assert {where(splits.test_source, row).rpartition("/")[2].split(",")[0] for row in splits.test["_row"]} <= {
        "own.parquet",
        "alpaca.jsonl",
    }


def test_columns_and_objects(files, tmp_path):
    tools = [{"name": "add", "parameters": {"x": 1}}]
    write_jsonl(tmp_path / "tools.jsonl", [{"prompt": "p", "completion": "c", "tools": tools, "note": 3}])
    more = [{"name": "find", "parameters": {"q": "a", "n": None}}]
    write_jsonl(tmp_path / "more.jsonl", [{"prompt": "p", "completion": "c", "tools": more, "note": "three"}])
    paths = [str(tmp_path / "tools.jsonl"), str(tmp_path / "more.jsonl")]
    assert "the column `note` is int64 in" in refused({"path": paths[0]}, {"path": paths[1]})
    columns = ["prompt", "completion", "tools"]
    train = entries({"path": paths[0], "columns": columns}, {"path": paths[1], "columns": columns}).train
    assert train["tools"][:] == [tools, more] and "note" not in train.column_names


def test_what_is_wrong_is_said_of_its_entry(files, tmp_path):
    own = {"path": files["own"]}
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "p"}])
    for items, keys, message in [
        ([own, {"path": str(tmp_path / "none.jsonl")}], {}, "datasets: entry 2: path: there is no file"),
        ([own, "rows.jsonl"], {}, "datasets: entry 2: 'rows.jsonl' is no mapping"),
        ([own, {"pat": "x"}], {}, "there is no field `pat`; it takes path, name, split"),
        ([{"dataset_name": "x"}], {}, "Write `path`."),
        (
            [own, {"path": "parquet", "data_files": "x"}],
            {},
            "`data_files`: write the file, pattern or folder",
        ),
        ([own, {"name": "x"}], {}, "datasets: entry 2: there is no `path`"),
        ([own, {**own, "fraction": 0.5}], {}, "datasets: entry 1: there is no `fraction`"),
        ([{**own, "fraction": -1}], {}, "`fraction: -1`; allowed: a number above 0"),
        ([{**own, "fraction": "half"}], {}, "`fraction: 'half'`; allowed: a number"),
        ([own, {**own, "split": "trian"}], {}, "datasets: entry 2: split: "),
        ([own, {**own, "test_split": "validation"}], {}, "datasets: entry 2: test_split: "),
        ([{**own, "columns": ["nonesuch"]}], {}, "datasets: entry 1: `columns`: there is no `nonesuch`; it has prompt"),
        ([{**own, "options": {"size": 3}}], {}, "datasets: entry 1: options: only generated"),
        ([{**own, "fraction": 1}, {"path": files["alpaca"], "fraction": 0.001}], {}, "takes no row of"),
        ([{**own, "fraction": 1e300}, {**own, "fraction": 1e-300}], {}, "`fraction: 1e+300`; allowed: a number"),
        ([{**own, "fraction": 1}, {**own, "fraction": 1e-300}], {}, "entry 2: `fraction: 1e-300`; allowed: a number"),
        ([own, {**own, "dataset_layout": "nonsense"}], {}, "entry 2: `dataset_layout: nonsense` is not allowed"),
        ([{**own, "dataset_layout": "documents"}], {"layout": "comparisons"}, "entry 1: `dataset_layout: documents`"),
        ([own], {"dataset_name": "arithmetic"}, "`dataset_name` stands beside it; in a mixture write `path` in each"),
        ([own], {"column_mapping": {"prompt": "q"}}, "`column_mapping` stands beside it"),
        ([own], {"dataset_train_split": "train[:3]"}, "`dataset_train_split` stands beside it"),
        ([{**own, "test_split": "train[:3]"}], {"test_split_size": 3}, "both name held-out rows"),
        ([own, {"path": str(broken)}], {}, f"{broken}, line 2: the demonstration (`completion`) is missing"),
        ([], {}, "datasets: an empty list"),
    ]:
        assert message in refused(*items, **keys), message


def test_layouts_that_are_trained_otherwise_do_not_mix(files, tmp_path):
    (tmp_path / "story.txt").write_text("Once upon a time\n")
    said = refused(
        {"path": files["own"]}, {"path": str(tmp_path / "story.txt")}, layout=("demonstrations", "documents")
    )
    assert "own.parquet has demonstrations and" in said and "story.txt documents" in said


def test_a_recipe_with_a_mixture(files, tmp_path, tiny_model_path):
    mixture = [{"path": files["talks"], "fraction": 1}, {"path": files["alpaca"], "fraction": 1}]
    recipe = {"stage": "sft", "model_name_or_path": str(tiny_model_path), "output_dir": str(tmp_path / "out")}
    path = tmp_path / "mixed.yaml"
    path.write_text(json.dumps({**recipe, "datasets": mixture, "max_steps": 1, "report_to": "none"}))
    check_early(str(path), [])
    said = facts(prepare_recipe(read_recipe(path, [])))
    assert f"6 rows ({files['talks']} 3, {files['alpaca']} 3)" in said
    for wrong, message in [
        (
            {"datasets": [{"path": "nothing.jsonl"}]},
            "line 1, `datasets`: entry 1: path: there is no file nothing",
        ),
        ({"datasets": mixture, "dataset_name": "arithmetic"}, "`dataset_name` stands beside it"),
        ({}, "`dataset_name`: a recipe needs it"),
    ]:
        path.write_text(json.dumps({**recipe, **wrong, "max_steps": 1}))
        with pytest.raises(UserError) as caught:
            check_early(str(path), [])
        assert message in str(caught.value)


def test_a_mixture_of_solutions_is_known_by_its_entries(tmp_path, tiny_model_path):
    rows = [{"instruction": "i", "output": f"o{n}", "problem_id": n % 5, "is_correct": n < 5} for n in range(10)]
    entry = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "dataset_layout": "solutions"}
    recipe = {"stage": "mtp", "model_name_or_path": str(tiny_model_path), "output_dir": str(tmp_path / "out")}
    keys = {"datasets": [entry, {**entry, "dataset_layout": None}], "n_samples": 4, "report_to": "none"}
    path = tmp_path / "mtp.yaml"
    path.write_text(json.dumps({**recipe, **keys, "max_steps": 1, "n_future_tokens": 2}))
    prepared = prepare_recipe(read_recipe(path, []))
    assert prepared.splits.layout == "demonstrations" and len(prepared.splits.train) == 4
