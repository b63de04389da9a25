"""What an evaluation leaves: gone on from, scored anew, and not taken for something else's."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Sample
from hpt_trl.evaluation.samples import SampleStore
from tests.helpers.evaluations import HERE, results, run, samples
from tests.helpers.processes import ENVIRONMENT, hpt_trl
from tests.helpers.stage_runs import sums


def test_a_stopped_evaluation_goes_on_to_the_same_completions(evaluation, tmp_path, capsys):
    run("eval", evaluation())
    whole = (tmp_path / "evaluate" / "samples.jsonl").read_text()
    # As a kill leaves it: some batches in a part, the last line half written.
    folder = tmp_path / "evaluate"
    lines = whole.splitlines(keepends=True)
    (folder / "samples.jsonl").unlink()
    (folder / "results.json").unlink()
    (folder / "samples.0.part").write_text("".join(lines[8:20]) + lines[3][:40])
    capsys.readouterr()
    run("eval", evaluation())
    assert "12 completions are there" in capsys.readouterr().out
    assert (folder / "samples.jsonl").read_text() == whole
    assert not list(folder.glob("*.part"))


def test_a_killed_evaluation_goes_on_to_the_same_figures(evaluation, tmp_path):
    rows = tmp_path / "many.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in sums(120)))
    keys = {"dataset_name": str(rows), "max_completion_length": 24, "per_device_eval_batch_size": 4}
    command = [sys.executable, "-m", "hpt_trl", "eval", evaluation("killed", **keys)]
    part = tmp_path / "killed" / "samples.0.part"
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not part.exists() or part.stat().st_size < 20_000):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    drawn = len(part.read_text().splitlines())
    assert 0 < drawn < 480 and not (tmp_path / "killed" / "results.json").exists()
    run("eval", evaluation("killed", **keys))
    run("eval", evaluation("whole", **keys))
    assert (tmp_path / "killed" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert results(tmp_path / "killed")["measures"] == results(tmp_path / "whole")["measures"]


def test_given_again_it_only_scores(evaluation, tmp_path, monkeypatch):
    run("eval", evaluation())
    before = (tmp_path / "evaluate" / "samples.jsonl").read_bytes()

    def refuse(*arguments, **settings):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("hpt_trl.runs.evaluating.load_model", refuse)
    run(
        "eval",
        str(tmp_path / "evaluate"),
        "--k",
        "1",
        "3",
        "--reward_funcs",
        f"{HERE}.length",
        "--success_threshold",
        "5",
    )
    measured = results(tmp_path / "evaluate")["measures"]
    assert "pass@3" in measured and "pass@2" not in measured
    assert measured["reward"] == pytest.approx(measured["mean_length"])
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() == before


def test_a_completion_that_has_changed_on_the_disk_is_refused(tmp_path):
    store = SampleStore(tmp_path)
    kept = [Sample(0, 0, [1, 2], [17, 3], False, None), Sample(1, 0, [1], [4], True, {"reward": 0.1, "said": "è"})]
    store.write(kept, {(0, 0): {"completion": "7"}})
    assert store.read() == kept and store.texts() == {(0, 0): "7"}
    path = tmp_path / "samples.jsonl"
    whole = path.read_text()
    for was, now in (("[17, 3]", "[19, 3]"), ('"7"', '"8"'), ("è", "é"), ("[4]", "[\0]"), ("0.1", "0.2")):
        path.write_text(whole.replace(was, now))
        for read in (store.read, store.texts):
            with pytest.raises(UserError, match=rf"line {1 if was in whole.splitlines()[0] else 2}: .* not what was"):
                read()
    path.write_text(whole.splitlines(keepends=True)[1])
    assert store.read() == kept[1:]


def test_broken_conditions_are_refused_and_overwritten(evaluation, tmp_path, capsys):
    run("eval", evaluation())
    (tmp_path / "evaluate" / "samples.json").write_text('{"model": "')
    assert main(["eval", evaluation()]) == 2
    assert "Start anew with `--overwrite true`" in capsys.readouterr().err
    run("eval", evaluation(), "--overwrite", "true")
    assert len(samples(tmp_path / "evaluate")) == 24


def test_a_scoring_that_fails_keeps_what_was_there(evaluation, tmp_path, capsys):
    run("eval", evaluation())
    files = [tmp_path / "evaluate" / name for name in ("results.json", "recipe.yaml", "samples.jsonl", "scored.jsonl")]
    before = [file.read_bytes() for file in files]
    assert main(["eval", evaluation(reward_funcs=[f"{HERE}.broken"])]) == 2
    assert "the judge is gone" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before
    run("eval", evaluation(reward_funcs=[f"{HERE}.length"], success_threshold=3.0))
    assert f"{HERE}.length" in files[1].read_text()
    assert list(results(tmp_path / "evaluate")["measures"]["rewards"]) == ["length"]


def test_completions_with_unusual_ends_of_lines_are_read_whole(evaluation, tmp_path, tiny_model_path):
    run("eval", evaluation("first"))
    tokenizer, text = AutoTokenizer.from_pretrained(tiny_model_path), "one\u2028two\u2029three\u0085 7"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    told = [line | {"completion": text, "ids": ids} for line in samples(tmp_path / "first")]
    # As a former version wrote them.
    told = [{key: value for key, value in line.items() if key != "digest"} for line in told]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
    (tmp_path / "first" / "samples.jsonl").write_text(lines, encoding="utf-8")
    run("eval", evaluation("first"))
    assert results(tmp_path / "first")["measures"]["mean_length"] == len(ids)
    run("eval", evaluation("second", measures=["win_rate"], k=[1], against=str(tmp_path / "first")))
    assert results(tmp_path / "second")["measures"]["unpaired"] == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"temperature": 0.7}, "temperature 1.0 there, 0.7 here"),
        ({"seed": 4}, "seed 3 there, 4 here"),
        ({"prompt_template": "Q: {prompt}"}, "prompts"),
        ({"model_init_kwargs": {"rope_parameters": {"rope_type": "linear", "factor": 9.0, "rope_theta": 1e4}}}, "rope"),
    ],
)
def test_completions_of_something_else_are_not_taken(evaluation, tmp_path, capsys, changes, said):
    run("eval", evaluation())
    kept = (tmp_path / "evaluate" / "samples.jsonl").read_bytes()
    assert main(["eval", evaluation(**changes)]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() == kept
    run("eval", evaluation(**changes), "--overwrite", "true")
    assert (tmp_path / "evaluate" / "samples.jsonl").read_bytes() != kept


def test_another_models_completions_are_not_taken_under_the_same_name(evaluation, tmp_path, tiny_model_path, capsys):
    from tests.helpers.tiny import save_tiny_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    run("eval", evaluation(model_name_or_path=str(folder)))
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 5]}))
    assert main(["eval", evaluation(model_name_or_path=str(folder))]) == 2
    assert "end_ids [2] there, [2, 5] here" in capsys.readouterr().err
    shutil.copy(Path(tiny_model_path) / "generation_config.json", folder)
    assert main(["eval", evaluation(model_name_or_path=str(folder), attn_implementation="eager")]) == 2
    assert 'attn_implementation null there, "eager" here' in capsys.readouterr().err
    (folder / "modeling_own.py").write_text("# What runs with `trust_remote_code`.\n")
    assert main(["eval", evaluation(model_name_or_path=str(folder))]) == 2
    assert "weights" in capsys.readouterr().err
    (folder / "modeling_own.py").unlink()
    run("eval", evaluation(model_name_or_path=str(folder)))
    save_tiny_model(folder, seed=5)
    assert main(["eval", evaluation(model_name_or_path=str(folder))]) == 2
    assert "weights" in capsys.readouterr().err


def test_two_processes_are_one(evaluation, tmp_path):
    run("eval", evaluation("one"))
    done = hpt_trl("eval", evaluation("two"), "--accelerate", "cpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    first, second = tmp_path / "one", tmp_path / "two"
    assert (first / "samples.jsonl").read_text() == (second / "samples.jsonl").read_text()
    one, two = results(first), results(second)
    assert one["measures"] == two["measures"]
    assert two["hardware"]["processes"] == 2


def test_a_folder_with_a_training_is_left_alone(evaluation, tmp_path, tiny_model_path, capsys):
    outer = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "sums.jsonl")}
    keys |= {"output_dir": str(tmp_path / "evaluate"), "max_steps": 1, "dtype": "float32", "use_cpu": True}
    evaluation()
    outer.write_text(yaml.safe_dump(keys | {"bf16": False, "report_to": "none", "save_strategy": "no"}))
    run("run", str(outer))
    assert main(["eval", evaluation()]) == 2
    assert "holds a run of `stage: sft`" in capsys.readouterr().err
    assert main(["eval", str(outer)]) == 2
    assert "`stage: sft`; allowed here: evaluate" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
