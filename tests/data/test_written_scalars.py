"""Numbers and truth values of a file that holds texts alone."""

from decimal import Decimal

from datasets import Dataset

from hpt_trl.data.loading import load_splits
from hpt_trl.methods.ref_tuning.config import RefTuningArguments
from tests.helpers.datasets import load, refused

MARGINS = {"layout": "comparisons", "column_mapping": {"margin": "far"}}


def _pairs(folder, *margins):
    path = folder / "pairs.csv"
    path.write_text("prompt,chosen,rejected,far,answer\n" + "".join(f"p,b{one},c,{one},007\n" for one in margins))
    return path


def test_margins_of_a_table_are_numbers(tmp_path):
    train = load(_pairs(tmp_path, "0.5", "2"), **MARGINS).train
    assert train["margin"][:] == [0.5, 2.0] and train["answer"][:] == ["007", "007"]


def test_an_empty_margin_is_named_by_its_own_column(tmp_path):
    assert "line 3: `far` is None" in refused(_pairs(tmp_path, "1", ""), **MARGINS)


def test_what_is_no_number_is_named_by_its_line(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,margin\np,b,c,0.5\np,b,c,much\n")
    said = refused(tmp_path / "pairs.csv", layout="comparisons")
    assert "line 3: `margin` is 'much', but other rows hold a number" in said and "line 2" not in said
    kept = load(tmp_path / "pairs.csv", layout="comparisons", on_bad_row="drop").train
    assert kept["margin"][:] == [0.5]
    # Of prompts the column means something else.
    assert load(tmp_path / "pairs.csv", layout="prompts", needs_demonstration=False).train["margin"][:] == [
        "0.5",
        "much",
    ]


def test_a_table_of_decimals(tmp_path):
    path = tmp_path / "pairs.parquet"
    rows = [{"prompt": "p", "chosen": f"b{one}", "rejected": "c", "margin": Decimal(one)} for one in ("0.5", "2")]
    Dataset.from_list(rows).to_parquet(path)
    assert load(path, layout="comparisons").train["margin"][:] == [0.5, 2.0]


def test_truth_values_as_pandas_writes_them(tmp_path):
    path = tmp_path / "solutions.csv"
    path.write_text(
        "instruction,output,problem_id,is_correct,difficulty\na,b,1,True,0.25\na,c,1,False,3\na,d,1,true,\n"
    )
    arguments = RefTuningArguments(dataset_name=str(path))
    train = load_splits(arguments, seed=0, needs_demonstration=False, layout="solutions").train
    assert train["is_correct"][:] == [True, False, True] and train["difficulty"][:] == [0.25, 3.0, None]
