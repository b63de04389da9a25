"""Runs that go on: from the last whole checkpoint, with the recipe, the inputs and the processes that it is of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hpt_trl.cli import main
from hpt_trl.digests import damage_of, note_digests
from hpt_trl.errors import UserError
from hpt_trl.reading import read_metrics
from hpt_trl.recipes.declared import KEYS_FILE
from hpt_trl.runs import runner, training
from hpt_trl.runs.changes import SAFE_KEYS, changes_between
from hpt_trl.runs.going_on import after_interrupt
from hpt_trl.runs.inputs import digests_of_inputs, inputs_changed, same_files
from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import recipe_in, results, weights

SAVED = {"save_strategy": "steps", "save_steps": 2}
AGAIN = ["--resume_from_checkpoint", "true"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_path):
    """The folder of a run of 6 steps, trained once."""
    folder = tmp_path_factory.mktemp("trained")
    runner.run(recipe_in(folder, tiny_model_path)("sft", **SAVED, max_steps=6), [])
    (folder / "sft" / "results.json").unlink()
    return folder / "sft"


@pytest.fixture
def stopped(recipe, tmp_path, trained):
    """A run of 6 steps as one that was stopped before its end leaves it; returns its recipe, folder and weights."""
    folder = shutil.copytree(trained, tmp_path / "sft")
    # What lies in another place now, as in a project that was moved; the notes of the checkpoints stay as they are.
    stored = folder / "recipe.yaml"
    stored.write_text(stored.read_text().replace(str(trained.parent), str(tmp_path)))
    return recipe("sft", **SAVED, max_steps=6), folder, weights(folder)


def flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    file.write_bytes(contents)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_every_file_of_a_checkpoint_is_known(stopped, tmp_path):
    _, folder, _ = stopped
    files = [path for path in (folder / "checkpoint-6").rglob("*") if path.is_file()]
    assert len(files) >= 10
    for file in files:
        for damage in (flip, lambda path: path.write_bytes(path.read_bytes()[:-2]), lambda path: path.write_bytes(b"")):
            kept = file.read_bytes()
            damage(file)
            assert damage_of(folder / "checkpoint-6", contents=True) is not None, file
            file.write_bytes(kept)
    assert damage_of(folder / "checkpoint-6", contents=True) is None


def test_damaged_ones_are_set_aside_and_the_last_whole_one_goes_on(stopped, capsys):
    path, folder, straight = stopped
    flip(folder / "checkpoint-6" / "optimizer.pt")
    (folder / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 0.5, "glo')
    capsys.readouterr()
    assert main(["run", path, *AGAIN]) == 0
    said = capsys.readouterr().out
    assert f"{folder}/checkpoint-6/optimizer.pt is not what was written" in said
    assert f"{folder}/checkpoint-4/trainer_state.json has 19 bytes, " in said
    assert said.count(f": set aside in {folder}/damaged; going on from checkpoint-2.") == 2
    assert names(folder / "damaged") == ["checkpoint-4", "checkpoint-6"]
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and weights(folder) == straight
    # Nor does it leave what the run that was not stopped has not.
    assert not (folder / "warnings.jsonl").exists()


def test_an_evaluation_of_the_start_is_not_done_again(recipe, tmp_path):
    evaluated = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2}
    path, folder = recipe("sft", **SAVED, **evaluated, max_steps=4), tmp_path / "sft"
    runner.run(path, [])

    def logged() -> list[tuple[int, float | None]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line.get("eval_loss")) for line in lines]

    straight = logged()
    (folder / "results.json").unlink()
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-2")])
    assert logged() == straight and straight[0][1] is not None


def test_one_that_is_named_and_damaged_is_refused(stopped):
    path, folder, _ = stopped
    flip(folder / "checkpoint-6" / "model.safetensors")
    with pytest.raises(UserError, match=r"is not what was written.*The last whole one before it is .*checkpoint-4\."):
        runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-6")])
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_without_a_whole_one_there_is_one_line(stopped):
    path, folder, _ = stopped
    for step in (2, 4, 6):
        flip(folder / f"checkpoint-{step}" / "scheduler.pt")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: .*checkpoint-6/scheduler\.pt.*overwrite true"):
        runner.run(path, AGAIN)
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and not (folder / "damaged").exists()
    runner.run(path, ["--overwrite", "true"])


def test_checkpoints_that_none_can_go_on_from_are_not_started_over(stopped, recipe, tmp_path):
    path, folder, _ = stopped
    for step in (2, 4, 6):
        (folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    there = sorted(folder.rglob("*"))
    with pytest.raises(
        UserError, match=r"cannot go on: .*checkpoint-6/scheduler\.pt is missing\. .*which removes check"
    ):
        runner.run(path, [])
    assert sorted(folder.rglob("*")) == there
    alone = recipe("sft", save_strategy="steps", save_steps=2, save_only_model=True, output_dir=str(tmp_path / "alone"))
    runner.run(alone, [])
    (tmp_path / "alone" / "results.json").unlink()
    for former in (False, True):
        for step in (2, 4) if former else ():
            # A former version wrote none.
            for name in ("run.json", "digests.json"):
                (tmp_path / "alone" / f"checkpoint-{step}" / name).unlink()
        with pytest.raises(
            UserError, match=r"cannot go on: .*checkpoint-4 lacks the optimizer's state.*checkpoint-2, check"
        ):
            runner.run(alone, [])
        assert names(tmp_path / "alone") == ["checkpoint-2", "checkpoint-4"]


def test_newer_ones_than_the_one_that_goes_on_are_set_aside(stopped, capsys):
    path, folder, straight = stopped
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-2")])
    assert f"set aside in {folder}/abandoned: checkpoint-4, checkpoint-6" in capsys.readouterr().out
    assert names(folder / "abandoned") == ["checkpoint-4", "checkpoint-6"] and weights(folder) == straight
    # Another time they keep out of each other's way.
    (folder / "results.json").unlink()
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4")])
    assert sorted(path.name for path in (folder / "abandoned").iterdir()) == [
        *("checkpoint-4", "checkpoint-6", "checkpoint-6.2")
    ]


def test_what_differs_is_told_at_once_and_refused(stopped, recipe, tmp_path):
    _, folder, _ = stopped
    (tmp_path / "others.jsonl").write_text((tmp_path / "sums.jsonl").read_text().replace("idea", "clue"))
    other = recipe("sft", **SAVED, max_steps=6, learning_rate=1e-3, dataset_name=str(tmp_path / "others.jsonl"), seed=4)
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="is of another recipe") as refused:
        runner.run(other, AGAIN)
    said = str(refused.value)
    assert "learning_rate 0.003 there, 0.001 here" in said and "seed 3 there, 4 here" in said and "others.jsonl" in said
    assert f"--model_name_or_path {folder}/checkpoint-6" in said
    assert (folder / "recipe.yaml").read_text() == before
    assert main(["check", other, *AGAIN]) == 2
    with pytest.raises(UserError, match="stage sft there, dpo here"):
        runner.run(recipe("dpo", **SAVED, output_dir=str(folder), max_steps=6), AGAIN)


def test_what_decides_nothing_may_differ(stopped, recipe, tmp_path, capsys, monkeypatch):
    _, folder, _ = stopped
    monkeypatch.chdir(tmp_path)
    # The same file by another name, a default that is written out, and what only says how long and how often.
    more = {"save_steps": 4, "max_steps": 8, "weight_decay": 0.0, "dataset_name": "sums.jsonl", "logging_steps": 2}
    runner.run(recipe("sft", **SAVED | more), AGAIN)
    said = capsys.readouterr().out
    assert "Changed since checkpoint-6: " in said and "max_steps 6 there, 8 here" in said and "weight_decay" not in said
    assert "The schedule of the learning rate is that of the new length." in said
    assert results(folder)["steps"] == 8


def test_a_run_does_not_end_with_the_model_of_more_steps(stopped):
    path, folder, _ = stopped
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"max_steps.*checkpoint-6 is of step 6, beyond 4"):
        runner.run(path, [*AGAIN, "--max_steps", "4"])
    with pytest.raises(UserError, match=r"num_train_epochs.*checkpoint-6 is of epoch \d.*, beyond 0\.5"):
        runner.run(path, [*AGAIN, "--max_steps", "-1", "--num_train_epochs", "0.5"])
    assert (folder / "recipe.yaml").read_text() == before and not (folder / "abandoned").exists()
    for named in ("checkpoint-4", "4"):
        with pytest.raises(UserError, match=r"there is no folder .*Did you mean .*sft/checkpoint-4\?"):
            runner.run(path, ["--resume_from_checkpoint", named, "--max_steps", "4"])


def test_a_run_that_goes_on_elsewhere_has_the_records_of_the_whole(stopped, tmp_path):
    path, folder, straight = stopped
    elsewhere = tmp_path / "elsewhere"
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4"), "--output_dir", str(elsewhere)])
    assert weights(elsewhere) == straight
    assert read_metrics(elsewhere) == read_metrics(folder)
    # Lines that are gone come back as well.
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[2:]))
    runner.run(path, AGAIN)
    assert read_metrics(folder) == read_metrics(elsewhere)


@pytest.mark.parametrize("version", ["this", "a former"])
def test_a_run_that_goes_on_elsewhere_takes_up_no_other_records(stopped, tmp_path, version):
    path, folder, straight = stopped
    if version == "a former":
        for name in ("run.json", "digests.json", "before.json", "metrics.jsonl"):
            (folder / "checkpoint-4" / name).unlink()
    # Of a run of another recipe, which failed in its first step.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(folder / "recipe.yaml", elsewhere / "recipe.yaml")
    (elsewhere / "before.json").write_text('{"held_out": {"loss": 99.0}}')
    (elsewhere / "warnings.jsonl").write_text('{"step": 1, "kind": "no_tokens", "message": "nothing is trained on"}\n')
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4"), "--output_dir", str(elsewhere)])
    assert weights(elsewhere) == straight and read_metrics(elsewhere) == read_metrics(folder)
    assert results(elsewhere)["before"]["held_out"] == json.loads((folder / "before.json").read_text())["held_out"]
    assert results(elsewhere)["warnings"] == [] and not (elsewhere / "warnings.jsonl").exists()


def test_the_keys_that_may_differ_are_keys():
    assert json.loads(KEYS_FILE.read_text())["keys"].keys() >= SAFE_KEYS


def test_rows_that_have_changed_are_refused(recipe, tmp_path):
    path = recipe("sft", **SAVED, max_steps=2)
    runner.run(path, [])
    (tmp_path / "sft" / "results.json").unlink()
    rows = (tmp_path / "sums.jsonl").read_text()
    (tmp_path / "sums.jsonl").write_text(rows.replace("What is 3 + 1?", "What is 3+1?"))
    with pytest.raises(UserError, match=r"sums\.jsonl has changed since .*checkpoint-2 was written"):
        runner.run(path, AGAIN)
    (tmp_path / "sums.jsonl").write_text(rows)
    runner.run(path, AGAIN)


def test_records_that_are_torn_stop_nothing(stopped, capsys):
    path, folder, straight = stopped
    before = (folder / "before.json").read_text()
    assert json.loads(before)["held_out"]["loss"] > 0
    # The checkpoints have it, too.
    for torn in ('{"held_out": {"lo', before.replace("5", "6"), None):
        (folder / "before.json").unlink()
        if torn is not None:
            (folder / "before.json").write_text(torn)
        (folder / "recipe.yaml").write_text("")
        assert main(["run", path, *AGAIN]) == 0
        assert weights(folder) == straight and (folder / "before.json").read_text() == before
        assert results(folder)["before"]["held_out"] == json.loads(before)["held_out"]
        (folder / "results.json").unlink()
    (folder / "recipe.yaml").write_text("")
    assert main(["run", path]) == 2
    assert main(["run", path, "--overwrite", "true"]) == 0


def test_a_checkpoint_of_a_former_version_goes_on_and_is_told(stopped, capsys):
    path, folder, straight = stopped
    for step in (2, 4, 6):
        for name in ("run.json", "digests.json", "before.json"):
            (folder / f"checkpoint-{step}" / name).unlink()
    (folder / "before.json").write_text('{"held_out": {"lo')
    (folder / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.5, "glo')
    runner.run(path, AGAIN)
    said = capsys.readouterr().out
    assert "checkpoint-6/trainer_state.json is torn: set aside" in said
    assert "checkpoint-4 has no digests (a former version's)" in said
    assert "What was measured before the training is lost" in said and results(folder)["before"] is None
    assert weights(folder) == straight
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    with pytest.raises(UserError, match="is of another recipe: learning_rate"):
        runner.run(path, [*AGAIN, "--learning_rate", "1e-4"])


@pytest.mark.parametrize("name", ["rollouts_0.pt", "scheduler.pt", "rng_state.pth", "entropy_ctrl_state.json"])
def test_a_state_that_is_missing_is_not_made_anew(recipe, tmp_path, name):
    path = recipe("grpo", **SAVED, use_adaptive_entropy=True, max_steps=2)
    runner.run(path, [])
    (tmp_path / "grpo" / "results.json").unlink()
    (tmp_path / "grpo" / "checkpoint-2" / name).unlink()
    with pytest.raises(UserError, match=rf"no complete checkpoint \(.*{name} is missing\)\. Write `--overwrite true`"):
        runner.run(path, AGAIN)


def test_a_model_alone_is_told_and_not_called_damaged(stopped, capsys):
    """As `save_only_model` leaves it, of this version and of a former one, which noted no digests."""
    path, folder, straight = stopped
    for step in (4, 6):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / f"checkpoint-{step}" / name).unlink()
        note_digests(folder / f"checkpoint-{step}")
    for name in ("run.json", "digests.json"):
        (folder / "checkpoint-6" / name).unlink()
    runner.run(path, AGAIN)
    said = capsys.readouterr().out
    for step in (4, 6):
        assert f"checkpoint-{step} holds a model alone (`save_only_model`), none to go on from." in said
    assert not (folder / "damaged").exists() and names(folder / "abandoned") == ["checkpoint-4", "checkpoint-6"]
    assert weights(folder) == straight


def test_shards_that_would_be_unpickled_are_read_with_digests_alone(stopped):
    path, folder, _ = stopped
    checkpoint = folder / "checkpoint-6"
    shards = checkpoint / "pytorch_model_fsdp_0"
    shards.mkdir()
    (shards / ".metadata").write_bytes(b"\x80\x04.")
    note_digests(checkpoint)
    assert main(["check", path, *AGAIN]) == 0
    for name in ("run.json", "digests.json"):
        (checkpoint / name).unlink()
    with pytest.raises(UserError, match=r"checkpoint-6 has shards.*merge-weights .*pytorch_model_fsdp_0 MODEL"):
        runner.run(path, AGAIN)
    # Nor where the newest one turns out to be damaged.
    flip(folder / "checkpoint-4" / "optimizer.pt")
    shutil.rmtree(checkpoint)
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3")
    for name in ("run.json", "digests.json"):
        (folder / "checkpoint-3" / name).unlink()
    (folder / "checkpoint-3" / "optimizer_0").mkdir()
    (folder / "checkpoint-3" / "optimizer_0" / ".metadata").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"checkpoint-3 has shards"):
        runner.run(path, AGAIN)


def test_defaults_and_variables_that_have_changed_are_refused(stopped, recipe, monkeypatch):
    _, folder, _ = stopped
    for name in ("LEVEL", "SERVICE_API_KEY", "WANDB_MODE", "ADDRESS"):
        monkeypatch.setenv(name, "")
    variables = {"LEVEL": "1", "WANDB_MODE": "offline", "ADDRESS": "http://me:pass@host/a"}
    noted = json.loads((folder / "checkpoint-6" / "run.json").read_text())
    assert noted["env"] == {} and noted["defaults"]["weight_decay"] == 0.0 and "logging_steps" not in noted["defaults"]
    noted["defaults"] |= {"weight_decay": 0.1, "of_another_version": 1}
    masked = {"LEVEL": "2", "WANDB_MODE": "online", "ADDRESS": "http://••••@host/a"}
    of_another_launch(folder / "checkpoint-6", defaults=noted["defaults"], env=masked)
    path = recipe("sft", **SAVED, max_steps=6, env=variables | {"SERVICE_API_KEY": "k3y"})
    with pytest.raises(UserError, match=r"recipe: weight_decay 0\.1 there, 0\.0 here; env\.LEVEL 2 there, 1 here\. Go"):
        runner.run(path, AGAIN)
    path = recipe("sft", **SAVED, max_steps=6, weight_decay=0.1, env=variables | {"LEVEL": "2"})
    assert main(["check", path, *AGAIN]) == 0


def of_another_launch(checkpoint: Path, **changes) -> None:
    """Lets a checkpoint say that it is of other processes."""
    note = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps(note | changes))
    note_digests(checkpoint)


def test_another_number_of_processes_goes_on_where_it_comes_to_the_same(stopped):
    path, folder, straight = stopped
    of_another_launch(folder / "checkpoint-6", processes=2)
    runner.run(path, AGAIN)
    assert weights(folder) == straight
    (folder / "results.json").unlink()
    of_another_launch(folder / "checkpoint-6", processes=2, rows_per_step=16)
    with pytest.raises(UserError, match=r"2 processes .*this would be 1 process: a step had 16 rows and would have 4"):
        runner.run(path, AGAIN)
    of_another_launch(folder / "checkpoint-6", processes=1, profile="ZeRO-2")
    with pytest.raises(UserError, match=r"1 process \(ZeRO-2\), and cannot be read by whole states in each process"):
        runner.run(path, AGAIN)


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("grpo", {}, "each process draws from a stream and keeps rollouts of its own"),
        ("sft", {"use_peft": True, "lora_dropout": 0.1}, "draws the units that lora_dropout drops"),
        ("sft", {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    ],
)
def test_another_number_of_processes_is_refused_where_it_would_not(recipe, tmp_path, stage, changes, said):
    path = recipe(stage, **SAVED, max_steps=2, **changes)
    runner.run(path, [])
    (tmp_path / stage / "results.json").unlink()
    of_another_launch(tmp_path / stage / "checkpoint-2", processes=2)
    with pytest.raises(UserError, match=rf"is of 2 processes .*{said}.*Go on with 2 processes, or begin a new run"):
        runner.run(path, AGAIN)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu", "fsdp2"])
def test_other_numbers_of_real_processes_come_to_the_same_weights(recipe, tmp_path, profile):
    path = recipe("sft", **SAVED, max_steps=4, global_batch_size=4, per_device_train_batch_size=1, use_cpu=None)
    outs = {}
    for name, count, words in (("two", 2, []), ("four", 4, [AGAIN[0], str(tmp_path / "two" / "checkpoint-2")])):
        launched = ["run", path, "--accelerate", profile, "--num_processes", str(count), *words]
        done = hpt_trl(*launched, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-3000:]
        outs[name] = load_file(tmp_path / name / "model.safetensors")
    for key, value in outs["two"].items():
        assert torch.allclose(outs["four"][key], value, rtol=0, atol=1e-6), key


def test_the_attempts_of_a_run_are_in_its_results(stopped, recipe):
    path, folder, _ = stopped
    runner.run(path, ["--resume_from_checkpoint", str(folder / "checkpoint-4"), "--max_steps", "8"])
    first, second = results(folder)["attempts"]
    assert (first["from_step"], first["to_step"], second["from_step"], second["to_step"]) == (0, 4, 4, 8)
    assert first["changed"] == {} and second["changed"] == {"max_steps": [6, 8]}
    assert first["processes"] == 1 and second["versions"]["trl"] and first["seconds"] > 0
    assert first["seconds"] + second["seconds"] == pytest.approx(results(folder)["wall_time_s"]["total"], rel=0.2)


def test_variables_are_in_the_stored_recipe_but_for_secrets(recipe, tmp_path, monkeypatch):
    for name in ("PLAIN_SETTING", "SERVICE_API_KEY", "ADDRESS"):
        monkeypatch.setenv(name, "")
    variables = {"PLAIN_SETTING": "1", "SERVICE_API_KEY": "s3cret", "ADDRESS": "http://me:s3cret@host"}
    path = recipe("sft", max_steps=2, **SAVED, env=variables)
    runner.run(path, [])
    stored = (tmp_path / "sft" / "recipe.yaml").read_text()
    assert yaml.safe_load(stored)["env"] == {"PLAIN_SETTING": "1"} and "s3cret" not in stored
    # It is no key: the run goes on, and starts over, as without it.
    (tmp_path / "sft" / "results.json").unlink()
    runner.run(path, AGAIN)
    runner.run(str(tmp_path / "sft" / "recipe.yaml"), ["--output_dir", str(tmp_path / "again")])


def below(folder: Path) -> None:
    (folder / "one.jsonl").write_text('{"text": "one"}\n')
    (folder / "two.jsonl").write_text('{"text": "two"}\n')


def test_inputs_that_come_go_or_are_others_are_told(tmp_path):
    values = {"dataset_name": f"{tmp_path}/*.jsonl", "output_dir": str(tmp_path / "out")}
    below(tmp_path)
    old = digests_of_inputs(values)
    (tmp_path / "three.jsonl").write_text('{"text": "three"}\n')
    assert inputs_changed(old, digests_of_inputs(values)) == [str(tmp_path / "three.jsonl")]
    (tmp_path / "two.jsonl").unlink()
    assert {Path(name).name for name in inputs_changed(old, digests_of_inputs(values))} == {"two.jsonl", "three.jsonl"}
    (tmp_path / "three.jsonl").unlink()
    below(tmp_path)
    assert inputs_changed(old, digests_of_inputs(values)) == []
    # The same rows in another order are others.
    (tmp_path / "one.jsonl").rename(tmp_path / "z.jsonl")
    assert inputs_changed(old, digests_of_inputs(values))


def test_what_a_run_writes_is_none_of_its_inputs(tmp_path):
    for name in ("config.json", "model.safetensors", "vocab.txt", "tool.py"):
        (tmp_path / name).write_text(name)
    model = {"model_name_or_path": str(tmp_path), "output_dir": str(tmp_path / "sft")}
    rows = {"dataset_name": str(tmp_path), "output_dir": str(tmp_path / "sft")}
    old = [digests_of_inputs(values) for values in (model, rows)]
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json").write_text("{}")
    assert [digests_of_inputs(values) for values in (model, rows)] == old
    (tmp_path / ".cache").mkdir()
    for name in ("README.md", ".cache/x", "model.gguf"):
        (tmp_path / name).write_text(name)
    assert digests_of_inputs(model) == old[0] and digests_of_inputs(rows) != old[1]
    for name in ("config.json", "model.safetensors", "vocab.txt", "tool.py"):
        (tmp_path / name).write_text(name.upper())
        assert inputs_changed(old[0], digests_of_inputs(model)) == [str(tmp_path)]
        (tmp_path / name).write_text(name)


def test_folders_of_templates_are_inputs_and_what_is_changed_by_hand_in_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "chat_template.jinja", "README.md", "model.safetensors"):
        (folder / name).write_text("{}")
    for key in ("chat_template_path", "model_name_or_path"):
        values = {key: str(folder), "output_dir": str(tmp_path / "out")}
        for noted in (False, True):
            if noted:
                note_digests(folder)
            old = digests_of_inputs(values)
            (folder / "README.md").write_text("a card")
            assert old and digests_of_inputs(values) == old
            (folder / "chat_template.jinja").write_text("another")
            assert inputs_changed(old, digests_of_inputs(values)) == [str(folder)]
            (folder / "chat_template.jinja").write_text("{}")
            assert digests_of_inputs(values) == old
        (folder / "digests.json").unlink()
        (folder / "README.md").write_text("{}")


def test_what_a_module_of_rewards_imports_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("scores/inner", "parts"):
        (tmp_path / folder).mkdir(parents=True)
    texts = {
        "scores/__init__.py": "",
        "scores/mine.py": "import torch, nowhere\nfrom . import words\nfrom .inner import deep\nimport parts.base",
        "scores/words.py": "from scores import mine",
        "scores/inner/__init__.py": "",
        "scores/inner/deep.py": "from ...above import x\nfrom ..words import y",
        "scores/other.py": "",
        "parts/base.py": "def broken(:",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    values = {"reward_funcs": ["scores.mine.right"]}
    old = digests_of_inputs(values)
    found = {str(Path(name).relative_to(tmp_path)) for name in old}
    assert found == {*texts} - {"scores/other.py"}
    for name in found:
        (tmp_path / name).write_text(f"{texts[name]}\n# changed")
        assert inputs_changed(old, digests_of_inputs(values)) == [str(tmp_path / name)], name
        (tmp_path / name).write_text(texts[name])


def test_a_run_does_not_write_among_its_rows(recipe, tmp_path):
    (tmp_path / "rows").mkdir()
    shutil.copy(tmp_path / "sums.jsonl", tmp_path / "rows")
    path = recipe("sft", dataset_name=str(tmp_path / "rows"), output_dir=str(tmp_path / "rows" / "out"))
    with pytest.raises(UserError, match=r"all files in .*rows are read as rows, and the `output_dir`"):
        runner.run(path, [])
    assert not (tmp_path / "rows" / "out").exists()


def test_installed_rewards_are_known_by_their_version(tmp_path):
    rewards = [
        "trl.rewards.think_format_reward",
        "hpt_trl.rewards.answer_texts.accepted",
        "tests.helpers.stage_runs.remainder",
    ]
    found = digests_of_inputs({"reward_funcs": rewards, "output_dir": str(tmp_path)})
    tests = Path(__file__).parents[1]
    assert str(tests / "helpers" / "stage_runs.py") in found and all(Path(name).is_relative_to(tests) for name in found)


def test_paths_of_the_same_contents_are_the_same(tmp_path):
    found = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        below(tmp_path / name)
        named = [f"{tmp_path}/{name}/*.jsonl", {"name": f"{tmp_path}/{name}/one.jsonl"}]
        found.append({"dataset_name": named, "learning_rate": 1e-3})
    old, new = found

    def differ() -> list[str]:
        digests = [digests_of_inputs(values) for values in (old, new)]
        changes = changes_between(old, new, {}, {}, lambda was, now: same_files(was, now, *digests))
        return [change.key for change in changes]

    assert differ() == []
    (tmp_path / "new" / "two.jsonl").write_text('{"text": "2"}\n')
    assert differ() == ["dataset_name"]
    below(tmp_path / "new")
    (tmp_path / "new" / "more.jsonl").write_text('{"text": "3"}\n')
    assert differ() == ["dataset_name"]


BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}


@pytest.fixture
def best_stopped(recipe, tmp_path, monkeypatch):
    """A run whose best model is its first, ended after its last checkpoint; returns its recipe and that model."""

    def killed(*arguments):
        raise RuntimeError("killed")

    path = recipe("sft", **SAVED, **BEST, metric_for_best_model="eval_loss", max_steps=4)
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_final", killed)
        with pytest.raises(RuntimeError, match="killed"):
            runner.run(path, [])
    best = weights(tmp_path / "sft" / "checkpoint-2")
    assert best != weights(tmp_path / "sft" / "checkpoint-4")
    return path, best


def test_the_best_model_is_kept_where_nothing_was_left_to_train(best_stopped, tmp_path):
    path, best = best_stopped
    runner.run(path, AGAIN)
    assert weights(tmp_path / "sft") == best


def test_the_best_model_is_found_in_a_folder_that_was_moved(best_stopped, tmp_path):
    path, best = best_stopped
    shutil.copytree(tmp_path / "sft", tmp_path / "copy")
    (tmp_path / "sft").rename(tmp_path / "gone")
    runner.run(path, [*AGAIN, "--output_dir", str(tmp_path / "copy")])
    assert weights(tmp_path / "copy") == best
    (tmp_path / "copy").rename(tmp_path / "sft")
    (tmp_path / "sft" / "results.json").unlink()
    shutil.rmtree(tmp_path / "sft" / "checkpoint-2")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(UserError, match=r"the best checkpoint before .*checkpoint-4, .*checkpoint-2, is not there"):
        runner.run(path, AGAIN)
    with pytest.raises(UserError, match=r"; save_steps 2\.0 there, 4\.0 here"):
        runner.run(path, [*AGAIN, "--save_steps", "4", "--eval_steps", "4"])


def test_a_finished_run_that_goes_on_is_not_finished(recipe, tmp_path, monkeypatch):
    path, folder = recipe("sft", **SAVED, max_steps=2), tmp_path / "sft"
    runner.run(path, [])
    before = results(folder)["before"]

    def killed(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(training, "save_final", killed)
        with pytest.raises(RuntimeError, match="killed"):
            runner.run(path, [*AGAIN, "--max_steps", "4"])
    assert not (folder / "results.json").exists() and (folder / "abandoned" / "results.json").exists()
    assert "checkpoint-4 is complete. Go on with" in after_interrupt(folder, ["hpt-trl", "run", path])
    runner.run(path, [*AGAIN, "--max_steps", "4"])
    assert results(folder)["steps"] == 4 and results(folder)["before"] == before


def test_a_run_that_was_killed_once_its_results_were_written_says_the_same_again(recipe, tmp_path):
    path, folder = recipe("sft", **SAVED, max_steps=2), tmp_path / "sft"
    runner.run(path, [])
    first = results(folder)
    assert first["after"]["held_out_change_errors"]
    runner.run(path, AGAIN)
    assert results(folder)["after"] == first["after"] and results(folder)["before"] == first["before"]
