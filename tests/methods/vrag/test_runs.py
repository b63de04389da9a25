"""Trainings whose search service fails on the way end with a message, and those that are well go to their end."""

import json

import pytest
import yaml

from hpt_trl.cli import main
from tests.helpers import own_environments
from tests.helpers.searching import eager, query_of, soon_ended
from tests.helpers.servers import send, serve


@pytest.fixture
def training(tmp_path, vlm_path, searched):
    """Writes a recipe of GRPO whose rollouts search in each turn, and returns its path."""

    def write(name: str, **changes) -> str:
        data = tmp_path / "questions.jsonl"
        rows = [{**row, "query": query_of(row), "answer": str(place % 3)} for place, row in enumerate(searched.rows)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "stage": "grpo",
            "model_name_or_path": soon_ended(vlm_path, tmp_path / "model"),
            "dtype": "float32",
            "dataset_name": str(data),
            "output_dir": str(tmp_path / name),
            **eager(searched, turns=3, **changes),
            "max_turns": 3,
            "max_images": 1,
            "reward_funcs": ["answer_exact", "page_ndcg"],
            "num_generations": 2,
            "max_completion_length": 48,
            "max_turn_length": 12,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "seed": 3,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


def test_a_service_that_goes_down_ends_a_training_with_its_row(training, searched, tmp_path, capsys):
    most = [10**9]

    def answer(handler, asked):
        if asked.number > most[0]:
            return send(handler, {"error": "gone"}, 503)
        hits = searched.engine.search(asked.params["queries"], 10)
        return send(handler, [[{"image_file": f"img/{hit.name}.png"} for hit in row] for row in hits])

    with serve(answer) as server:
        options = {"index": server.address, "images": str(searched.pages / "images"), "retries": 0}
        assert main(["run", training("whole", **options)]) == 0
        questions = len(server.asked)
        assert questions > 4
        own_environments.ENGINES.clear()
        most[0] = 2 * questions - 2
        capsys.readouterr()
        assert main(["run", training("stopped", **options)]) == 2
        told = capsys.readouterr()
        assert "does not answer" in told.err and "503" in told.err and "/questions.jsonl, line " in told.err
        assert "Traceback" not in told.err and "Traceback" not in told.out
    logged = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert logged["stage"] == "grpo"
    assert not (tmp_path / "stopped" / "results.json").exists()


def test_what_rollouts_do_is_logged_from_the_first_step(training, searched, tmp_path, capsys):
    assert main(["run", training("whole")]) == 0
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    first = next(line for line in map(json.loads, lines) if "vrag/searches" in line)
    for name in ("turns", "searches", "crops", "invalid_actions", "answered", "recall"):
        assert f"vrag/{name}" in first
    assert first["vrag/searches"] > 0 and first["vrag/turns"] <= 3
