"""Executes the notebooks one after the other and keeps their outputs: `make notebooks`.

    python notebooks/execute.py                     # those whose code has changed since they were executed
    python notebooks/execute.py hpt rho1 --again    # these, whatever they hold

A notebook is written only when all its cells have run, so a stopped command goes on where it was. It runs in its own
folder, as in Jupyter, by the interpreter that runs this.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

try:
    # The last is the kernel that a notebook runs in.
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    import_module("ipykernel")
except ImportError as missing:
    print(f"error: {missing.name} is not installed here. Run: pip install 'hpt-trl[notebooks]'", file=sys.stderr)
    sys.exit(2)

FOLDER = Path(__file__).resolve().parent
# Of each notebook: what its outputs are of, and how long it took.
_MARK, _TIME = "executed", "seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks without their ending (all)")
    parser.add_argument("--again", action="store_true", help="also those whose outputs are of their code")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in [FOLDER / f"{name}.ipynb" for name in arguments.names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if not arguments.again and notebook.metadata.get("hpt_trl", {}).get(_MARK) == digest(notebook):
            print(f"{path.stem}: its outputs are of its code", flush=True)
            continue
        started = time.perf_counter()
        print(f"{path.stem} ...", end=" ", flush=True)
        execute(notebook, FOLDER)
        seconds = round(time.perf_counter() - started)
        nbformat.write(cleaned(notebook, seconds), path)
        print(f"{seconds} s", flush=True)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs all cells in a new kernel, in a folder; an error in a cell is raised."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        # Over TCP, which is the default, a kernel can be listened to.
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        place = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=place, config=config).execute()


def cleaned(notebook: nbformat.NotebookNode, seconds: int) -> nbformat.NotebookNode:
    """Leaves out what differs from machine to machine, and notes of which code the outputs are."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict(
        {
            "hpt_trl": {_MARK: digest(notebook), _TIME: seconds},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def digest(notebook: nbformat.NotebookNode) -> str:
    """Returns what names the code of a notebook, without what installs the package in Colab and does nothing here."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "google.colab" not in cell.source]
    code = "\0".join(cells)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
