"""Numbers and truth values of a file that holds texts alone."""

import pytest

from hpt_trl.data.loading import load_splits
from hpt_trl.methods.ref_tuning.config import RefTuningArguments
from tests.helpers.datasets import load, refused


@pytest.mark.parametrize(("texts", "values"), [(["0.5", "2"], [0.5, 2.0]), (["1", ""], [1, None])])
def test_margins_of_a_table_are_numbers(tmp_path, texts, values):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,far,answer\n" + "".join(f"p,b{t},c,{t},007\n" for t in texts))
    keys = {"layout": "comparisons", "column_mapping": {"margin": "far"}}
    if None in values:
        assert "line 3: `margin` is None" in refused(path, **keys)
        return
    train = load(path, **keys).train
    assert train["margin"][:] == values and train["answer"][:] == ["007", "007"]


def test_what_is_no_number_is_named_by_its_line(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,margin\np,b,c,0.5\np,b,c,much\n")
    assert "line 2: `margin` is '0.5'" in refused(tmp_path / "pairs.csv", layout="comparisons")


def test_truth_values_as_pandas_writes_them(tmp_path):
    path = tmp_path / "solutions.csv"
    path.write_text(
        "instruction,output,problem_id,is_correct,difficulty\na,b,1,True,0.25\na,c,1,False,3\na,d,1,true,\n"
    )
    arguments = RefTuningArguments(dataset_name=str(path))
    train = load_splits(arguments, seed=0, needs_demonstration=False, layout="solutions").train
    assert train["is_correct"][:] == [True, False, True] and train["difficulty"][:] == [0.25, 3.0, None]
