"""One optimizer step on the fixed rollouts, run by `torchrun`; writes the weights and what was logged.

Arguments: model folder, output folder, JSON of settings for `tests.rollouts.train` (`trainer`: a class of that module).
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from tests import rollouts


def main() -> None:
    model_path, output_dir, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    expected = settings.pop("processes")
    trainer = rollouts.train(vars(rollouts)[settings.pop("trainer")], model_path, output_dir, **settings)
    assert trainer.accelerator.num_processes == expected, trainer.accelerator.num_processes
    if PartialState().is_main_process:
        torch.save(rollouts.weights(trainer), output_dir / "weights.pt")
        (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history[0]))
    # A process that leaves with the group's threads still running is aborted by the C++ runtime now and then.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
