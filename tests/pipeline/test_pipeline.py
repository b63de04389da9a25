"""Pipelines: what is refused before anything runs, a chain from start to end, and what is not run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.launching.processes import call
from hpt_trl.pipeline.checks import check
from hpt_trl.pipeline.reading import is_pipeline, read_plan
from hpt_trl.pipeline.record import plan_steps, read_record
from hpt_trl.pipeline.run import run
from hpt_trl.recipes.bundled import bundled_recipes
from hpt_trl.signals import ending_on_signals
from tests.helpers import stage_runs
from tests.helpers.processes import ROOT
from tests.helpers.trackers import read_tensorboard

KEYS = stage_runs.KEYS | {"per_device_eval_batch_size": 4, "max_steps": 2, "test_split_size": 6}
LORA = stage_runs.LORA


def many_words(completions, **columns) -> list[float]:
    """Fails while the variable says so, as a reward may that asks a server."""
    if os.environ.get("HPT_TRL_TEST_FAILS"):
        raise RuntimeError("the server is away")
    return [float(len(str(completion).split())) for completion in completions]


def removes_a_stage(completions, **columns) -> list[float]:
    shutil.rmtree(os.environ["HPT_TRL_TEST_REMOVES"], ignore_errors=True)
    return [float(len(str(completion))) for completion in completions]


@pytest.fixture
def pipeline(tmp_path, tiny_model_path):
    """Writes a recipe `base.yaml` over a few sums and a pipeline of the given stages; returns the pipeline's path."""
    rows = [
        {"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}.", "chosen": f"{i + 1}", "rejected": f"No, {i}"}
        for i in range(24)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"stage": "sft", **KEYS, "model_name_or_path": tiny_model_path, "output_dir": "elsewhere"}
    base["dataset_name"] = str(tmp_path / "sums.jsonl")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))

    def write(stages, **keys) -> Path:
        path = tmp_path / "chain.yaml"
        text = stages if isinstance(stages, str) else yaml.safe_dump(stages, sort_keys=False)
        head = {"stage": "pipeline", "output_dir": str(tmp_path / "out"), **keys}
        path.write_text(
            yaml.safe_dump(head, sort_keys=False) + "stages:\n" + "".join(f"  {x}\n" for x in text.splitlines())
        )
        return path

    return write


def actions(path: Path, *overrides: str) -> dict[str, str]:
    """What a start of the pipeline would do with each stage."""
    plan = read_plan(path, list(overrides))
    return {step.stage.name: step.action.name for step in plan_steps(plan, read_record(plan.output_dir))}


BASE = "recipe: base.yaml"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            f"a: {{{BASE}, model: from:b}}\nbb: {{{BASE}}}",
            r"line 4, `stages.a.model`: `from:b` names no stage of this pipeline. Did you mean `bb`\? Stages: a, bb",
        ),
        (f"a: {{{BASE}, model: from:a}}", "line 4, `stages.a.model`: the stage names its own output"),
        (
            f"a: {{{BASE}, model: from:c}}\nb: {{{BASE}, model: from:a}}\nc:\n  {BASE}\n  model: from:b",
            "line 4, `stages.a.model`: the stages use each other in a circle: a uses c uses b uses a",
        ),
        (
            f"a: {{{BASE}, model: from:nope}}\nb: {{{BASE}, model: from:c}}\nc: {{{BASE}, model: from:b}}",
            "line 4, `stages.a.model`: `from:nope` names no.*line 5, `stages.b.model`: .* in a circle: b uses c",
        ),
        (
            f"a: {{{BASE}}}\nb: {{{BASE}, stage: ppo, reward_model: from:a}}",
            "line 5, `stages.b.reward_model`: `a` is a `sft` stage.*no stage of that kind",
        ),
        (
            f"a: {{{BASE}, stage: reward}}\nb: {{{BASE}, model_name_or_path: from:a}}",
            "line 5, .*`a` is a reward model.*Did you mean `reward_model: from:a`",
        ),
        (
            f"a: {{{BASE}, stage: critic}}\nb: {{{BASE}, model: from:a}}",
            "line 5, .*`a` is a value model.*`value_model: from:a`",
        ),
        (
            f"a: {{{BASE}, stage: critic}}\nb: {{{BASE}, stage: ppo, reward_model: from:a}}",
            "line 5, .*a reward model comes from a `reward` stage",
        ),
        (f"a: {{{BASE}}}\na-merged: {{{BASE}}}", "its folder `a-merged` is also that of stage `a`"),
        (f"a: {{{BASE}, output_dir: b}}", "line 4, `stages.a.output_dir`: a stage writes to the folder of its name"),
        (f"a: {{{BASE}, model: x, model_name_or_path: y}}", "`model_name_or_path` is set as well"),
        ("a:", "line 4, `stages.a`: the stage is empty"),
        ("a: {model: x}", "line 4, `stages.a`: it says neither `recipe` nor `stage`"),
        ("a: {stage: sftt}", "line 4, `stages.a.stage`: there is no stage `sftt`. Did you mean `sft`"),
        ("a: {stage: pipeline}", "A pipeline is no stage of a pipeline"),
        ("a: {recipe: bsae.yaml}", "line 4, `stages.a.recipe`: there is no recipe `bsae.yaml`"),
        (f"a: {{{BASE}, measure: [x]}}", "line 4, `stages.a.measure`: write the name of one measure"),
        (f"a b: {{{BASE}}}", "a stage's name is letters"),
        (f"a: {{{BASE}}}\na: {{{BASE}}}", "line 5, `a`: the key is already set on line 4"),
        ("[]", "line 3, `stages`: a pipeline needs stages"),
        ("a: {stage: [sft]}", "line 4, `stages.a.stage`: there is no stage"),
        (f"a: {{recipe: {'x' * 400}}}", "line 4, `stages.a.recipe`: .*cannot be looked up"),
        (f"{'a' * 101}: {{{BASE}}}", "at most 100"),
        ("1:", "line 4, `stages.1`: the stage is empty"),
    ],
)
def test_mistakes_in_the_chain_are_named_by_line(pipeline, tmp_path, stages, message):
    with pytest.raises(UserError, match=rf"(?s)chain\.yaml.*{message}"):
        read_plan(pipeline(stages), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["x" * 300, "/proc/x", "chain.yaml/x", "a\0b"])
def test_an_output_folder_that_cannot_be_is_told(pipeline, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"chain\.yaml, line 2, `output_dir`: "):
        check(pipeline(f"a: {{{BASE}}}", output_dir=folder), [])


def test_names_are_texts_whatever_they_look_like(pipeline, tmp_path):
    plan = read_plan(pipeline(f"1: {{{BASE}}}\ntrue: {{{BASE}, model: from:1}}"), [])
    assert [stage.name for stage in plan.stages] == ["1", "true"]
    path = pipeline(f"a: {{{BASE}, 1: x, null: y}}")
    with pytest.raises(UserError, match=r"(?s)`stages.a.1`: .*`stages.a.null`: "):
        check(path, [])


def test_stages_that_are_merged_or_set_twice_are_the_last(pipeline):
    path = pipeline(f"a: {{{BASE}}}")
    path.write_text("<<: {stages: {b: {recipe: base.yaml}}}\n" + path.read_text())
    assert [stage.name for stage in read_plan(path, []).stages] == ["a"]
    path.write_text(path.read_text() + f"stages: {{c: {{{BASE}}}}}\n")
    with pytest.raises(UserError, match="`stages`: the key is already set on line 4"):
        check(path, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "3"], "--max_steps on the command line .*A key of a stage is written `--<stage>.max_steps`"),
        (["--sfft.max_steps", "3"], "there is no stage `sfft`. Did you mean `sft`"),
        (["--sft.model", "from:rewrad"], "--sft.model on the command line .*Did you mean `reward`"),
        (["--num_processes", "2"], "needs `accelerate_config`"),
        (["--accelerate_config", "zero4"], "there is no file zero4. Did you mean `zero3`"),
        (["--overwrite", "maybe"], "--overwrite on the command line .*allowed: true or false"),
        (["--outputdir", "x"], "Did you mean `output_dir`"),
    ],
)
def test_mistakes_on_the_command_line_are_named(pipeline, words, message):
    path = pipeline("sft: {recipe: base.yaml}\nreward: {recipe: base.yaml, stage: reward}")
    with pytest.raises(UserError, match=rf"(?s){message}"):
        read_plan(path, words)


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        (
            "lerning_rate: 1",
            [],
            r"chain\.yaml, line 8, `stages.second.lerning_rate`: there is no such key. Did you mean",
        ),
        ("max_steps: many", [], r"chain\.yaml, line 8, `stages.second.max_steps`: many is not allowed"),
        ("", ["--second.max_steps", "0"], r"--second.max_steps on the command line \(.*chain.yaml\): 0 "),
        ("dataset_name: gone.jsonl", [], "there is no file gone.jsonl"),
    ],
)
def test_check_names_the_place_in_the_pipeline(pipeline, tmp_path, line, words, message):
    path = pipeline(f"first: {{recipe: base.yaml}}\nsecond:\n  recipe: base.yaml\n  model: from:first\n  {line}")
    with pytest.raises(UserError, match=message):
        check(path, words)
    assert not (tmp_path / "out").exists()


def test_check_shows_the_order_and_writes_nothing(pipeline, tmp_path, capsys):
    assert main(["check", str(pipeline("b: {recipe: base.yaml, model: from:a}\na: {recipe: base.yaml}"))]) == 0
    printed = capsys.readouterr().out
    assert "[1/2] a: sft by " in printed and "[2/2] b: sft by " in printed and "from a; runs" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", [path for path in bundled_recipes() if is_pipeline(path)], ids=lambda path: path.stem)
def test_bundled_pipelines_are_whole(path, tmp_path):
    assert read_plan(path, ["--output_dir", str(tmp_path)]).stages


def test_a_chain_from_sft_to_grpo(pipeline, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    rl = {"recipe": "base.yaml", "stage": "grpo", "num_generations": 2, "max_completion_length": 8, "eval_samples": 4}
    rl |= {"report_to": "tensorboard", "run_name": "mine"}
    stages = {
        "grpo": {**rl, "model": "from:sft", "reward_model": "from:reward", "measure": "reward", "max_steps": 1},
        "sft": {"recipe": "base.yaml", **LORA, "save_strategy": "steps", "save_steps": 1, "report_to": "tensorboard"},
        "reward": {"recipe": "base.yaml", "stage": "reward", "model": "from:sft"},
    }
    path = pipeline(stages)
    run(path, ["--sft.max_steps", "3"])
    printed = capfd.readouterr().out
    assert [printed.index(mark) for mark in ("[1/3] sft", "[2/3] reward", "[3/3] grpo")]
    assert printed.count("its adapter is merged into") == 1
    table = printed[printed.index("STAGE ") :].splitlines()
    assert table[1].split()[:4] == ["sft", "sft", "-", "3"] and "held_out.loss" in table[1]
    assert any(line.startswith("reward  reward  sft") and "held_out.accuracy" in line for line in table)
    assert any(line.startswith("grpo    grpo    sft, reward") and " reward " in line for line in table)
    assert (out / "pipeline.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((out / "pipeline.json").read_text())["measures"]["sft"]["held_out.loss"]["verdict"] == "better"
    assert json.loads((out / "grpo" / "results.json").read_text())["model"] == str(out / "sft-merged")
    # What each stage ran by is a recipe of its own, with the place of every key.
    stored = (out / "recipes" / "grpo.yaml").read_text()
    assert f"reward_model_name_or_path: [{out / 'reward'}]  # " in stored and "chain.yaml, line" in stored

    # To a tracker each stage is a run of its own, named as the stage is or as its `run_name` says.
    for stage, name, lora in (("sft", "sft", 4), ("grpo", "mine", None)):
        (tracked,) = (out / stage / "runs").iterdir()
        scalars, _, settings = read_tensorboard(tracked)
        assert tracked.name == name and settings["recipe/stage"] == stage and "train/loss" in scalars
        assert settings["model/use_peft"] == (lora is not None) and settings.get("recipe/lora_r") == lora
    assert not (out / "reward" / "runs").exists()

    # The same command does nothing but show the table.
    run(path, ["--sft.max_steps", "3"])
    again = capfd.readouterr().out
    assert again.count("finished before, not run again") == 3 and "checking" not in again
    assert main(["report", str(out)]) == 0
    assert capfd.readouterr().out.splitlines() == [*table, f"Report: {out}/report.html"]

    kept = ("--sft.max_steps", "3")
    assert actions(path, *kept, "--grpo.max_steps", "2") == {"sft": "KEEP", "reward": "KEEP", "grpo": "AGAIN"}
    assert actions(path, *kept, "--reward.learning_rate", "1e-3") == {"sft": "KEEP", "reward": "AGAIN", "grpo": "AGAIN"}
    assert set(actions(path).values()) == {"AGAIN"}
    assert set(actions(path, *kept, "--overwrite").values()) == {"AGAIN"}
    (out / "reward" / "model.safetensors").rename(tmp_path / "kept.safetensors")
    assert actions(path, *kept) == {"sft": "KEEP", "reward": "AGAIN", "grpo": "KEEP"}
    (tmp_path / "kept.safetensors").rename(out / "reward" / "model.safetensors")

    # As a kill leaves a stage: noted as started, no results. It goes on from its last whole checkpoint.
    record = json.loads((out / "pipeline.json").read_text())
    record["stages"]["sft"] |= {"finished": False}
    (out / "pipeline.json").write_text(json.dumps(record))
    results = (out / "sft" / "results.json").read_bytes()
    assert actions(path, *kept)["sft"] == "KEEP"
    (out / "sft" / "results.json").unlink()
    assert actions(path, *kept)["sft"] == "RESUME"
    record["stages"]["sft"]["stamp"] = (out / "sft" / "recipe.yaml").stat().st_mtime_ns
    (out / "pipeline.json").write_text(json.dumps(record))
    assert actions(path, *kept)["sft"] == "AGAIN", "checkpoints of an older run are not this one's"
    (out / "sft" / "results.json").write_bytes(results)

    # Nothing that another wrote is written over.
    (out / "pipeline.json").unlink()
    with pytest.raises(UserError, match=r"stage `sft` writes to .* this pipeline did not write"):
        run(path, list(kept))
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "?", "completion": "!", "chosen": "1", "rejected": "2"}) + "\n")
    (out / "pipeline.json").write_text(json.dumps(record))
    record["stages"]["sft"] |= {"finished": True}
    (out / "pipeline.json").write_text(json.dumps(record))
    assert set(actions(path, *kept).values()) == {"AGAIN"}, "the data changed"


def test_a_stage_ends_with_its_pipeline(tmp_path):
    """SIGTERM to the pipeline ends the stage and what the stage has started."""
    note = tmp_path / "pids"
    child = (
        "import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}\\n'); time.sleep(60)"
    )
    code = (
        "import sys; from hpt_trl.launching.processes import call; from hpt_trl.signals import ending_on_signals\n"
        f"with ending_on_signals(): call([sys.executable, '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: note.exists() and note.read_text().endswith("\n"), 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    wait_for(lambda: not any(is_alive(int(pid)) for pid in note.read_text().split()), 10)


def test_captured_errors_come_back():
    with ending_on_signals():
        assert call([sys.executable, "-c", "import sys; sys.exit('no')"], capture=True) == (1, "no\n")


@pytest.mark.slow
def test_a_killed_chain_resumes_and_a_failing_stage_keeps_the_finished(pipeline, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 150}
    rl = {"recipe": "base.yaml", "stage": "grpo", "num_generations": 2, "max_completion_length": 8}
    path = pipeline(
        {
            "sft": {"recipe": "base.yaml", **saving},
            "grpo": {**rl, "model": "from:sft", "reward_funcs": ["tests.pipeline.test_pipeline.many_words"]},
        }
    )
    process = subprocess.Popen([sys.executable, "-m", "hpt_trl", "run", str(path)], cwd=ROOT)
    wait_for(lambda: (out / "sft" / "checkpoint-3").exists(), 120)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    time.sleep(2)
    last = max(int(folder.name.partition("-")[2]) for folder in (out / "sft").glob("checkpoint-*"))
    time.sleep(2)
    assert last == max(int(folder.name.partition("-")[2]) for folder in (out / "sft").glob("checkpoint-*")) < 150

    monkeypatch.setenv("HPT_TRL_TEST_FAILS", "1")
    with pytest.raises(UserError, match=r"(?s)stage `grpo` failed .*Finished stages are kept: sft\."):
        run(path, [])
    printed = capfd.readouterr()
    assert "[1/2] sft: " in printed.out and "goes on (from checkpoint-" in printed.out
    assert "the server is away" in printed.err
    lines = [json.loads(line) for line in (out / "sft" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 151))

    monkeypatch.delenv("HPT_TRL_TEST_FAILS")
    run(path, [])
    printed = capfd.readouterr().out
    assert "[1/2] sft: sft by " in printed and printed.count("finished before, not run again") == 1
    assert "[2/2] grpo: finished in" in printed


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet collected does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_an_output_that_goes_missing_while_another_stage_runs(pipeline, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    monkeypatch.setenv("HPT_TRL_TEST_REMOVES", str(out / "first"))
    rl = {"recipe": "base.yaml", "stage": "grpo", "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
    path = pipeline(
        {
            "first": {"recipe": "base.yaml"},
            "between": rl | {"reward_funcs": ["tests.pipeline.test_pipeline.removes_a_stage"]},
            "last": {"recipe": "base.yaml", "model": "from:first"},
        }
    )
    with pytest.raises(UserError, match=r"the output of `first` in .* is gone: it was removed while the pipeline ran"):
        run(path, [])
    assert actions(path) == {"first": "START", "between": "KEEP", "last": "START"}


@pytest.mark.slow
def test_every_stage_of_rlhf_tiny_is_better_than_the_one_before(tmp_path, capfd, monkeypatch):
    """The bundled pipeline as it is, about seven minutes on two cores."""
    run(ROOT / "recipes" / "pipeline" / "rlhf-tiny.yaml", ["--output_dir", str(tmp_path / "out")])
    measures = json.loads((tmp_path / "out" / "pipeline.json").read_text())["measures"]
    assert measures["pretrain"]["held_out.loss"]["after"] < 1.0
    assert measures["reward"]["held_out.accuracy"]["after"] > 0.8
    assert measures["sft"]["reward"]["after"] > 1.5 * measures["sft"]["reward"]["before"]
    for stage in ("ppo", "grpo", "dpo"):
        assert measures[stage]["reward"]["after"] > 1.3 * measures["sft"]["reward"]["after"], stage


def test_a_critic_with_its_adapter_is_ppos_value_model(pipeline, tmp_path, capfd):
    out = tmp_path / "out"
    rl = {"recipe": "base.yaml", "stage": "ppo", "num_generations": 2, "max_completion_length": 8, "eval_samples": 4}
    path = pipeline(
        {
            "ppo": {**rl, "value_model": "from:critic", "reward_model": "from:reward", "max_steps": 1},
            "critic": {"recipe": "base.yaml", "stage": "critic", "dataset_layout": "comparisons", **LORA},
            "reward": {"recipe": "base.yaml", "stage": "reward"},
        }
    )
    run(path, [])
    printed = capfd.readouterr().out
    assert "its adapter is merged into" not in printed and (out / "critic" / "adapter_config.json").exists()
    assert any(line.startswith("critic") and "held_out.accuracy" in line for line in printed.splitlines())
    stored = (out / "recipes" / "ppo.yaml").read_text()
    assert f"value_model_name_or_path: {out / 'critic'}  # " in stored
