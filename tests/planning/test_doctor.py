"""`hpt-trl doctor`: packages, what does not fit together, devices, and what recipes lack. All by real processes.

A package that is missing, or another version of it, is a folder of links to the installed packages beside crafted
metadata, on which Python starts with its own site-packages switched off (`-S`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from hpt_trl.cli import main
from hpt_trl.planning.hub_needs import Hub
from hpt_trl.planning.machines import Gpu, Machine
from hpt_trl.planning.need import TIMEOUT
from hpt_trl.planning.needs import needs_of
from hpt_trl.recipes.bundled import bundled_recipes, recipe_name
from hpt_trl.rewards.sandbox import probing
from hpt_trl.rewards.sandbox.bubblewrap import Bubblewrap
from tests.helpers.processes import ROOT

SITE = Path(torch.__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def write_recipe(folder: Path, name: str = "mine", **values) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"stage": "sft", "dataset_name": "stories:demonstrations", **values}))
    return str(path)


def site(folder: Path, *without: str, **metadata: str) -> Path:
    """A folder of the installed packages but those `without`, and with crafted METADATA of others."""
    folder.mkdir()
    for entry in SITE.iterdir():
        name = entry.name.lower().partition("-")[0]
        if name not in (*without, "hpt_trl", *metadata):
            (folder / entry.name).symlink_to(entry)
    for name, text in metadata.items():
        number = re.search(r"^Version: (.*)$", text, flags=re.MULTILINE)[1]
        (folder / f"{name}-{number}.dist-info").mkdir()
        (folder / f"{name}-{number}.dist-info/METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\n{text}\n")
    return folder


def hpt_trl(*words: str, path: str, code: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Runs a command on another path of packages, or on the usual one."""
    command = ["-S", "-c", f"import sys; from hpt_trl.cli import main; code = main(sys.argv[1:]); {code}sys.exit(code)"]
    return subprocess.run(
        [sys.executable, *command, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | variables,
        timeout=120,
    )


def test_messages_and_docs_name_extras_that_exist():
    files = [*(ROOT / "hpt_trl").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    named = {
        extra.strip()
        for file in [*files, ROOT / "README.md", ROOT / "Makefile"]
        for group in re.findall(r"hpt-trl\[([^\]{}]+)\]", file.read_text())
        for extra in group.split(",")
    }
    assert {"quantization", "deepspeed"} <= named <= set(EXTRAS)
    assert set(EXTRAS) >= {"quantization", "deepspeed", "vllm", "ray", "vlm", "notebooks", "tracking"}


def test_packages_devices_and_every_recipe_are_shown(capsys, tmp_path, monkeypatch):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[:2] == ["[quantization]", "bitsandbytes"])
    assert line.split()[2:] == [version("bitsandbytes"), ">=0.50,<1"]
    (line,) = (line for line in lines if line.split()[:1] == ["torch"])
    assert line.split()[1:] == [version("torch"), ">=2.11"]
    assert any(re.match(rf"  CPU: {os.cpu_count()} cores, \d+ GiB, ", line) for line in lines)
    recipes = dict(line.split(maxsplit=1) for line in lines[lines.index("Recipes") + 1 :] if line.startswith("  "))
    assert {recipe_name(path) for path in bundled_recipes()} <= set(recipes)
    assert recipes["quickstart"].startswith("ready, on") and recipes["pipeline/rlhf-tiny"].startswith("ready")
    # Elsewhere nothing lies in `outputs`.
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "sft/stories-tiny"]) == 1
    assert "not ok  model outputs/pretrain-stories-tiny: not there yet\n      hpt-trl run pretrain/stories-tiny" in (
        capsys.readouterr().out
    )


def test_a_recipe_that_can_run_and_mistakes(tmp_path, tiny_model_path, capsys):
    assert main(["doctor", "quickstart", write_recipe(tmp_path, model_name_or_path=tiny_model_path)]) == 0
    said = capsys.readouterr().out
    assert "quickstart: can run here" in said and "mine.yaml: can run here" in said and "hpt-trl check" in said
    assert main(["doctor", "quikstart"]) == 2
    assert "Did you mean `quickstart`?" in capsys.readouterr().err
    # A folder without weights, an adapter as a base, a file that is not there.
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for name, said in (("empty", "holds no config.json"), ("adapter", "hpt-trl merge")):
        assert main(["doctor", write_recipe(tmp_path, model_name_or_path=str(tmp_path / name))]) == 1
        assert said in capsys.readouterr().out
    mistakes = {"vllm": "server", "vllm_server_port": "abc", "report_to": {"a": 1}, "stage": "sfft"}
    assert main(["doctor", write_recipe(tmp_path, model_name_or_path=tiny_model_path, **mistakes)]) == 1
    said = capsys.readouterr().out
    assert "not ok  stage sfft: there is no such stage. Did you mean `sft`?" in said
    assert "not ok  vLLM server abc: this is no address" in said and "correct `vllm_server_port`" in said
    assert "not ok  report_to {'a': 1}: not a name" in said
    mistakes |= {"vllm_server_base_url": "http://x:99999"}
    assert main(["doctor", write_recipe(tmp_path, model_name_or_path=tiny_model_path, **mistakes)]) == 1
    assert "not ok  vLLM server http://x:99999: this is no address" in capsys.readouterr().out
    rows = str(tmp_path / "rows.jsonl")
    assert main(["doctor", write_recipe(tmp_path, model_name_or_path=tiny_model_path, dataset_name=rows)]) == 1
    assert f"not ok  data {rows}: there is no such file or folder" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox but on Linux")
def test_a_recipe_whose_reward_runs_programs_needs_a_sandbox(tmp_path, monkeypatch):
    machine = Machine(gpus=[], other="", cores=2, memory=2**33, instructions=[])
    path = Path(write_recipe(tmp_path, stage="grpo", reward_funcs=["code_tests"]))
    (found,) = (need for need in needs_of(path, machine, Hub()) if need.what == "sandbox")
    assert found.met and "Python 3" in found.said
    monkeypatch.setattr(probing, "_found", {})
    monkeypatch.setattr(probing, "backends", lambda: [Bubblewrap("/bin/false")])
    (found,) = (need for need in needs_of(path, machine, Hub()) if need.what == "sandbox")
    assert not found.met and "/bin/false" in found.said and "apt-get install bubblewrap" in found.remedy
    other = Path(write_recipe(tmp_path, "other", stage="grpo", reward_funcs=["math_answer"]))
    assert "sandbox" not in [need.what for need in needs_of(other, machine, Hub())]


def test_gpus_are_counted_and_their_memory_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# Hardware: 4 GPUs with 80 GB\n" + Path(write_recipe(tmp_path)).read_text())
    for count, memory, met in ((4, 79.2, True), (3, 79.2, False), (4, 39.4, False)):
        gpus = [Gpu("A100", int(memory * 2**30), "8.0", True)] * count
        machine = Machine(gpus, other="", cores=8, memory=2**36, instructions=[])
        need = needs_of(path, machine, Hub())[0]
        assert (need.met, need.what) == (met, "hardware 4 GPUs with 80 GB") and f"{count} x A100" in need.said


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for GPUs that are not there")
def test_the_hardware_that_the_header_asks_for(tmp_path, tiny_model_path, capsys):
    path = Path(write_recipe(tmp_path, model_name_or_path=tiny_model_path))
    for asked, code in (("2 CPU cores or any GPU", 0), ("1 GPU", 1), ("8 GPUs with 80 GB.", 1)):
        path.write_text(f"# Hardware: {asked}\n{path.read_text()}")
        assert main(["doctor", str(path)]) == code
        assert ("not ok  hardware " + asked.rstrip(".") in capsys.readouterr().out) == bool(code)
        path.write_text(path.read_text().partition("\n")[2])


def test_a_missing_package_and_versions_that_do_not_fit(tmp_path, tiny_model_path):
    packages = site(
        tmp_path / "site",
        *("bitsandbytes", "trackio"),
        vllm="Version: 0.31.0\nRequires-Dist: transformers<5.20,>=5\nRequires-Dist: xgrammar==0.2.8",
        ray="Version: 2.9.0",
        torchvision="Version: 0.28.0",
        torch="Version: 2.13.0+cpu",
    )
    (packages / "torch").symlink_to(SITE / "torch")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{packages}:{ROOT}"
    recipe = write_recipe(
        tmp_path,
        model_name_or_path=tiny_model_path,
        load_in_4bit=True,
        use_peft=True,
        report_to=["trackio"],
        use_vllm=True,
        vllm_mode="server",
        vllm_server_port=9,
    )
    done = hpt_trl("doctor", recipe, path=path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1, done.stderr
    for said in (
        "vllm 0.31.0 requires transformers<5.20,>=5; installed is " + version("transformers"),
        "vllm 0.31.0 requires xgrammar: missing",
        "outside of the allowed range: pip install 'ray[train]>=2.58,<3'",
        "torchvision 0.28.0 is built for CUDA",
        "torch 2.13.0+cpu is built for the CPU, and this machine has an NVIDIA GPU",
        "pip install --force-reinstall 'torch>=2.11'",
        "not ok  load_in_4bit: bitsandbytes is not installed",
        "ok  vLLM: vllm 0.31.0",
        "not ok  vLLM server 0.0.0.0:9: does not answer",
        "pip install 'bitsandbytes>=0.50,<1' 'trackio>=0.43,<1'",
    ):
        assert said in done.stdout, said
    # The run says the same, before a weight is loaded.
    recipe = write_recipe(tmp_path, model_name_or_path=tiny_model_path, output_dir="out", optim="paged_adamw_8bit")
    done = hpt_trl("run", recipe, path=path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "paged_adamw_8bit needs bitsandbytes, which is not installed here" in done.stderr


def test_an_installed_package_reads_its_own_metadata_and_says_without_torch_what_is_missing(tmp_path):
    packages = site(
        tmp_path / "site",
        "peft",
        hpt_trl="Version: 0.1.0\nRequires-Dist: torch>=2.11\nRequires-Dist: peft<1,>=0.21\n"
        "Requires-Dist: deepspeed<1,>=0.19; extra == 'deepspeed'\nRequires-Dist: pytest>=9; extra == 'dev'",
    )
    shutil.copytree(ROOT / "hpt_trl", packages / "hpt_trl")
    for words, code in ((["doctor"], 0), (["doctor", "quickstart"], 1)):
        done = hpt_trl(*words, path=str(packages), code="assert 'torch' not in sys.modules; ")
        assert done.returncode == code, done.stderr
        assert "Nothing runs without the packages above that are missing:\n  pip install 'peft>=0.21,<1'" in done.stdout
        assert "[deepspeed]" in done.stdout and "pytest" not in done.stdout


class FakeHub(BaseHTTPRequestHandler):
    """Knows me/open and me/rows, me/gated behind conditions, and takes its time for me/slow."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.removeprefix("/api/models/").removeprefix("/api/datasets/").partition("?")[0]
        if name == "me/slow":
            time.sleep(2 * TIMEOUT)
        known = name in ("me/open", "me/gated", "me/rows")
        body = json.dumps({"id": name, "gated": "auto" if name == "me/gated" else False} if known else {}).encode()
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_models_of_the_hub(tmp_path):
    for name, prefix in (("cached", ""), ("cached-adapter", "adapter_")):
        place = tmp_path / f"home/hub/models--me--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        snapshot = place / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / f"{prefix}config.json").write_text("{}")
        (snapshot / f"{prefix}model.safetensors").write_text("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ("cached", "open", "gated", "nothing", "slow", "late", "cached-adapter")
    recipes = [write_recipe(tmp_path, name, model_name_or_path=f"me/{name}", dataset_name="me/rows") for name in names]
    address = f"http://127.0.0.1:{server.server_port}"
    variables = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    try:
        done = hpt_trl("doctor", *recipes, path=f"{SITE}:{ROOT}", HF_HUB_OFFLINE="0", **variables)
    finally:
        server.shutdown()
    assert done.returncode == 1, done.stderr
    for said in (
        "cached.yaml: can run here",
        "    ok  model me/cached: in the Hub's cache",
        "    ok  model me/cached-adapter: in the Hub's cache",
        "open.yaml: can run here",
        f"    ok  model me/open: on {address}, to be downloaded",
        f"    ok  data me/rows: on {address}",
        f"not ok  model me/gated: on {address}, gated: accept its conditions there, then hf auth login",
        f"not ok  model me/nothing: not on {address}",
        f"not ok  model me/slow: not in the cache; {address} did not answer within 3 s",
        "with the network: hf download me/slow",
        # It is asked once.
        f"not ok  model me/late: not in the cache; {address} did not answer within 3 s",
    ):
        assert said in done.stdout, (said, done.stdout)
    assert not [path for path in FakeHub.asked if "cached" in path or "late" in path]
    done = hpt_trl("doctor", recipes[1], path=f"{SITE}:{ROOT}", HF_HUB_OFFLINE="1", **variables)
    assert done.returncode == 1
    assert "model me/open: not in the cache; the network was not tried (HF_HUB_OFFLINE is set)" in done.stdout
