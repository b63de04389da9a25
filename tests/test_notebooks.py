"""The notebooks' code cells run from top to bottom, in a process of their own, on the tiny model."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.processes import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, tiny_model_path, tmp_path):
    cells = json.loads(path.read_text())["cells"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    environment = os.environ | {"MODEL": tiny_model_path, "STEPS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
