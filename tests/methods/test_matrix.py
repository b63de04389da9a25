"""Every stage under every profile: the weights of one process, a model that loads, and runs that go on.

What each cell shows, through `hpt-trl run` in real processes over gloo: the distributed type and the number of
processes are what the profile says; the weights after 3 steps, clipped gradients and held-out rows included, are those
of one process at the same global batch; the files that were saved load and generate. `-resumed` runs go on from the
second step of another run, whose weights they must reach. `-sampled` runs draw their rollouts themselves; those of
`-acted` act in an environment that shows images.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from hpt_trl.models.value_model import HeadSettings, load_value_model, new_value_model
from hpt_trl.recipes.profiles import find_profile
from tests.helpers.acted import KINDS, room_rows
from tests.helpers.pretraining import PRETRAINING
from tests.helpers.processes import ROOT, free_port
from tests.helpers.shipped import save_shipping_model
from tests.helpers.stage_runs import KEYS, LORA, sums
from tests.helpers.tiny import save_tiny_model
from tests.helpers.value_models import save_value_model

# Largest distance of two updates, as a share of the update. Measured: 2e-7 to 8e-7 (float32, other orders of adding).
TOLERANCE = 5e-6

# Profile -> distributed type. `one` is a plain process, `cpu` is DDP.
PROFILES = {"one": "NO", "cpu": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
RL = {"num_generations": 2, "max_completion_length": 8, "reward_funcs": ["tests.helpers.stage_runs.remainder"]}
STAGES = {
    "pretrain": PRETRAINING,
    "sft": {"evaluations": ["judged.yaml"]},
    "dpo": {},
    "reward": {},
    # Dropout would draw other numbers in each process.
    "critic": {"dataset_layout": "comparisons", "value_head_dropout": 0.0, "head_learning_rate": 2e-2},
    "rho1": {"select_ratio": 0.6},
    "mtp": {"n_future_tokens": 3, "head_learning_rate": 3e-2, "head_weights": "decay:0.6", "weighting": "verifiable"},
    "grpo": RL | {"beta": 0.1},
    "hpt": RL | {"success_threshold": 3.0},
    "ppo": RL,
}
ONLINE = {"reference_mode": "online", "selection_scope": "global"}
ROOMS = {
    "environment": "tests.helpers.acted.Rooms",
    "environment_options": {"pictures": True},
    "max_turns": 3,
    "max_completion_length": 120,
    "reward_funcs": ["tests.helpers.acted.said_reward"],
    "success_threshold": 1.0,
}
# Settings that touch sharded weights in ways of their own.
VARIANTS = {
    "ppo-lora": LORA,
    "critic-lora": LORA,
    "ppo-value": {},  # a value model of its own
    "ppo-head": {"critic": "head", "critic_calibration": True, "critic_learning_rate": 3e-2},
    "ppo-lora-own": LORA | {"critic": "value_model", "critic_calibration": True, "gradient_checkpointing": True},
    "hpt-lora": LORA | {"gradient_checkpointing": True},
    "rho1-online": ONLINE,
    "mtp-lora": LORA | {"gradient_checkpointing": True, "weighting": "uniform"},
    "mtp-residual": {"head_init": "zero_residual", "detach_trunk": True, "value_mode": "online", "max_grad_norm": 0.0},
    "mtp-detached": {"detach_trunk": True, "weighting": "uniform"},
    "mtp-rho1": {"weighting": "rho1", "select_ratio": 0.6, "reference_mode": "online"},
    # Layers of its checkpoint, which are spread and gathered with the model.
    "mtp-shipped": {"shipped_heads": "train", "n_future_tokens": 2, "weighting": "uniform"},
    "ppo-sampled": {"eval_samples": 2},
    # A head of its own, which is gathered with the last norm.
    "sft-untied": {},
    "hpt-untied": RL | {"success_threshold": 3.0},
    "hpt-acted": ROOMS,
    # Rollouts of the two processes end at different turns.
    "hpt-acted-sampled": ROOMS | {"eval_samples": 2},
}
RESUMED = ["sft", "critic", "hpt", "ppo", "mtp"]
MEASURED = ["pretrain", "sft", "dpo", "reward", "critic", "rho1", "mtp"]  # on held-out rows


def recipes(folder: Path, names: list[str], models: dict[str, str]) -> list[Path]:
    """Writes the recipes of one launch; their outputs lie beside them, under their names."""
    rows = sums(30)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rooms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in room_rows(KINDS * 7).to_list()))
    texts = ({"text": f"{row['prompt']} {row['completion']}"} for row in rows)
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    # The device is the profile's business here; an epsilon that size lets no rounding decide on a step.
    shared = {key: value for key, value in KEYS.items() if key != "use_cpu"}
    shared |= {"global_batch_size": 8, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    shared |= {"max_steps": 3, "learning_rate": 1e-2, "adam_epsilon": 1e-3, "test_split_size": 6}
    judged = {"stage": "evaluate", "dataset_name": str(folder / "sums.jsonl"), "max_rows": 5, "dtype": "float32"}
    judged |= {"model_name_or_path": models["model"], "output_dir": "elsewhere", "max_completion_length": 4}
    judged |= {"success_threshold": 3.0}
    judged |= {"reward_funcs": RL["reward_funcs"], "measures": ["avg@k", "perplexity"], "per_device_eval_batch_size": 2}
    (folder / "judged.yaml").write_text(yaml.safe_dump(judged))
    paths = []
    for name in names:
        stage = name.partition("-")[0]
        data = folder / f"{'texts' if stage == 'rho1' else 'rooms' if 'acted' in name else 'sums'}.jsonl"
        values = shared | {"stage": stage, "dataset_name": str(data), "model_name_or_path": models["model"]}
        values |= {"output_dir": str(folder / name)} | STAGES[stage] | VARIANTS.get(name, {})
        if "rho1" in name:
            values |= {"reference_model_name_or_path": models["reference"]}
        if "untied" in name:
            values |= {"model_name_or_path": models["untied"]}
        if "acted" in name:
            values |= {"model_name_or_path": models["seeing"]}
        if name == "mtp-shipped":
            values |= {"model_name_or_path": models["shipping"]}
        if name == "ppo-value":
            values |= {"value_model_name_or_path": models["reference"]}
        if values.get("weighting") == "verifiable":
            values |= {"value_model_name_or_path": models["value"], "value_cache_dir": str(folder / "values")}
        if name in RESUMED:
            values |= {"save_strategy": "steps", "save_steps": 2}
        if name.endswith("-resumed"):
            values |= {"resume_from_checkpoint": str(folder / stage / "checkpoint-2")}
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return paths


def launch(profile: str, folder: Path, names: list[str], models: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """Runs the recipes under a profile; returns for each what its processes held, see tests/helpers/matrix_run.py."""
    folder.mkdir()
    processes = 1 if profile == "one" else 2
    words = [PROFILES[profile], str(processes)]
    # A process that is ahead would find the store of the run before at a port that comes twice.
    ports: set[int] = set()
    while len(ports) < len(names):
        ports.add(free_port())
    for port, path in zip(ports, recipes(folder, names, models), strict=True):
        words += [str(port), str(path)]
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["accelerate.commands.launch", "--config_file", str(find_profile(profile)), "--num_processes", "2"]
        command += ["--main_process_port", "0", "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    with open(folder / "output.txt", "w") as output:
        subprocess.run(
            [*command, "tests.helpers.matrix_run", *words],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            timeout=900,
        )
    said = (folder / "output.txt").read_text()[-3000:]
    # A kernel that is compiled takes a minute of each first run.
    assert not (folder / "compiled").exists()
    held: dict[str, list[dict[str, float]]] = {}
    for name in names:
        for rank in range(processes):
            outcome = folder / f"{name}.outcome-{rank}"
            code, trace, shares = json.loads(outcome.read_text()) if outcome.exists() else (None, None, {})
            assert code == 0, f"{profile}, {name}, process {rank}: {trace or said}"
            held.setdefault(name, []).append(shares)
    return held


@pytest.fixture(scope="session")
def one_process(tmp_path_factory, tiny_model_path, reference_model_path, vlm_path) -> tuple[Path, dict[str, str]]:
    """The runs in one process, and the models they start from; made once for all workers of the test run."""
    shared = (
        tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.mktemp("m")
    )
    folder, done = shared / "matrix-one", shared / "matrix-models.json"
    with FileLock(shared / "matrix.lock"):
        if not done.exists():
            models = {"model": tiny_model_path, "reference": reference_model_path}
            models["seeing"], models["untied"] = vlm_path, save_tiny_model(shared / "matrix-untied", tied=False)
            models["shipping"] = save_shipping_model(shared / "matrix-shipping", "mellum")
            models["value"] = save_value_model(reference_model_path, shared / "matrix-value", scale=0.5)
            launch("one", folder, [*STAGES, *VARIANTS], models)
            done.write_text(json.dumps(models))
    return folder, json.loads(done.read_text())


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's folder with value head and further heads; a tied head, which some write out, left out."""
    names = ("model*.safetensors", "adapter_model.safetensors", "value_head/value_head.safetensors")
    names += ("future_heads/model.safetensors",)
    found = {key: value for name in names for file in folder.glob(name) for key, value in load_file(file).items()}
    head = found.get("lm_head.weight")
    embeddings = [value for key, value in found.items() if key.endswith("embed_tokens.weight")]
    if head is not None and torch.equal(head, embeddings[0]):
        del found["lm_head.weight"]
    return found


def distance(folder: Path, expected: Path, start: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of two updates over the norm of the second."""
    ours, theirs = saved(folder), saved(expected)
    assert ours.keys() == theirs.keys()
    # Of an adapter the half that starts at zero: its update is known.
    theirs = {name: value for name, value in theirs.items() if "lora_A" not in name}
    difference = sum((ours[name].double() - theirs[name]).square().sum() for name in theirs)
    # Heads for future tokens begin as the last layer, or at zero.
    begun = start | {
        name: start[last]
        for name in theirs
        if (last := f"model.layers.1.{name.partition('.')[2].partition('.')[2]}") in start
    }
    update = sum((value.double() - begun.get(name, 0.0)).square().sum() for name, value in theirs.items())
    assert update > 0
    return float((difference / update).sqrt())


def critic_start(path: str) -> dict[str, torch.Tensor]:
    """What a critic begins with: the trunk, and a head that is drawn from the run's seed."""
    set_seed(KEYS["seed"])
    model = new_value_model(path, lambda width: HeadSettings(width, "mlp"), dtype=torch.float32)
    return {**model.trunk.state_dict(), **model.head.state_dict()}


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "one"])
def test_a_profile_trains_what_one_process_trains(tmp_path, one_process, profile):
    one, models = one_process
    folder, resumed = tmp_path / profile, [f"{name}-resumed" for name in RESUMED]
    # Half of the weights lies in each of the two processes, or all of them.
    spreads = profile in ("fsdp2", "zero3")
    names = [*STAGES, *(VARIANTS if spreads else [])]
    held = launch(profile, folder, [*names, *resumed], models)
    for name, shares in held.items():
        for found in shares:
            assert "model" in found, name
            assert found.pop("zero_stage", None) == {"zero2": 2, "zero3": 3}.get(profile), name
            if name != "ppo-value":
                # A head of one row lies in one process whole.
                found.pop("critic", None)
            assert name != "ppo-value" or "critic" in found
            assert name not in ("dpo", "grpo", "ppo") or "reference" in found
            assert all(value == pytest.approx(0.5, abs=0.05) if spreads else value == 1 for value in found.values()), (
                name,
                found,
            )
    start = load_file(Path(models["model"]) / "model.safetensors")
    compared = [name for name in names if not name.endswith("-sampled")]
    if profile == "zero3":
        # DeepSpeed clips detached heads and trunk by one norm.
        compared.remove("mtp-detached")
    starts = {"pretrain": {}, "critic": critic_start(models["model"]), "critic-lora": critic_start(models["model"])}
    starts |= {"mtp-shipped": saved(Path(models["shipping"])), "hpt-acted": saved(Path(models["seeing"]))}
    starts |= dict.fromkeys(("sft-untied", "hpt-untied"), saved(Path(models["untied"])))
    far = {name: distance(folder / name, one / name, starts.get(name, start)) for name in compared}
    assert not {name: value for name, value in far.items() if not value < TOLERANCE}, far
    for name in RESUMED:
        ours, theirs = saved(folder / f"{name}-resumed"), saved(folder / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    for name in STAGES:
        results = json.loads((folder / name / "results.json").read_text())
        assert results["hardware"]["processes"] == 2 and results["steps"] == 3
        expected = json.loads((one / name / "results.json").read_text())
        if name in MEASURED:
            for when in ("before", "after"):
                losses = [found[when]["held_out"]["loss"] for found in (results, expected)]
                assert losses[0] == pytest.approx(losses[1], rel=1e-4), name
        if name == "sft":
            # Completions and figures of an evaluation that the recipe names.
            for when in ("before", "after"):
                sides = [folder / name, one / name]
                ours, theirs = ((side / "evaluations/judged" / when / "samples.jsonl").read_text() for side in sides)
                assert ours == theirs and ours.count("\n") == 5
                ours, theirs = (found[when]["evaluations"]["judged"] for found in (results, expected))
                assert ours.pop("perplexity") == pytest.approx(theirs.pop("perplexity"), rel=1e-4)
                assert ours["avg@1"] == theirs["avg@1"] and ours["scored_tokens"] == theirs["scored_tokens"]
        if name == "reward":
            model = AutoModelForSequenceClassification.from_pretrained(folder / name)
            assert model(torch.arange(8)[None]).logits.isfinite().all()
        elif name == "critic":
            model = load_value_model(str(folder / name), trainable=False)
            assert model(torch.arange(8)[None]).token_values.isfinite().all()
            figures = [found["critic"]["baselines"]["likelihood"]["accuracy"] for found in (results, expected)]
            assert figures[0] == figures[1]
        else:
            model = AutoModelForCausalLM.from_pretrained(folder / name)
            assert model.generate(torch.arange(8)[None], max_new_tokens=4, min_new_tokens=4).shape == (1, 12)
    if not spreads:
        return
    for name in ("ppo-sampled", "hpt-acted-sampled"):
        sampled = json.loads((folder / name / "results.json").read_text())
        assert sampled["after"]["samples"] == 2 and sampled["tokens"]["training"] > 0, name


def test_fsdp1_is_refused_on_a_cpu(tmp_path, tiny_model_path):
    if torch.accelerator.is_available():
        pytest.skip("for machines without accelerator")
    path = recipes(tmp_path, ["sft"], {"model": tiny_model_path})[0]
    command = [sys.executable, "-m", "hpt_trl", "run", str(path), "--accelerate", "fsdp1", "--num_processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "fsdp1 needs GPUs" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "sft").exists()
