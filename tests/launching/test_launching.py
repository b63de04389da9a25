"""Profiles and the command line's launch options: what is read, started, refused, and what a killed process leaves."""

import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import AutoModelForCausalLM

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.launching.accelerate import _how_to_go_on, check_devices, check_file, launch
from hpt_trl.launching.options import LaunchOptions, pipeline_words, split_launch_options
from hpt_trl.recipes.profiles import Profile, find_profile, launched_profile, profiles_folder, read_profile
from hpt_trl.recipes.resolving import read_recipe
from tests.helpers.processes import ROOT, hpt_trl

KEYS = {
    "stage": "sft",
    "dtype": "float32",
    "global_batch_size": 8,
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
    "learning_rate": 3e-3,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "seed": 3,
}


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe over a few sums and returns its path."""
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(24)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes) -> str:
        values = {**KEYS, "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "sums.jsonl")}
        values |= {"output_dir": str(tmp_path / "out"), **changes}
        path = tmp_path / "sums.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def config(tmp_path):
    """Writes an accelerate config and returns its path."""

    def write(text: str, **keys) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text or yaml.safe_dump({"num_processes": 2, **keys}))
        return path

    return write


def test_the_shipped_profiles(tmp_path):
    names = {"single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp1", "fsdp2", "cpu", "multi_node"}
    assert {path.stem for path in profiles_folder().glob("*.yaml")} == names
    found = {name: read_profile(find_profile(name), 1 if name == "single_gpu" else 4) for name in names}
    for name, profile in found.items():
        check_file(profile)
        # The recipe's own settings decide on these.
        assert profile.mixed_precision == "no" and profile.gradient_accumulation_steps is None, name
        text = find_profile(name).read_text()
        assert f"--accelerate {name}" in text, "its comment shows how it is used"
    assert [found[name].distributed_type for name in ("single_gpu", "cpu", "multi_node")] == ["NO", *["MULTI_GPU"] * 2]
    assert [found[f"zero{stage}"].zero_stage for stage in (1, 2, 3)] == [1, 2, 3]
    assert [found[f"fsdp{version}"].fsdp_version for version in (1, 2)] == [1, 2]
    assert found["multi_node"].num_machines == 2 and found["multi_node"].processes_per_machine == 2
    assert found["cpu"].use_cpu and not found["multi_gpu"].use_cpu
    # A file goes before a name, beside the pipeline first.
    (tmp_path / "zero3").write_text((profiles_folder() / "cpu.yaml").read_text())
    assert read_profile(find_profile("zero3", beside=tmp_path)).use_cpu


SECTIONS = {
    "grad_op": {"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP", "fsdp_offload_params": True},
    "no_reshard": {"fsdp_version": 2, "fsdp_reshard_after_forward": False},
    "offload": {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "cpu"},
    "accumulated": {"zero_stage": 2, "gradient_accumulation_steps": 4, "gradient_clipping": 0.5},
}


@pytest.mark.parametrize("name", ["multi_gpu", "zero1", "zero2", "zero3", "fsdp1", "fsdp2", *SECTIONS])
def test_a_process_knows_its_profile(config, monkeypatch, name):
    """From what accelerate itself sets for its processes."""
    if name in SECTIONS:
        kind = "deepspeed" if "zero_stage" in SECTIONS[name] else "fsdp"
        path = config("", distributed_type=kind.upper(), **{f"{kind}_config": SECTIONS[name]})
    else:
        path = find_profile(name)
    words = ["--config_file", str(path), "--num_processes", "2", "--main_process_port", "0", "-m", "hpt_trl"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ""
    environment = prepare_multi_gpu_env(arguments)
    if arguments.use_deepspeed:
        _, environment = prepare_deepspeed_cmd_env(arguments)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    expected = dataclasses.replace(read_profile(path, 2), name="", path=None, machine_rank=None)
    assert launched_profile(2) == expected
    if name in SECTIONS:
        assert expected != read_profile(find_profile("fsdp2" if kind == "fsdp" else "zero2"), 2)


@pytest.mark.parametrize("given,expected", [(False, "no"), (True, "bf16")])
def test_the_recipe_decides_on_the_precision(recipe, monkeypatch, given, expected):
    # What `accelerate launch` sets for the other answer.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if given else "bf16")
    assert read_recipe(Path(recipe(bf16=given))).config.mixed_precision == expected


def test_a_deepspeed_file_is_read(config, tmp_path):
    zero = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": "auto"}))
    path = config(
        "", distributed_type="DEEPSPEED", deepspeed_config={"deepspeed_config_file": str(tmp_path / "ds.json")}
    )
    profile = read_profile(path)
    assert (profile.zero_stage, profile.offload_optimizer, profile.offload_params) == (1, True, False)


def test_options_are_told_from_the_recipes_keys():
    words = "--max_steps 3 --accelerate zero3 --num-processes=8 --reward_funcs a b --main_process_port 1 --use_peft"
    options, rest = split_launch_options(words.split())
    assert options == LaunchOptions(accelerate="zero3", num_processes=8, main_process_port=1)
    assert rest == ["--max_steps", "3", "--reward_funcs", "a", "b", "--use_peft"]
    assert split_launch_options([*options.words(), *rest]) == (options, rest)
    options, _ = split_launch_options(["--launcher", "ray", "--num_workers", "2", "--max_failures", "0"])
    assert options.num_workers == 2 and options.max_failures == 0
    words = ["--accelerate", "cpu", "--num_processes", "2", "--sft.max_steps", "1"]
    assert pipeline_words(words) == ["--accelerate_config", *words[1:]]
    with pytest.raises(UserError, match="--num_machines: a pipeline"):
        pipeline_words(["--num_machines", "2"])


MACHINES = "--accelerate multi_node --num_processes 2 --main_process_ip 127.0.0.1 --main_process_port"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--accelerate zero4", "there is no file zero4. Did you mean `zero3`? Names: cpu, fsdp1"),
        ("--accelerate", "--accelerate: there is no value; write a name"),
        ("--num_processes 2", "--num_processes: it needs a profile"),
        ("--accelerate cpu --num_processes 0", "--num_processes: 0 is not allowed; write a whole number from 1 on"),
        ("--accelerate cpu --num_processes two", "--num_processes: two is not allowed"),
        ("--accelerate cpu --main_process_port 65536", "write a whole number from 0 to 65535"),
        ("--accelerate single_gpu --num_processes 2", "its `distributed_type` is NO"),
        ("--accelerate cpu --num_workers 2", "--num_workers: it is Ray's"),
        ("--launcher slurm", "write accelerate or ray"),
        ("--launcher ray --num_processes 2", "--num_processes: it is accelerate's"),
        ("--accelerate fsdp2 --machine_rank 1", "--machine_rank: it is for several machines; add `--num_machines N`"),
        (f"{MACHINES} 29500", "--machine_rank: 2 machines need it"),
        (f"{MACHINES} 29500 --machine_rank 2", "--machine_rank: allowed: 0 to 1 for 2 machines"),
        (f"{MACHINES} 0 --machine_rank 0", "several need one that all know"),
        (
            f"{MACHINES} 1 --num_machines 3 --machine_rank 0",
            "among 3 machines; `num_processes` counts those of all",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(recipe, tmp_path, capfd, words, message):
    assert main(["run", recipe(), *words.split()]) == 2
    printed = capfd.readouterr()
    assert message in printed.err and "starting" not in printed.out
    assert not (tmp_path / "out").exists()


FSDP = "{distributed_type: FSDP, num_processes: 2,"
ZERO = "{distributed_type: DEEPSPEED, num_processes: 2,"
MACHINE = "{distributed_type: MULTI_GPU, num_processes: 2,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_processes: [2", r"config.yaml, line \d: the accelerate config cannot be read"),
        ("- 2", "a mapping of `key: value` lines"),
        ("num_processes: 2", "`distributed_type`: there is none; allowed: NO, MULTI_GPU"),
        ("{distributed_type: MULTI_GPUS, num_processes: 2}", "MULTI_GPUS; .* Did you mean `MULTI_GPU`"),
        ("{distributed_type: MULTI_CPU, num_processes: 2}", "silently start one process for MULTI_CPU"),
        ("{distributed_type: MULTI_GPU}", "`num_processes`: it is not set, and --num_processes is not given"),
        ("{distributed_type: MULTI_GPU, num_processes: 0}", "`num_processes`: 0 is not allowed"),
        ("{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: no}", 'write "no"'),
        ("{distributed_type: FSDP, num_processes: 2, use_cpu: true}", "with it FSDP would not shard"),
        ("{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {zero_stage: 4}}", "4 is not allowed"),
        (f"{FSDP} fsdp_config: [1, 2]}}", "`fsdp_config`: .* allowed: a mapping of `key: value` lines"),
        (f"{FSDP} fsdp_config: {{fsdp_version: two}}}}", "`fsdp_version`: two is not allowed; allowed: a whole number"),
        (f"{ZERO} deepspeed_config: hello}}", "`deepspeed_config`: hello is not allowed; allowed: a mapping"),
        (
            f"{ZERO} deepspeed_config: {{gradient_accumulation_steps: many}}}}",
            "`gradient_accumulation_steps`: many is not",
        ),
        (f"{ZERO} deepspeed_config: {{deepspeed_config_file: ds.json}}}}", r"ds.json, `offload_optimizer`: cpu is not"),
        (f"{MACHINE} main_process_port: 70000}}", "`main_process_port`: 70000 is not allowed; .* from 0 to 65535"),
        (f"{MACHINE} main_process_ip: 10.1}}", "`main_process_ip`: 10.1 is not allowed"),
        (f"{MACHINE} machine_rank: first}}", "`machine_rank`: first is not allowed"),
        (f"{MACHINE} mixed_precision: bf17}}", "`mixed_precision`: bf17 is not allowed; allowed: no, bf16"),
        ("{distributed_type: MULTI_GPU, num_processes: 2, num_process: 2}", r"unknown keys \(\['num_process'\]\)"),
    ],
)
def test_broken_configs_are_refused(recipe, config, capfd, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}')
    assert main(["check", recipe(), "--accelerate", str(config(text))]) == 2
    assert re.search(message, capfd.readouterr().err)


def test_what_cannot_be_started_is_refused_before(recipe, capfd, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words in (f"--accelerate cpu --main_process_port {port}", f"{MACHINES} {port} --machine_rank 0"):
            assert main(["run", recipe(), *words.split()]) == 2
            assert f"another process on this machine holds port {port}; name another one" in capfd.readouterr().err
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert main(["run", recipe(), "--accelerate", "zero2", "--num_processes", "2"]) == 2
    assert "pip install 'hpt-trl[deepspeed]'" in capfd.readouterr().err
    for words in ("--accelerate zero2 --launcher ray --num_workers 2", "--launcher ray"):
        assert main(["check" if words == "--launcher ray" else "run", recipe(), *words.split()]) == 2
    assert "deepspeed" in (printed := capfd.readouterr().err) and "--launcher ray: add `--num_workers N`" in printed
    monkeypatch.setenv("RANK", "0")
    assert main(["run", recipe(), "--accelerate", "cpu"]) == 2
    assert "this process was started by a launcher (RANK is set)" in capfd.readouterr().err


def test_processes_need_a_gpu_each_where_there_are_some():
    two = Profile("fsdp2", None, "FSDP", num_processes=16, num_machines=2)
    check_devices(two, 8)
    check_devices(two, 0)
    check_devices(dataclasses.replace(two, use_cpu=True), 1)
    with pytest.raises(UserError, match=r"fsdp2 starts 8 processes on this machine, which has 4 GPUs.*num_processes 8"):
        check_devices(two, 4)


def test_a_check_is_for_the_processes_asked_about(recipe, config, capfd):
    path = recipe()
    assert main(["check", path, "--accelerate", "zero3", "--num_processes", "4"]) == 0
    assert "4 processes x 2 rows x 1 accumulation steps = 8" in capfd.readouterr().out
    profile = read_profile(find_profile("zero3"), 2)
    found = read_recipe(Path(path), [], profile=profile)
    assert found.profile == profile and found.world_size == 2 and found.config.gradient_accumulation_steps == 2
    assert main(["check", path, "--accelerate", "zero3", "--num_processes", "3"]) == 2
    assert "`global_batch_size`: 8 rows do not divide" in capfd.readouterr().err
    # What `accelerate config` writes, and DeepSpeed would refuse after loading.
    section = {"zero_stage": 2, "gradient_accumulation_steps": 1}
    stated = config("", distributed_type="DEEPSPEED", deepspeed_config=section)
    assert main(["check", path, "--accelerate", str(stated)]) == 2
    assert "`global_batch_size`: `gradient_accumulation_steps` is 2, but" in capfd.readouterr().err
    assert main(["check", path, "--accelerate", str(stated), "--num_processes", "4"]) == 0


@pytest.fixture
def run():
    """Starts `hpt-trl` with the words; what still runs at the end of the test is ended."""
    started = []

    def start(*words: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "hpt_trl", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def ranks_of(path: str) -> dict[int, int]:
    """Rank -> pid of the processes that run a recipe."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if path.encode() in words and b"run" in words:
                environment = dict(item.split(b"=", 1) for item in (folder / "environ").read_bytes().split(b"\0")[:-1])
                if b"RANK" in environment:
                    found[int(environment[b"RANK"])] = int(folder.name)
        except (OSError, ValueError):
            # It ended in the meantime.
            continue
    return found


def test_a_killed_process_ends_the_run_and_the_checkpoint_goes_on(recipe, run, tmp_path):
    out = tmp_path / "out"
    path = recipe(max_steps=5000, save_strategy="steps", save_steps=5, save_total_limit=2)
    launched = run("run", path, "--accelerate", "cpu", "--num_processes", "2")
    wait_for(lambda: (out / "checkpoint-10" / "trainer_state.json").exists(), 120)
    ranks = ranks_of(path)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    # The stated time.
    printed, _ = launched.communicate(timeout=60)
    assert launched.returncode == 128 + signal.SIGKILL and not ranks_of(path)
    assert re.search(
        r"starting: accelerate launch --config_file \S*cpu.yaml --num_processes 2 --num_machines 1 "
        rf"--main_process_port 0 -m hpt_trl run {path}\n",
        printed,
    )
    assert f"error: process 1 (pid {ranks[1]}) was ended by SIGKILL from outside" in printed
    message, _, advice = printed.partition("error: the run ended with exit code 137. Go on from its last complete")
    checkpoint = re.search(r"checkpoint, (\S+), with:\n  (hpt-trl .*)\n", advice)
    assert checkpoint and "ChildFailedError" not in message
    AutoModelForCausalLM.from_pretrained(checkpoint[1])
    last = int(checkpoint[1].rpartition("-")[2])
    # As it stands there, only shorter.
    again = run(*shlex.split(checkpoint[2])[1:], "--max_steps", str(last + 2))
    printed, _ = again.communicate(timeout=200)
    assert again.returncode == 0, printed
    found = json.loads((out / "results.json").read_text())
    assert found["steps"] == last + 2 and found["hardware"]["processes"] == 2


def test_a_run_that_cannot_go_on_is_told_how_it_starts_anew(recipe, tmp_path):
    path = recipe()
    assert _how_to_go_on(path, [], ["run", path]).endswith(": the same command starts it anew.")
    # A run does not begin over what it left unasked.
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    assert _how_to_go_on(path, [], ["run", path]).endswith(": the same command with `--overwrite true` starts it anew.")


def test_a_launcher_that_is_told_to_end_leaves_no_process(recipe, run):
    path = recipe(max_steps=5000)
    launched = run("run", path, "--accelerate", "cpu")
    wait_for(lambda: len(ranks_of(path)) == 2, 60)
    launched.terminate()
    launched.communicate(timeout=60)
    assert launched.returncode == 128 + signal.SIGTERM
    wait_for(lambda: not ranks_of(path), 10)


def test_an_interrupt_ends_all_processes(recipe, run, tmp_path):
    path = recipe(max_steps=5000)
    launched = run("run", path, "--accelerate", "cpu", start_new_session=True)
    wait_for((tmp_path / "out" / "metrics.jsonl").exists, 120)
    assert len(ranks_of(path)) == 2
    # What a terminal does at Ctrl-C.
    os.killpg(launched.pid, signal.SIGINT)
    printed, _ = launched.communicate(timeout=60)
    assert launched.returncode == 130 and "Traceback" not in printed and printed.count("interrupted") == 1
    assert re.search(r"\ninterrupted\. .* (Go on|Start anew) with:\n  hpt-trl run .*\n$", printed)
    wait_for(lambda: not ranks_of(path), 10)


def test_a_mistake_is_told_once(recipe, run):
    launched = run("run", recipe(), "--accelerate", "cpu", "--learning_rte", "1")
    printed, _ = launched.communicate(timeout=120)
    assert launched.returncode == 2 and "Traceback" not in printed
    assert printed.count("error:") == 1 and "Did you mean `learning_rate`" in printed


def test_a_pipeline_starts_its_stages_by_a_profile(recipe, run, tmp_path, capfd):
    base = recipe(test_split_size=8, global_batch_size=4)
    chain = tmp_path / "chain.yaml"
    chain.write_text(f"stage: pipeline\noutput_dir: {tmp_path / 'chain'}\nstages:\n  sft: {{recipe: {base}}}\n")
    assert main(["check", str(chain), "--accelerate", "cpu", "--num_processes", "3"]) == 2
    assert "4 rows do not divide into 2 rows" in capfd.readouterr().err
    launched = run("run", str(chain), "--accelerate", "cpu", "--num_processes", "2", "--sft.max_steps", "1")
    printed, _ = launched.communicate(timeout=200)
    assert launched.returncode == 0, printed
    assert "starting: accelerate launch --config_file" in printed
    results = json.loads((tmp_path / "chain" / "sft" / "results.json").read_text())
    assert results["hardware"]["processes"] == 2
    assert results["command"].endswith("sft.yaml --max_steps 1 --accelerate cpu --num_processes 2")


LEAVING = """
import atexit
import os
import threading
import time
from pathlib import Path


def say(what):
    Path(__file__).with_name(f"{what}-{os.environ['RANK']}").touch()


class TakenApart:
    def __del__(self, say=say):
        say("taken-apart")


def upload():
    threading.main_thread().join()
    time.sleep(0.5)
    say("uploaded")


kept = TakenApart()
kept.itself = kept
atexit.register(say, "asked")
threading.Thread(target=upload).start()


def length(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]
"""


def test_a_process_of_several_is_not_taken_apart(recipe, tmp_path):
    """There gloo's threads may abort it after all is done; what a process waits for and asks at its end still is."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    path = recipe(stage="grpo", reward_funcs=["leaving.length"], num_generations=2, max_completion_length=4)
    command = [sys.executable, "-m", "hpt_trl", "run", path, "--accelerate", "cpu", "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["hardware"]["processes"] == 2
    for rank in (0, 1):
        said = {path.name for path in tmp_path.glob(f"*-{rank}")}
        assert said == {f"uploaded-{rank}", f"asked-{rank}"}


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--nonsense", 2), ("nonsense", 2), ("run", 2), ("list", 0)])
def test_a_process_of_several_ends_with_the_code_of_one(word, code):
    for count in "12":
        assert hpt_trl(word, WORLD_SIZE=count).returncode == code


@pytest.mark.parametrize(
    ("variable", "value"), [("WORLD_SIZE", "many"), ("WORLD_SIZE", ""), ("RANK", "-1"), ("LOCAL_WORLD_SIZE", "0")]
)
def test_a_count_of_processes_that_is_none_is_told(variable, value):
    done = hpt_trl("list", **{variable: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the environment variable {variable} is `{value}`; allowed: ")


def test_a_profile_that_the_run_would_replace_is_refused(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(KEYS | {"output_dir": str(tmp_path / "sft")}))
    config = tmp_path / "sft" / "config.json"
    config.write_text('{"distributed_type": "NO", "num_processes": 1, "use_cpu": true}')
    with pytest.raises(UserError, match=r"--accelerate: .*config\.json lies in the `output_dir` of this run"):
        launch("run", str(tmp_path / "sft.yaml"), ["--overwrite", "true"], LaunchOptions(accelerate=str(config)))
