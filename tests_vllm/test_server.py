"""The three stages train against a real `vllm serve`, and a run ends with the cause when the server fails.

A machine without GPU has no NCCL, so the weights go by a file and the server's own reloading (`runs.without_nccl`); all
else is the package's and TRL's way.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import pytest
import requests
from transformers import AutoModelForCausalLM

from hpt_trl.rollouts.vllm_server import server_command
from tests.helpers.processes import free_port
from tests_vllm.launch import STAGES, fresh_answers, logged, output_of, run, start, write_recipe

# Engines take half a minute to start on two busy cores.
pytestmark = pytest.mark.timeout(1800)


class Server:
    """`vllm serve`, by the command that the package's messages give, made to fit this machine."""

    def __init__(self, model: str, folder: Path):
        self.address = f"http://127.0.0.1:{free_port()}"
        command = server_command(model, self.address) + " --enforce-eager --gpu-memory-utilization 0.1"
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                shell=True,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            )
        deadline = time.monotonic() + 300
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(1)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.address}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(model_path, tmp_path_factory):
    server = Server(model_path, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def keys(server: Server) -> dict:
    return {"vllm": "server", "vllm_server_base_url": server.address}


def test_three_stages_train_and_the_server_has_the_trained_weights(server, model_path, tmp_path):
    found = {}
    for stage in STAGES:
        recipe = write_recipe(tmp_path / f"{stage}.yaml", stage, model_path, **keys(server))
        run("serve-train", tmp_path / f"{stage}.json", recipe)
        found[stage] = json.loads((tmp_path / f"{stage}.json").read_text())
        steps = logged(tmp_path / stage)
        assert len(steps) == 3 and all(step["grad_norm"] > 0 for step in steps)
        differences = [step.get("sampling/sampling_logp_difference/mean", 0.0) for step in steps]
        assert 0 < max(differences) < 0.1, differences
        assert not any("value_head" in name for name in found[stage]["sent"])
    for stage in STAGES:
        assert found[stage]["answers"] == fresh_answers(tmp_path, tmp_path / stage), stage
    # What the server answered with before any training, it would have answered to all three.
    for one, other in combinations(STAGES, 2):
        assert found[one]["answers"] != found[other]["answers"], (one, other)


def test_a_server_that_dies_ends_the_run_and_leaves_the_last_checkpoint(server, model_path, tmp_path):
    """The last test that has the server."""
    recipe = write_recipe(
        tmp_path / "run.yaml",
        "grpo",
        model_path,
        **keys(server) | {"max_steps": 100_000, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2},
    )
    process = start("serve-train", tmp_path / "never.json", recipe)
    states = tmp_path / "run"
    deadline = time.monotonic() + 200
    while not list(states.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline, output_of(process, 1)
        time.sleep(0.2)
    server.kill()
    killed = time.monotonic()
    said = output_of(process, 60)
    assert process.returncode == 2, said[-4000:]
    assert time.monotonic() - killed < 60
    assert f"error: the vLLM server at {server.address} failed during the run (/" in said
    assert "Traceback" not in said and "vllm serve" in said and "--resume_from_checkpoint true" in said
    newest = max(states.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime).parent
    AutoModelForCausalLM.from_pretrained(newest)


def test_a_server_that_is_not_there_ends_the_run_before_anything_is_written(model_path, tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    recipe = write_recipe(
        tmp_path / "run.yaml",
        "ppo",
        model_path,
        vllm="server",
        vllm_server_base_url=address,
        vllm_server_timeout=3,
    )
    process = start("serve-train", tmp_path / "never.json", recipe)
    said = output_of(process, 120)
    assert process.returncode == 2, said
    assert (
        f"error: the vLLM server at {address} is not there: asked 3 times for /health in 2 s, Connection refused"
        in said
    )
    assert server_command(model_path, address) in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
    # Weights reach a server over NCCL alone, which this machine has not: the package says so at once.
    process = start("train", tmp_path / "never.json", recipe)
    said = output_of(process, 120)
    assert process.returncode == 2 and "over NCCL, between GPUs, and this run trains on cpu" in said


class HangsUp(BaseHTTPRequestHandler):
    """Answers as a vLLM server does, but not in time to prompts, and hangs up when weights are announced."""

    answers = {
        "/health": {},
        "/server_info": {"vllm_config": {"weight_transfer_config": {}}},
        "/v1/models": {"data": [{"id": "model"}]},
        "/start_weight_update": {},
    }

    def answer(self) -> None:
        if self.path == "/v1/completions":
            time.sleep(10)
        body = self.answers.get(self.path.partition("?")[0])
        if body is None:
            self.connection.close()
            return
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *args) -> None:
        pass


def test_a_server_that_hangs_or_hangs_up_ends_the_run_though_its_process_waits_for_nccl():
    with ThreadingHTTPServer(("127.0.0.1", 0), HangsUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = start("stuck", f"http://127.0.0.1:{server.server_port}")
        said = output_of(process, 90)
        server.shutdown()
    assert process.returncode == 2, said
    assert "failed during the run (/v1/completions: no answer in 2 s, the limit that `ddp_timeout` sets)" in said
    assert "failed during the run (/update_weights: " in said and "Traceback" not in said
