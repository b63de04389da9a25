"""The recipe key `vllm` and the look at a server, where vLLM is not installed; the engine itself: tests_vllm/."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.recipes.vllm import INSTALL, describe, why_not
from hpt_trl.rollouts import vllm_server
from hpt_trl.rollouts.vllm_server import await_server
from hpt_trl.runs import runner

RECIPE = {
    "stage": "grpo",
    "output_dir": "out",
    "model_name_or_path": "some/model",
    "use_cpu": True,
    "dataset_name": "arithmetic",
    "reward_funcs": ["math_answer"],
    "global_batch_size": 8,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read_keys(**keys):
        (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE | keys, indent=1))
        return read_recipe(tmp_path / "recipe.yaml")

    return read_keys


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("asked", ["colocate", "server"])
def test_vllm_that_is_not_installed_is_refused_with_the_command(read, asked):
    with pytest.raises(UserError) as caught:
        read(vllm=asked)
    assert f"`vllm`: vLLM is not installed here: {INSTALL}" in str(caught.value) and "`vllm: auto`" in str(caught.value)
    with pytest.raises(UserError, match="`use_vllm`: vLLM is not installed here"):
        read(use_vllm=True)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_auto_falls_back_and_says_why(read, tiny_model_path, capsys):
    recipe = read(vllm="auto")
    assert not recipe.config.use_vllm
    assert "vLLM is not installed here" in str(describe(recipe))
    assert recipe.raw["vllm"] == "auto", "the resolved recipe means the same elsewhere"
    assert describe(recipe) == f"transformers (vllm: auto; {why_not('colocate', use_cpu=True)})"
    words = [f"--model_name_or_path={tiny_model_path}", "--max_steps=1", "--max_completion_length=4", "--vllm=auto"]
    words += ["--dataset_options={size: 8}", "--report_to=none", "--bf16=false", "--dtype=float32"]
    runner.run("recipe.yaml", words)
    assert f"rollouts: {describe(recipe)}\n" in capsys.readouterr().out
    check("recipe.yaml", [*words, "--output_dir=other"])
    assert f"rollouts:       {describe(recipe)}\n" in capsys.readouterr().out
    assert describe(read()) == "transformers"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("asked", ["colocate", "server"])
def test_a_check_for_other_processes_takes_vllm_on_trust(read, tiny_model_path, capsys, asked):
    with pytest.raises(UserError):
        read(vllm=asked)
    words = [f"--model_name_or_path={tiny_model_path}", f"--vllm={asked}", "--bf16=false", "--global_batch_size=64"]
    words += ["--max_completion_length=4", "--accelerate=multi_gpu", "--num_processes=8"]
    assert main(["check", "recipe.yaml", *words]) == 0
    said = capsys.readouterr().out
    assert "8 processes" in said and f"(not on this machine: vLLM is not installed here: {INSTALL}" in said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vllm": "sever"}, "sever is not allowed; allowed: one of colocate, server, auto, or null."),
        ({"vllm": "auto", "use_vllm": True}, "`vllm`: `use_vllm` is set as well; keep one of the two"),
        ({"vllm": "auto", "vllm_mode": "server"}, "`vllm`: `vllm_mode` is set as well; keep one of the two"),
    ],
)
def test_a_key_that_says_too_much_or_nothing_is_refused(read, keys, said):
    with pytest.raises(UserError) as caught:
        read(**keys)
    assert said in str(caught.value)


def test_a_stage_without_rollouts_refuses_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {name: RECIPE[name] for name in ("output_dir", "model_name_or_path", "dataset_name", "global_batch_size")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(keys | {"stage": "sft", "vllm": "auto"}))
    with pytest.raises(UserError, match="the stage `sft` generates no rollouts; drop the line"):
        read_recipe(tmp_path / "recipe.yaml")


class Service(BaseHTTPRequestHandler):
    """Answers each path as the test says: None not at all, a number as a status, else as JSON."""

    answers: dict

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.partition("?")[0], 404)
        if answer is None:
            time.sleep(3)
            return
        body = b"" if isinstance(answer, int) else json.dumps(answer).encode()
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


INFO = {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"/health": 200, "/server_info": INFO}, None),
        ({}, "is not there: asked 2 times for /health in 1 s, it answers 404 to /health."),
        ({"/health": None}, "is not there: asked 1 times for /health in 1 s, timed out"),
        ({"/health": 200}, "it answers 404 to /server_info, as a vLLM server does without VLLM_SERVER_DEV_MODE=1."),
        ({"/health": 200, "/server_info": {"vllm_config": {"weight_transfer_config": None}}}, "no weight-transfer"),
        ({"/health": 200, "/server_info": {"name": "another service"}}, "it says nothing of vLLM at /server_info"),
    ],
)
def test_a_server_is_looked_at_before_it_is_trained_with(answers, said, monkeypatch):
    monkeypatch.setattr(vllm_server, "PROBE_TIMEOUT", 1.0)
    service = type("Answers", (Service,), {"answers": answers})
    with ThreadingHTTPServer(("127.0.0.1", 0), service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        if said is None:
            await_server(address, 2.0, "some/model")
        else:
            with pytest.raises(UserError) as caught:
                await_server(address, 2.0, "some/model")
            message = str(caught.value)
            assert said in message and address in message
            assert f"VLLM_SERVER_DEV_MODE=1 vllm serve some/model --port {server.server_port} " in message
        server.shutdown()
