"""`hpt-trl run` of several recipes one after the other in the processes of one launch, on fixed rollouts.

Arguments: the distributed type and number of processes that are expected, then a free port and a recipe for each run.
Each run is a fork of its own: the packages are imported once, everything else is as in a launch of its own. Only the
sampling is replaced (see tests/rollouts.py), and not in recipes whose name ends in `-sampled`. Writes the exit code,
and what went wrong, beside each recipe.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from transformers import Trainer

from hpt_trl.cli import main
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.stages import STAGE_MODULES, load_stage
from tests.rollouts import FixedRollouts


def expect(kind: str, processes: int) -> None:
    train = Trainer.train

    def checked(self: Trainer, *args, **kwargs):
        found = (self.accelerator.distributed_type.value, self.accelerator.num_processes)
        assert found == (kind, processes), found
        return train(self, *args, **kwargs)

    Trainer.train = checked


def run(recipe: Path) -> None:
    if not recipe.stem.endswith("-sampled"):
        RolloutTrainer._generate_single_turn = FixedRollouts._generate_single_turn
    said: object = None
    try:
        code = main(["run", str(recipe)])
    except BaseException:
        code, said = 1, traceback.format_exc()
    rank = os.environ.get("RANK", "0")
    recipe.with_suffix(f".outcome-{rank}").write_text(json.dumps([code, said]))
    sys.stdout.flush()
    sys.stderr.flush()
    # gloo's threads may abort a process that takes its objects apart.
    os._exit(0)


if __name__ == "__main__":
    kind, processes, *runs = sys.argv[1:]
    # What a run imports only when it begins.
    import_module("hpt_trl.runner")
    for name in STAGE_MODULES:
        load_stage(name)
    expect(kind, int(processes))
    # The launcher's own store would find the keys of the run before.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for port, recipe in zip(runs[::2], runs[1::2], strict=True):
        os.environ["MASTER_PORT"] = port
        child = os.fork()
        if child == 0:
            run(Path(recipe))
        os.waitpid(child, 0)
