"""Two machines, as two launches on one: each with its own machine rank, together one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from hpt_trl.runs import runner
from tests.helpers.processes import ROOT, free_port


def test_two_machines_train_what_one_process_does(tmp_path, tiny_model_path):
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(16)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "sums.yaml"
    values = {"stage": "sft", "model_name_or_path": tiny_model_path, "dtype": "float32", "bf16": False}
    values |= {"dataset_name": str(tmp_path / "sums.jsonl"), "output_dir": str(tmp_path / "one"), "report_to": "none"}
    values |= {"global_batch_size": 4, "per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 3e-3}
    values |= {"save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "use_cpu": True, "seed": 3}
    recipe.write_text(yaml.safe_dump(values))
    words = f"--accelerate multi_node --num_machines 2 --num_processes 2 --main_process_port {free_port()}".split()
    words += ["--main_process_ip", "127.0.0.1", "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Into files: a pipe that nobody reads while the other machine is waited for may fill up and stop both.
    said = [tmp_path / f"machine-{rank}.txt" for rank in (0, 1)]
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "hpt_trl", "run", str(recipe), *words, "--machine_rank", str(rank)],
            **{"cwd": ROOT, "env": environment, "stdout": said[rank].open("wb"), "stderr": subprocess.STDOUT},
        )
        for rank in (0, 1)
    ]
    try:
        runner.run(str(recipe), [])
        for rank, machine in enumerate(machines):
            try:
                machine.wait(timeout=200)
            except subprocess.TimeoutExpired:
                pytest.fail("\n".join(file.read_text()[-4000:] for file in said))
            assert machine.returncode == 0, said[rank].read_text()
            # One of them speaks for the run.
            assert ("3 steps in " in said[rank].read_text()) == (rank == 0)
    finally:
        for machine in machines:
            machine.terminate()
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["hardware"]["processes"] == 2 and found["steps"] == 3
    one, two, start = (
        load_file(Path(folder) / "model.safetensors")
        for folder in (tmp_path / "one", tmp_path / "two", tiny_model_path)
    )
    for name, weight in one.items():
        assert two[name].numpy() == pytest.approx(weight.numpy(), abs=2e-6), name
    assert max((one[name] - start[name]).abs().max().item() for name in one) > 1e-3
