"""One optimizer step on fixed rows in each of several processes; writes the weights and what was logged.

Arguments: model folder, output folder, JSON of settings for the `train` of a test module (`module`, by default
`tests.helpers.rollouts`, whose `trainer` is a class of it; elsewhere `trainer` is passed on).
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate import PartialState

from tests.helpers import rollouts


def main() -> None:
    model_path, output_dir, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    expected = settings.pop("processes")
    module = import_module(settings.pop("module", "tests.helpers.rollouts"))
    name = settings.pop("trainer")
    trainer = module.train(vars(rollouts)[name] if module is rollouts else name, model_path, output_dir, **settings)
    assert trainer.accelerator.num_processes == expected, trainer.accelerator.num_processes
    if PartialState().is_main_process:
        torch.save(rollouts.weights(trainer), output_dir / "weights.pt")
        (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history[0]))
    PartialState().wait_for_everyone()
