"""Solutions of programming problems: how they are read, checked, held out and drawn."""

import logging
import random
from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hpt_trl.data.loading import Splits, load_splits
from hpt_trl.data.solutions import Sampling, draw, sampling_of
from hpt_trl.errors import UserError
from hpt_trl.methods.critic.config import CriticArguments
from hpt_trl.methods.ref_tuning.config import RefTuningArguments
from hpt_trl.settings.file import RecipeFile, Sources
from tests.helpers.code_problems import problems_with_lists, solutions
from tests.helpers.datasets import write_jsonl

MAPPING = {"instruction": "description", "problem_id": "name"}


def load(path, **keys) -> Splits:
    arguments = RefTuningArguments(dataset_name=str(path), **keys)
    return load_splits(arguments, seed=0, needs_demonstration=False, layout="solutions")


def refused(path, **keys) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **keys)
    return str(caught.value)


# Reading


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"output": None}, "`output` is missing (None); write a text, or drop the row"),
        ({"output": " "}, "`output` is ' '"),
        ({"instruction": ""}, "`instruction` is ''"),
        ({"problem_id": None}, "`problem_id` is None; write the name or number that the problem's solutions share"),
        ({"is_correct": None}, "`is_correct` is None; write true or false"),
    ],
)
def test_faulty_rows_are_named(tmp_path, bad, message):
    rows = solutions(2, 1, 1)
    path = write_jsonl(tmp_path / "code.jsonl", [*rows, rows[0] | bad, rows[0], rows[0] | bad])
    text = refused(path)
    assert f"{path}, line 5: {message}" in text and "1 more of 7 rows" in text


def test_columns_of_another_type_and_missing_ones(tmp_path):
    rows = solutions(2, 1, 1)
    numbers = write_jsonl(tmp_path / "numbers.jsonl", [row | {"is_correct": 1} for row in rows])
    assert "line 1: `is_correct` is 1; write true or false" in refused(numbers)
    words = write_jsonl(tmp_path / "words.jsonl", [row | {"difficulty": "hard"} for row in rows])
    assert "line 1: `difficulty` is 'hard'; write a number" in refused(words)
    other = [{"solution" if key == "output" else key: value for key, value in row.items()} for row in rows]
    assert "has no column `output`" in (said := refused(write_jsonl(tmp_path / "other.jsonl", other)))
    assert "column_mapping: {output: solution}" in said
    splits = load(tmp_path / "other.jsonl", column_mapping={"output": "solution"})
    assert splits.layout == "solutions" and splits.train[0]["output"] == rows[0]["output"]
    least = [{key: row[key] for key in ("instruction", "output", "problem_id", "is_correct")} for row in rows]
    assert len(load(write_jsonl(tmp_path / "least.jsonl", least)).train) == 4


def test_problems_with_lists_become_rows(tmp_path, caplog):
    rows = problems_with_lists()
    rows[3]["solutions"] = rows[3]["incorrect_solutions"] = None
    splits = load(write_jsonl(tmp_path / "code.jsonl", rows), column_mapping=MAPPING)
    assert "has 4 problems; left out are problems without a solution (1)." in caplog.text
    assert len(splits.train) == 9 and "private_tests" not in splits.train.column_names
    first = [row for row in splits.train if row["problem_id"] == "problem-1"]
    assert [(row["is_correct"], row["language"], row["_row"]) for row in first] == [
        (True, "PYTHON3", 1),
        (True, "CPP", 1),
        (False, "PYTHON3", 1),
    ]
    rows[1]["solutions"] = {"language": ["CPP"], "solution": ["a", "b"]}
    broken = write_jsonl(tmp_path / "broken.jsonl", rows)
    assert "line 2: `solutions` is " in (said := refused(broken, column_mapping=MAPPING)) and "of one length" in said


def test_blank_solutions_of_problems_with_lists_are_skipped(tmp_path, caplog):
    rows = problems_with_lists(5)
    rows[0]["solutions"]["solution"][1] = " \n"
    rows[1]["incorrect_solutions"]["solution"][0] = None
    rows[2]["description"], rows[3]["description"] = None, "\n"
    rows[4]["incorrect_solutions"] = None
    rows[4]["solutions"] = {"language": ["CPP"], "solution": [""]}
    path = write_jsonl(tmp_path / "code.jsonl", rows)
    found = [(row["_row"], row["output"]) for row in load(path, column_mapping=MAPPING).train]
    assert found == [(1, "print(int(input()) + 1)"), (1, "print(1)"), (2, "print(int(input()) + 2)"), (2, "// plus 2")]
    said = "solutions without text (3), problems without an `instruction` (2), problems without a solution (1)."
    assert f"{path} has 5 problems; left out are {said}" in caplog.text
    said = refused(path, column_mapping=MAPPING, solution_languages=["JAVA"])
    assert "has no solution in JAVA; it has CPP, PYTHON3" in said
    for row in rows[:2]:
        row["solutions"] = row["incorrect_solutions"] = {"language": ["CPP"], "solution": [None]}
    path = write_jsonl(tmp_path / "blank.jsonl", rows)
    assert "none of its 5 solutions holds any text" in refused(path, column_mapping=MAPPING)


@pytest.mark.parametrize("structs", [False, True], ids=["lists", "structs"])
def test_languages_go_by_name_also_where_they_are_numbers(tmp_path, caplog, structs):
    names = ["UNKNOWN", "CPP", "PYTHON3"]
    inner = {"language": ClassLabel(names=names), "solution": Value("string")}
    kind = List(inner) if structs else {key: List(value) for key, value in inner.items()}
    rows = []
    for row in problems_with_lists():
        row = {key: row[key] for key in ("name", "description", "solutions", "incorrect_solutions")}
        for key in ("solutions", "incorrect_solutions"):
            pairs = zip(map(names.index, row[key]["language"]), row[key]["solution"], strict=True)
            listed = [dict(zip(("language", "solution"), pair, strict=True)) for pair in pairs]
            row[key] = listed if structs else {name: [pair[name] for pair in listed] for name in inner}
        rows.append(row)
    features = {"name": Value("string"), "description": Value("string")}
    features = Features(features | {"solutions": kind, "incorrect_solutions": kind})
    # With another split, as on the Hub, and read from disk.
    data = Dataset.from_list(rows, features=features)
    DatasetDict({"train": data, "valid": data.select([0])}).save_to_disk(tmp_path / "code")
    keys = {"column_mapping": MAPPING, "dataset_test_split": "valid"}
    splits = load(tmp_path / "code", solution_languages=["PYTHON3", "JAVA"], **keys)
    assert set(splits.train["language"]) == {"PYTHON3"} and (len(splits.train), len(splits.test)) == (8, 2)
    assert "has no solution in JAVA" in caplog.text
    said = refused(tmp_path / "code", solution_languages=["PYTHON"], **keys)
    assert "has no solution in PYTHON; it has CPP, PYTHON3. Did you mean `PYTHON3`?" in said


def test_languages_of_rows(tmp_path):
    rows = [row | {"language": "py" if place % 2 else "c"} for place, row in enumerate(solutions())]
    path = write_jsonl(tmp_path / "code.jsonl", rows)
    assert set(load(path, solution_languages=["py"]).train["language"]) == {"py"}
    bare = write_jsonl(tmp_path / "bare.jsonl", solutions())
    assert "has no column `language`" in refused(bare, solution_languages=["py"])


def test_whole_problems_are_held_out(tmp_path, caplog):
    rows = solutions()
    # The same problem under another name.
    rows += [row | {"problem_id": "again"} for row in rows if row["problem_id"] == "problem-5"]
    random.Random(0).shuffle(rows)
    path = write_jsonl(tmp_path / "code.jsonl", rows)
    held = set()
    for size in (3, 0.25, 10):
        splits = load(path, test_split_size=size)
        texts = [set(part["instruction"]) for part in (splits.train, splits.test)]
        assert not texts[0] & texts[1]
        held |= {(size, problem) for problem in splits.test["problem_id"]}
    assert Counter(size for size, _ in held) == {3: 3, 0.25: 3, 10: 10}
    assert "repeat a held-out problem's text" in caplog.text
    random.Random(1).shuffle(rows)
    other = load(write_jsonl(tmp_path / "other.jsonl", rows), test_split_size=3)
    assert set(other.test["problem_id"]) == {problem for size, problem in held if size == 3}
    assert "13 held-out problems, but" in refused(path, test_split_size=13)


# Drawing


@pytest.mark.parametrize("kind", [RefTuningArguments, CriticArguments])
@pytest.mark.parametrize("key", ["n_samples", "n_test_samples"])
def test_shares_are_shares_of_a_number(kind, key):
    keys = {"difficulty_bins": [1, 7, 25], "difficulty_weights": [1, 1]}
    shares = [keys] if kind is CriticArguments else [keys, {"correct_ratio": 0.5}]
    for share in shares:
        arguments = kind(dataset_name="code", **({"n_samples": 8, "n_test_samples": 8} | share | {key: None}))
        sources, held_out = Sources(RecipeFile(Path("code.yaml"), {}, {}, {}), {}), key == "n_test_samples"
        with pytest.raises(UserError, match=f"`{key}`.*gives shares of a number of solutions"):
            sampling_of(arguments, sources, seed=None, held_out=held_out)
        # The other draw has its number.
        assert sampling_of(arguments, sources, seed=None, held_out=not held_out).n_samples == 8


ALL = Sampling(None, 1.0, (), (), None, 0)


def drawn(rows: list[dict], **wanted) -> list[dict]:
    found = draw(Dataset.from_list(rows), "code", Sampling(**(vars(ALL) | wanted)))
    return [rows[place] for place in found.rows]


def test_a_draw_is_the_seeds_and_not_the_order_of_the_rows():
    rows = solutions()
    first = drawn(rows, n_samples=10)
    mixed = random.Random(3).sample(rows, len(rows))
    assert drawn(mixed, n_samples=10) == first != drawn(rows, n_samples=10, seed=1)
    assert all(row in drawn(rows, n_samples=20) for row in first)
    assert len({row["problem_id"] for row in first}) > 3
    assert len(drawn(rows)) == 48 and all(row["is_correct"] for row in drawn(rows))


def test_shares_of_bins_and_of_correct_ones_are_exact():
    rows = solutions(30, 20, 20)
    bins, weights = (1.0, 11.0, 21.0, 25.0), (0.5, 0.0, 0.25)
    found = drawn(rows, n_samples=99, correct_ratio=0.7, bins=bins, weights=weights)
    assert len(found) == 99
    counts = Counter((row["difficulty"] >= 21, row["is_correct"]) for row in found)
    assert counts == {(False, True): 46, (False, False): 20, (True, True): 23, (True, False): 10}
    assert all(row["difficulty"] <= 10 or 21 <= row["difficulty"] <= 25 for row in found)
    # Without weights a bin's share is that of its rows, the same for both edges of the last one.
    counts = Counter(row["difficulty"] for row in drawn(rows, bins=(1.0, 25.0)))
    assert counts == dict.fromkeys(range(1, 26), 20)


def test_a_problem_gives_so_many_correct_and_so_many_incorrect_ones():
    found = drawn(solutions(5, 20, 20), n_samples=30, correct_ratio=0.5, max_pairs_per_problem=3)
    assert set(Counter((row["problem_id"], row["is_correct"]) for row in found).values()) == {3}
    assert len(found) == 30


def test_what_is_not_there_is_said(caplog):
    data = Dataset.from_list(solutions(4, 2, 1))
    found = draw(data, "code", Sampling(100, 0.5, (1.0, 3.0, 4.0), (3.0, 1.0), None, 0))
    assert len(found.rows) == 12
    assert found.shortage == (
        "100 solutions are asked for, 12 are drawn; correct, difficulty 1 to below 3: 4 of 38; incorrect, difficulty 1 "
        "to below 3: 2 of 37; correct, difficulty 3 to 4: 4 of 13; incorrect, difficulty 3 to 4: 2 of 12"
    )
    assert found.summary == (
        "12 of 12 solutions, of 4 of 4 problems (data_seed 0): 8 correct, 4 incorrect; difficulty 1 to below 3: 6; "
        "difficulty 3 to 4: 6"
    )
    rows = [row for row in solutions(3, 1, 1) if not (row["is_correct"] and row["problem_id"] == "problem-2")]
    caplog.set_level(logging.WARNING)
    assert {row["problem_id"] for row in drawn(rows)} == {"problem-1", "problem-3"}
    assert "code: 1 of 3 problems have no correct solution and are skipped." in caplog.text
    with pytest.raises(UserError, match="none of its 3 problems has a correct solution"):
        drawn([row for row in rows if not row["is_correct"]])
    with pytest.raises(UserError, match=r"difficulty_bins: \[5, 9\] holds no correct solution .* difficulty is 1 to 3"):
        drawn(rows, bins=(5.0, 9.0))
    with pytest.raises(UserError, match="difficulty_weights, correct_ratio: nothing is drawn from code: 9 solutions"):
        drawn(rows, n_samples=9, bins=(1.0, 5.0, 9.0), weights=(0.0, 1.0), correct_ratio=0.5)
    with pytest.raises(UserError, match="has no column `difficulty`"):
        drawn([{key: row[key] for key in row if key != "difficulty"} for row in rows], bins=(1.0, 9.0))
