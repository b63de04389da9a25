"""Progress bars are taken out of standard error, and nothing else is."""

import io
import logging
import sys
import warnings
from contextlib import redirect_stderr

from tqdm import tqdm

from hpt_trl.displays.console import Bars, printed_warnings, without_bars


def test_bars_become_lines_and_the_rest_goes_through():
    stream, said = io.StringIO(), []
    with redirect_stderr(Bars(stream, said.append)):
        print("first", file=sys.stderr)
        for _ in tqdm(range(3), desc="Before training", unit="completion", mininterval=0):
            tqdm.write("in between", file=sys.stderr)
        # As Python writes a warning.
        sys.stderr.write(warnings.formatwarning("something is wrong", UserWarning, "module.py", 3))
        print("last", file=sys.stderr)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "first" and lines[-1] == "last" and lines.count("in between") == 3
    assert any("something is wrong" in line for line in lines)
    assert not any("%|" in line or "\r" in line for line in lines)
    assert "Before training: 3/3" in said and all("%" not in text for text in said)


def test_nested_bars_leave_nothing():
    stream = io.StringIO()
    with redirect_stderr(Bars(stream, lambda text: None)):
        for _ in tqdm(range(2), desc="outer", mininterval=0):
            for _ in tqdm(range(2), desc="inner", mininterval=0, position=1, leave=False):
                pass
    assert stream.getvalue().strip("\n") == ""


def test_what_the_package_warns_of_is_printed_and_others_are_not(capsys):
    with printed_warnings():
        logging.getLogger("hpt_trl.data.overlap").warning("%d of %d rows", 3, 4)
    out, err = capsys.readouterr()
    assert out == "3 of 4 rows\n" and "3 of 4" not in err
    assert logging.getLogger("hpt_trl").propagate


def test_without_bars_a_warning_is_still_heard(capsys):
    with without_bars():
        for _ in tqdm(range(2), desc="Loading weights", mininterval=0):
            pass
        print("a problem", file=sys.stderr)
    assert capsys.readouterr().err == "a problem\n"
