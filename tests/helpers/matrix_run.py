"""`hpt-trl run` of several recipes one after the other in the processes of one launch, on fixed rollouts.

Arguments: the distributed type and number of processes that are expected, then a free port and a recipe for each run.
Each run is a fork of its own: the packages are imported once, everything else is as in a launch of its own. Only the
sampling is replaced (see tests/helpers/rollouts.py), and not in recipes whose name ends in `-sampled`. Writes the exit
code, what went wrong and how much of the models a process held, beside each recipe, and what it printed.
"""

import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor
from transformers import Trainer

from hpt_trl.cli import main
from hpt_trl.rollouts.acting import ActingTrainer
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.runs.collecting import collect_as_usual, collect_seldom
from tests.helpers.acted import FixedWords
from tests.helpers.forks import import_what_runs_need
from tests.helpers.rollouts import FixedRollouts


def share(model: Any) -> float:
    """Share of a model's weights that lies in this process."""
    local = total = 0
    for weight in model.parameters():
        spread = getattr(weight, "ds_tensor", None)
        here = weight.to_local() if isinstance(weight, DTensor) else weight if spread is None else spread
        local += here.numel()
        total += weight.numel() if spread is None else weight.ds_numel
    return local / total


def watch(kind: str, processes: int, found: dict[str, float]) -> None:
    """Asserts what each training runs on, and notes the shares of its models, and of the optimizer's states."""
    train = Trainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs_on = (self.accelerator.distributed_type.value, self.accelerator.num_processes)
        assert runs_on == (kind, processes), runs_on
        result = train(self, *args, **kwargs)
        found["model"] = share(self.model)
        if (reference := getattr(self, "ref_model", None)) is not None:
            found["reference"] = share(reference)
        if (critic := getattr(self, "_critic", None)) is not None:
            found["critic"] = share(critic.module)
        if (engine := getattr(self, "deepspeed", None)) is not None:
            found["zero_stage"] = engine.zero_optimization_stage()
        return result

    Trainer.train = watched


def run(recipe: Path, outcome: Path, kind: str, processes: int) -> None:
    if not recipe.stem.endswith("-sampled"):
        RolloutTrainer._generate_single_turn = FixedRollouts._generate_single_turn
        ActingTrainer._draw = FixedWords._draw
    # A run that hangs says where, and leaves the others their time.
    faulthandler.dump_traceback_later(240, exit=True)
    said: object = None
    found: dict[str, float] = {}
    watch(kind, processes, found)
    try:
        code = main(["run", str(recipe)])
    except BaseException:
        code, said = 1, traceback.format_exc()
    outcome.write_text(json.dumps([code, said, found]))
    sys.stdout.flush()
    sys.stderr.flush()
    # As the command line ends a process of several, see hpt_trl/cli/process.py.
    os._exit(0)


if __name__ == "__main__":
    kind, processes, *runs = sys.argv[1:]
    collect_seldom()
    import_what_runs_need()
    collect_as_usual()
    # The launcher's own store would find the keys of the run before.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    rank = os.environ.get("RANK", "0")
    for port, name in zip(runs[::2], runs[1::2], strict=True):
        os.environ["MASTER_PORT"] = port
        recipe = Path(name)
        outcome, printed = recipe.with_suffix(f".outcome-{rank}"), recipe.with_suffix(f".output-{rank}")
        child = os.fork()
        if child == 0:
            output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            run(recipe, outcome, kind, int(processes))
        _, status = os.waitpid(child, 0)
        if not outcome.exists():
            # Killed, crashed, or hung: the last lines say where.
            ended = f"ended with {os.waitstatus_to_exitcode(status)}:\n{printed.read_text(errors='replace')[-6000:]}"
            outcome.write_text(json.dumps([None, ended, {}]))
