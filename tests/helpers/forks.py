"""The processes of a launch as forks of one that has imported the packages.

Starting a launcher and importing the packages in each process anew takes most of the time of one step. The forks find
the variables that `torchrun` sets, and talk over gloo; all else is as in processes of their own. Runs of launchers are
tested where these are the matter.

As a module (`python -m tests.helpers.forks`) it reads a job in each line, and answers with the exit codes.
"""

import faulthandler
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from hpt_trl.runs.collecting import collect_as_usual, collect_seldom

ROOT = Path(__file__).parents[2]
# Seconds until a process that hangs says where, and ends.
_LIMIT = 240


def run_in_processes(module: str, words: list[str], *, processes: int, port: int, output: Path) -> None:
    """Runs `main` of a module with the words of its command line; fails with what was printed.

    Args:
        output: folder in which each process writes what it prints.
    """
    server = _server()
    job = {"module": module, "words": words, "processes": processes, "port": port, "output": str(output)}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    codes = json.loads(server.stdout.readline())
    said = "\n".join(_output(output, rank).read_text(errors="replace")[-4000:] for rank in range(processes))
    assert codes == [0] * processes, f"exit codes {codes}\n{said}"


@cache
def _server() -> subprocess.Popen:
    """Of this process; it ends with it, as its input ends then."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tests.helpers.forks"], cwd=ROOT, env=environment, **pipes)


def _output(folder: Path, rank: int) -> Path:
    return folder / f"output-{rank}.txt"


def import_what_runs_need() -> None:
    """Imports what a run imports only when it begins, is spread, saves and draws."""
    names = ("runs.runner", "pipeline.plan", "launching.options", "launching.accelerate", "recipes.sharding_on_cpu")
    for name in names:
        import_module(f"hpt_trl.{name}")
    for name in STAGE_MODULES:
        load_stage(name)
    # A thousand patterns of all architectures, which are compiled with the first model and kept.
    get_checkpoint_conversion_mapping("llama")
    import_module("tests.helpers.stage_runs")
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "torch.distributed.checkpoint.state_dict"):
        import_module(name)
    if not torch.accelerator.is_available():
        # It asks for the device as it is imported, which a fork of a process that has done so cannot use.
        os.environ["DS_ACCELERATOR"] = "cpu"
        import_module("deepspeed")


def _serve() -> None:
    collect_seldom()
    import_what_runs_need()
    for name in ("acted", "held_out_measures", "rho1", "rollouts"):
        import_module(f"tests.helpers.{name}")
    collect_as_usual()
    for line in sys.stdin:
        job = json.loads(line)
        ranks = {_fork(job, rank): rank for rank in range(job["processes"])}
        codes = [0] * len(ranks)
        left = set(ranks)
        while left:
            child, status = os.wait()
            left.discard(child)
            codes[ranks[child]] = os.waitstatus_to_exitcode(status)
            if codes[ranks[child]] != 0:
                # The others would wait for it.
                for other in left:
                    os.kill(other, 9)
        print(json.dumps(codes), flush=True)


def _fork(job: dict, rank: int) -> int:
    child = os.fork()
    if child != 0:
        return child
    output = os.open(_output(Path(job["output"]), rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(_LIMIT, exit=True)
    size = str(job["processes"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
    sys.argv = [job["module"], *job["words"]]
    try:
        import_module(job["module"]).main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
