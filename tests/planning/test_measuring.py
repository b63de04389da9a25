"""`hpt-trl check --measure`: a step in a process of its own, which leaves nothing."""

import json

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.planning import measuring
from tests.planning.test_lengths import recipe_of


def test_a_step_is_taken_and_nothing_is_left(tiny_model_path, tmp_path, capsys):
    words = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "save_steps": 1}
    path = recipe_of(tmp_path, tiny_model_path, **words).path
    before = sorted(tmp_path.rglob("*"))
    assert main(["check", str(path), "--measure", "--max_completion_length", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = found["measured"]
    assert 0 < measured["seconds"] < 60 and measured["processes"] == 1
    # A tiny model: far less than the libraries, which do not count.
    assert 0 < measured["memory"] < 2**30
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_measured_is_said(tiny_model_path, tmp_path, capsys):
    path = recipe_of(tmp_path, tiny_model_path).path
    assert main(["check", str(path), "--measure", "--launcher", "ray", "--num_workers", "1"]) == 2
    assert "--measure: a step is measured on one machine" in capsys.readouterr().err
    values = json.loads(path.read_text())
    given = {key: values[key] for key in ("model_name_or_path", "dataset_name", "output_dir", "reward_funcs")}
    path.write_text(json.dumps(given | {"stage": "evaluate", "use_cpu": True, "max_completion_length": 16}))
    assert main(["check", str(path), "--measure"]) == 2
    assert "--measure: only a training whose model and rows are here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (2, "a warning\nerror: a.yaml: seed: no\n  b.yaml: lr: no\n", "a.yaml: seed: no\n  b.yaml: lr: no"),
        (137, "error: process 0 (pid 7) was ended by SIGKILL\n", "process 0 (pid 7) was ended by SIGKILL"),
        (-9, "", "the process that took the step was ended by SIGKILL from outside, as a system out of memory does."),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", None),
        (2, "usage: python\n", None),
    ],
)
def test_only_a_mistake_is_told_as_one(code, said, told, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "call", lambda *arguments, **options: (code, said))
    with pytest.raises(RuntimeError if told is None else UserError) as failed:
        measuring.measured_step("a.yaml", [], LaunchOptions())
    assert (said in capsys.readouterr().err) if told is None else str(failed.value) == f"--measure: {told}"


@pytest.mark.slow
def test_a_step_of_two_processes(tiny_model_path, tmp_path, capsys):
    path = recipe_of(tmp_path, tiny_model_path).path
    words = ("--accelerate", "cpu", "--num_processes", "2", "--per_device_train_batch_size", "4")
    assert main(["check", str(path), "--measure", *words]) == 0
    assert ", in 2 processes" in capsys.readouterr().out
