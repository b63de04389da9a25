"""`hpt-trl check RECIPE --measure`: a step that is really taken, in processes of its own.

The parent starts `python -m hpt_trl.planning.measuring RECIPE FOLDER [--key value ...]` as a run would be started. Each
process trains until the rollouts of its second generation are used (without rollouts: two steps) and leaves what the
steps after the first took. Nothing is evaluated, saved or reported, and the output folder is a temporary one.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hpt_trl.errors import UserError
from hpt_trl.launching.processes import call

if TYPE_CHECKING:
    from hpt_trl.launching.options import LaunchOptions
    from hpt_trl.recipes.recipe import Recipe

_MODULE = "hpt_trl.planning.measuring"
# How a process tells a mistake; what else it says on stderr comes before.
_TOLD, _USER_ERROR = re.compile(r"^error: (.*)", re.DOTALL | re.MULTILINE), 2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        seconds: of a step, the slowest process's.
        memory: bytes at the peak of a process, the largest one's, without what it held before the model was loaded;
            None where this system does not tell.
        processes: how many there were.
    """

    seconds: float
    memory: int | None
    processes: int

    def line(self) -> str:
        """What `check` prints of it."""
        peak = "" if self.memory is None else f", peak memory {self.memory / 2**30:.1f} GiB per process"
        of = "" if self.processes == 1 else f", in {self.processes} processes"
        return f"a step took {self.seconds:.3g} s{peak}{of}"


def measured_step(recipe: str, overrides: Sequence[str], options: "LaunchOptions") -> Measured:
    """Takes a step of a recipe in processes of its own.

    Args:
        recipe: a file, or the name of a bundled recipe.
        overrides: the words for the recipe.
        options: how its processes are started.

    Raises:
        UserError: they cannot be started, one found a mistake, or one was ended from outside.
        RuntimeError: one failed in any other way; what it said is on stderr.
    """
    from hpt_trl.launching.accelerate import check_startable, chosen_profile, launch_words

    if options.launcher == "ray" or (options.num_machines or 1) > 1:
        raise UserError("--measure: a step is measured on one machine, by accelerate; drop the option, or --measure.")
    with tempfile.TemporaryDirectory(prefix="hpt-trl-measure-") as folder:
        words = [recipe, folder, *overrides]
        command = [sys.executable, "-m", _MODULE, *words]
        if options.accelerate is not None:
            profile = chosen_profile(options)
            check_startable(profile)
            launched = launch_words(profile, words, module=_MODULE)
            command = [sys.executable, "-m", "hpt_trl.launching.agent", *launched]
        code, said = call(command, capture=True)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("process-*.json"))]
    if code or not found:
        raise _failure(code, said)
    peaks = [one["memory"] for one in found]
    memory = None if None in peaks else max(peaks)
    return Measured(max(one["seconds"] for one in found), memory, len(found))


def _failure(code: int, said: str) -> Exception:
    """What is to be raised of processes that failed; a fault that is nobody's mistake is shown as it is."""
    told = _TOLD.search(said)
    # Beyond 128 it is the launcher that tells which signal ended a process.
    if told is not None and (code == _USER_ERROR or code > 128):
        return UserError(f"--measure: {told[1].strip()}")
    if code < 0:
        name = signal.Signals(-code).name
        reason = ", as a system out of memory does" if name == "SIGKILL" else ""
        return UserError(f"--measure: the process that took the step was ended by {name} from outside{reason}.")
    print(said, file=sys.stderr, flush=True)
    return RuntimeError(f"--measure: the step failed (exit code {code}); what its process said stands above.")


class _Steps(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(_now() - self._begun)


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _take(name: str, folder: Path, overrides: list[str]) -> None:
    """Takes the steps in this process, and writes what they took."""
    from hpt_trl.recipes.bundled import find_recipe
    from hpt_trl.recipes.resolving import read_recipe
    from hpt_trl.runs.building import build_trainer
    from hpt_trl.runs.preparation import prepare_recipe
    from hpt_trl.runs.quiet import quiet

    with quiet():
        recipe = read_recipe(find_recipe(name), overrides)
        generation = _for_measuring(recipe, folder)
        prepared = prepare_recipe(recipe)
        (folder / "run").mkdir(exist_ok=True)
        before, steps = _begin(), _Steps()
        build_trainer(prepared, [steps]).train()
        found = {"seconds": sum(steps.seconds[-generation:]) / generation, "memory": _peak(before)}
    (folder / f"process-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def _for_measuring(recipe: "Recipe", folder: Path) -> int:
    """Has a recipe leave nothing, and end early; returns the steps that use the rollouts of a generation."""
    config: Any = recipe.config
    generation = 1
    if "num_generations" in recipe.keys:
        batches = config.steps_per_generation * config.num_iterations
        generation = max(1, batches // config.gradient_accumulation_steps)
    config.output_dir = str(folder / "run")
    config.max_steps = generation + 1
    config.save_strategy = config.eval_strategy = type(config.eval_strategy)("no")
    config.report_to, config.push_to_hub, config.load_best_model_at_end = [], False, False
    config.resume_from_checkpoint, config.disable_tqdm = None, True
    recipe.arguments.evaluations = None
    return generation


def _begin() -> int | None:
    """The memory that this process holds; its peak counts from here on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return 0
    try:
        _CLEAR.write_text("5")
    # Not there on other systems, and not to be written in some containers.
    except OSError:
        return None
    return _status("VmRSS")


def _peak(before: int | None) -> int | None:
    import torch

    if before is None:
        return None
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def main(words: list[str]) -> int:
    """One process of a measurement."""
    import torch

    from hpt_trl.runs.quiet import quiet_libraries

    quiet_libraries()
    try:
        _take(words[0], Path(words[1]), words[2:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    except torch.OutOfMemoryError as error:
        print(f"error: the step takes more memory than there is: {str(error).splitlines()[0]}", file=sys.stderr)
        return _USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
