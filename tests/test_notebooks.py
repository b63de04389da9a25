"""The notebooks: run from top to bottom as notebooks on tiny settings, and what is committed of a real run."""

import ast
import base64
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

import hpt_trl
from hpt_trl.cli import build_parser
from tests.helpers.hub import TOKEN
from tests.helpers.notebooks import trial_file
from tests.helpers.processes import ENVIRONMENT, ROOT
from tests.planning.test_doctor import site

sys.path.append(str(ROOT / "notebooks"))
from execute import cleaned, digest, execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Nothing but the package, what loads what it left, and what reads and writes files.
_ALLOWED = {"hpt_trl", "transformers", "sys", "os", "json", "random", "shutil", "pathlib"}
_REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
_MACHINE = re.compile(r"/(home|root|tmp|work|Users|usr)/|\.venv|site-packages")


def test_there_is_a_notebook_for_each_method():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"hpt", "rlhf", "ppo", "rho1", "reward_shift", "weighted_mtp", "vrag", "own_data"}


# What a reader finds in every notebook: by a line of its code, a command, or a heading.
_ELEMENTS = {
    "the data": r"hpt_trl\.look\(",
    "training": r"hpt_trl\.run\(",
    "the mechanism": r"\.(plot\(|selections|weights\[|shift\b|value_curves|trajectories)",
    "before and after": r"^## Before and after|\.samples",
    "saving and loading": r"^## (The model is|The heads are|Merge and load).*\n",
    "how it is loaded": r"from_pretrained|load_with_future_heads\(|hpt_trl\.complete\((run\.folder|merged)",
    "merging": r"hpt-trl merge|\.merge\(",
    "pushing": r"hpt-trl push",
    "chatting": r"^hpt-trl chat|main\(\[\"chat\"",
    "a GPU": r"^## On a GPU\n",
}
# What the model writes before its last training; VRAG's is played by the evaluation.
_BEFORE = r"^## The model before|hpt_trl\.complete\((task\.model|pretrained\.folder)|played\(\"eval_before\"\)"


@every_notebook
def test_every_element_is_there(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells) + "\n"
    assert [name for name, found in _ELEMENTS.items() if not re.search(found, text, flags=re.MULTILINE)] == []
    # Two sentences on what it shows, under its title and the link to Colab.
    assert 2 <= len(re.findall(r"[.!?](?:\s|$)", cells[0].source.rpartition("\n\n")[2])) <= 3
    before = next(place for place, cell in enumerate(cells) if re.search(_BEFORE, cell.source, flags=re.MULTILINE))
    trainings = [place for place, cell in enumerate(cells) if "= hpt_trl.run(" in cell.source]
    assert before < trainings[-1] or "eval_before" in cells[before].source


@every_notebook
def test_commands_that_it_names_can_be_parsed(path):
    parser = build_parser()
    for cell in nbformat.read(path, as_version=4).cells:
        for line in re.findall(r"^hpt-trl .*", cell.source, flags=re.MULTILINE):
            parser.parse_args(shlex.split(line, comments=True)[1:])


def code_of(cell) -> str:
    """A cell's Python; magics, which IPython alone reads, are left out."""
    if cell.source.startswith("%%"):
        return ""
    return re.sub(r"^(\s*)%.*$", r"\1pass", cell.source, flags=re.MULTILINE)


def shows(cell) -> bool:
    """Whether a cell is there to show something: it ends with an expression, prints, or runs a recipe."""
    body = ast.parse(code_of(cell)).body
    return bool(body) and (isinstance(body[-1], ast.Expr) or "hpt_trl.run(" in cell.source or "print(" in cell.source)


def data_of(cell) -> dict[str, str]:
    """What a cell shows, by type; of streams the text under their name."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        elif output.output_type == "error":
            found["error"] = "\n".join(output.traceback)
        else:
            found |= {kind: "".join(value) for kind, value in output.data.items()}
    return found


# What the package tells while it works, none of it a warning; and what a cell of IPython says.
_TOLD = re.compile(
    r"Drawn from |Columns that nothing reads: |Checkpoints in |(Pages|Others|Results): |Done in |(recall|ndcg)@\d+: |"
    r"(Over)?[Ww]riting my_|.* of \d+ problems have no "
)


def check_outputs(notebook) -> None:
    """No error and no warning, and something to see wherever something is shown."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        found = data_of(cell)
        if re.fullmatch(r"Loading \S+ \.\.\.\n", found.get("stderr", "")):
            # Of a command: what takes its time.
            del found["stderr"]
        assert "error" not in found and "stderr" not in found, (cell.source, found)
        assert not shows(cell) or found, f"nothing to see: {cell.source}"
        if re.search(r"hpt_trl\.(run|look)\(", cell.source) and "print(" not in cell.source:
            told = [line for line in found.get("stdout", "").splitlines() if line.strip()]
            assert [line for line in told if not _TOLD.match(line)] == []
        assert "\x1b" not in "".join(found.values()), f"codes of a terminal: {cell.source}"
        if "image/png" in found:
            assert base64.b64decode(found["image/png"]).startswith(b"\x89PNG")
        if "hpt_trl.run(" in cell.source and "index" not in cell.source:
            assert "image/png" in found and "step" in found["text/html"], f"no curves: {cell.source}"
    together = [data_of(cell) for cell in cells]
    assert sum("image/png" in found for found in together) >= 2
    assert sum("text/html" in found for found in together) >= 4


@every_notebook
def test_it_runs_as_a_notebook(path, tiny_model_path, tmp_path, monkeypatch, request):
    monkeypatch.setenv("HPT_TRL_TRIAL", str(trial_file(tmp_path, tiny_model_path, path.stem)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The one that pushes does so where somebody is logged in.
    hub = request.getfixturevalue("hub") if path.stem == "own_data" else None
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.outputs = []
    execute(notebook, tmp_path)
    check_outputs(notebook)
    # What it writes lies where it says.
    assert (tmp_path / "outputs").is_dir()
    if hub is not None:
        (pushed,) = hub.repos.values()
        assert {"model.safetensors", "README.md", "results.json", "curves.png"} <= set(pushed.files())
        assert TOKEN not in nbformat.writes(notebook)


@every_notebook
def test_it_is_well_formed_and_calls_the_package_alone(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        if cell.cell_type != "code":
            continue
        # Few lines each, but for a file that is written, or rows that are made.
        assert len(cell.source.splitlines()) <= (35 if "%%writefile" in cell.source else 18), cell.source
        for node in ast.walk(ast.parse(code_of(cell))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {module.partition(".")[0] for module in modules} <= _ALLOWED, cell.source


@every_notebook
def test_its_colab_link_opens_it_and_installs_the_package(path):
    notebook = nbformat.read(path, as_version=4)
    head, install = notebook.cells[0].source, notebook.cells[1].source
    where = _REPOSITORY.removeprefix("https://github.com/")
    assert f"(https://colab.research.google.com/github/{where}/blob/main/notebooks/{path.name})" in head
    found = re.search(r'%pip install --quiet "hpt-trl(?:\[([\w,-]+)\])? @ git\+(\S+)"', install)
    assert found and found[2] == _REPOSITORY and 'if "google.colab" in sys.modules' in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set((found[1] or "").split(",")) - {""} <= set(extras)
    # The built-in model as requirements-nodeps.txt has it, where the notebook takes it.
    code = "\n".join(cell.source for cell in notebook.cells[2:] if cell.cell_type == "code")
    pinned = (ROOT / "requirements-nodeps.txt").read_text().splitlines()[-1]
    assert (f"%pip install --quiet --no-deps {pinned}" in install) == bool(re.search("smollm2|quickstart", code))


# Seconds on two cores that a reader is asked to wait at most.
_PATIENCE = 300


@every_notebook
def test_what_is_committed_is_of_a_real_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["hpt_trl"]["executed"] == digest(notebook), "its code has changed: make notebooks"
    assert 0 < notebook.metadata["hpt_trl"]["seconds"] < _PATIENCE
    check_outputs(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for kind, text in data_of(cell).items():
                assert kind.startswith("image/") or not _MACHINE.search(text), (cell.source, text[:2000])


def test_cleaning_takes_out_what_differs_from_machine_to_machine():
    cell = nbformat.v4.new_code_cell("1 + 1", metadata={"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}})
    info = {"name": "python", "version": "3.11.7"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": info, "widgets": {}})
    found = cleaned(notebook, 60)
    assert found.cells[0].metadata == {} and "widgets" not in found.metadata and "2026" not in nbformat.writes(found)
    changed = digest(found)
    found.cells[0].source = "1 + 2"
    assert digest(found) != changed == found.metadata["hpt_trl"]["executed"]


def test_a_notebook_that_fails_keeps_what_it_held(tmp_path):
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import hpt_trl\nhpt_trl.run('quickstar')")])
    with pytest.raises(CellExecutionError, match="there is no recipe `quickstar`"):
        execute(notebook, Path(tmp_path))
    # The message alone, without the frames of libraries.
    shown = "\n".join(notebook.cells[0].outputs[-1].traceback)
    assert "did you mean" in shown.lower() and "running.py" not in shown


@pytest.mark.parametrize("missing", ["nbformat", "nbclient", "ipykernel"])
def test_without_its_extra_the_command_is_one_line(missing, tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "notebooks" / "execute.py"), "hpt"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(site(tmp_path / "site", missing))},
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {missing} is not installed here. Run: pip install 'hpt-trl[notebooks]'\n"


def test_without_ipython_everything_is_text(recipe):
    path = recipe("sft")
    code = f"""
import sys

# As of packages that are not there: their import fails.
sys.modules |= dict.fromkeys(("IPython", "ipykernel", "nbclient", "nbformat", "ipywidgets"))
import hpt_trl

print(hpt_trl.look({path!r}, count=1))
run = hpt_trl.run({path!r}, max_steps=1)
print(run, run.curves, run.plot("loss"), hpt_trl.complete(run.folder, ["What is"], max_new_tokens=2))
assert run._repr_html_() and run.curves._repr_png_()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "18 training rows" in done.stdout and "Held-out loss" in done.stdout and "> What is" in done.stdout


def test_the_notebook_that_searches_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.chdir(tmp_path)
    settings = {"pages": "pages", "questions": "pages/questions.jsonl", "output_dir": "index"}
    with pytest.raises(hpt_trl.UserError, match=r"Run: pip install 'hpt-trl\[retrieval\]'"):
        hpt_trl.run("vrag/tiny-index", made_pages={"size": 4, "test_size": 2, "layouts": ["swatch"]}, **settings)
    assert not (tmp_path / "index").exists()
