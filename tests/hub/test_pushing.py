"""Runs that end on the Hub: what lies there, what is said where it does not take them, and how they are repeated."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl import cli
from hpt_trl.errors import UserError
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.pushing import push
from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from tests.helpers.hub import READ_TOKEN
from tests.helpers.processes import ENVIRONMENT
from tests.helpers.stage_runs import KEYS, sums, weights

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RECORD = {"README.md", "recipe.yaml", "results.json", "metrics.jsonl", "curves.png", "chat_template.jinja"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_path) -> Path:
    """The output folder of a run that was not pushed; to be copied."""
    place = tmp_path_factory.mktemp("trained")
    data = place / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sums()))
    keys = {**KEYS, "stage": "sft", "dataset_name": str(data), "test_split_size": 6, "save_strategy": "steps"}
    keys |= {"model_name_or_path": tiny_model_path, "output_dir": str(place / "tiny"), "save_steps": 2}
    (place / "sft.yaml").write_text(json.dumps(keys))
    runner.run(str(place / "sft.yaml"), [])
    return place / "tiny"


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def test_a_run_is_pushed_after_its_results_and_goes_on_from_there(recipe, hub, tmp_path, capsys):
    runner.run(recipe("sft", push_to_hub=True, hub_model_id="tiny", hub_private_repo=True), [])
    assert f"Pushed: {hub.address}/me/tiny" in capsys.readouterr().out
    repo = hub.repos["me/tiny"]
    assert repo.private and set(repo.files()) == MODEL_FILES | RECORD | {".gitattributes"}
    assert [commit.message for commit in repo.branches["main"]] == ["initial commit", "sft by hpt-trl"]
    # The repository is asked about before the training, and made after it.
    assert hub.asked.index("GET /api/models/me/tiny") < hub.asked.index("POST /api/repos/create")
    for name, content in repo.files().items():
        assert str(tmp_path).encode() not in content and b"tiny-llama0" not in content, name
    assert "completions" not in repo.files()["results.json"].decode()

    runner.run(recipe("sft", model_name_or_path="me/tiny", output_dir=str(tmp_path / "on"), push_to_hub=True), [])
    card = ModelCard(hub.repos["me/on"].files()["README.md"].decode())
    assert card.data.base_model == "me/tiny" and card.data.base_model_relation == "finetune"
    local = AutoModelForCausalLM.from_pretrained(tmp_path / "on").state_dict()
    remote = AutoModelForCausalLM.from_pretrained("me/on").state_dict()
    assert all((remote[name] == tensor).all() for name, tensor in local.items())
    AutoTokenizer.from_pretrained("me/on")


def test_nothing_internal_goes_up(hub, folder):
    for name in ("before.json", "notes.txt", "optimizer.pt", "scores.jsonl", "tokens.env", "samples.jsonl"):
        (folder / name).write_text("internal")
    for name in ("completions", "evaluations", "trajectories", "runs"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"internal")
    assert (folder / "training_args.bin").is_file() and (folder / "checkpoint-4").is_dir()
    push(folder, Destination("me/tiny"))
    assert set(hub.repos["me/tiny"].files()) == MODEL_FILES | RECORD | {".gitattributes"}


@pytest.mark.parametrize("how", [500, None])
def test_a_push_that_fails_loses_nothing_and_is_repeated(recipe, hub, tmp_path, capsys, how):
    hub.fails = {"POST .*/commit/": how}
    out = tmp_path / "sft"
    path = recipe("sft", push_to_hub=True, hub_model_id="me/tiny")
    assert cli.main(["run", path]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    said, command = said.splitlines()[-1], f"hpt-trl push {out} --hub_model_id me/tiny"
    assert said.startswith("error: the run is finished and nothing of it is lost") and said.endswith(command)
    results = json.loads((out / "results.json").read_text())
    assert results["after"]["held_out"]["loss"] > 0 and (out / "curves.png").is_file()
    sent = len(hub.uploads)
    assert sent == 2 and len(hub.repos["me/tiny"].branches["main"]) == 1

    hub.fails = {}
    assert cli.main(command.split()[1:]) == 0
    assert len(hub.uploads) == sent, "what was up already was sent again"
    assert set(hub.repos["me/tiny"].files()) == MODEL_FILES | RECORD | {".gitattributes"}
    assert cli.main(command.split()[1:]) == 0
    # Nothing has changed, so no commit is added.
    assert len(hub.repos["me/tiny"].branches["main"]) == 2 and len(hub.uploads) == sent


def test_an_upload_that_breaks_off_goes_on_where_it_was(hub, folder):
    hub.fails = {"PUT /_lfs/": 413}
    with pytest.raises(UserError, match="the Hub answered 413"):
        push(folder, Destination("me/tiny"))
    assert list(hub.repos["me/tiny"].files()) == [".gitattributes"]
    hub.fails = {}
    push(folder, Destination("me/tiny"))
    assert "model.safetensors" in hub.repos["me/tiny"].files()


def test_of_several_files_only_the_missing_one_is_sent_again(hub, folder):
    sizes = {name: (folder / name).read_bytes() for name in ("model.safetensors", "curves.png")}
    oids = {name: hashlib.sha256(content).hexdigest() for name, content in sizes.items()}
    hub.fails = {f"PUT /_lfs/{oids['model.safetensors']}": 413}
    with pytest.raises(UserError, match="the Hub answered 413"):
        push(folder, Destination("me/tiny"))
    # The client sends files side by side, and does not wait for the others of one that fails.
    while oids["curves.png"] not in hub.objects:
        time.sleep(0.01)
    assert hub.uploads == [oids["curves.png"]] and list(hub.repos["me/tiny"].files()) == [".gitattributes"]
    hub.fails = {}
    push(folder, Destination("me/tiny"))
    assert hub.uploads == [oids["curves.png"], oids["model.safetensors"]]
    assert all(hub.repos["me/tiny"].files()[name] == content for name, content in sizes.items())


def test_a_branch_is_made_and_main_left_alone(hub, folder):
    pushed = push(folder, Destination("me/tiny", revision="v2"))
    assert pushed.url.endswith("/me/tiny/tree/v2")
    repo = hub.repos["me/tiny"]
    assert list(repo.files()) == [".gitattributes"] and "model.safetensors" in repo.files("v2")
    assert 'from_pretrained("me/tiny", revision="v2"' in repo.files("v2")["README.md"].decode()


def test_files_of_a_former_model_are_removed_and_others_stay(hub, folder):
    push(folder, Destination("me/tiny"))
    repo = hub.repos["me/tiny"]
    repo.add(
        "main", "by hand", {**repo.files(), "adapter_model.safetensors": b"old", "LICENSE": b"mine", "x/a.gguf": b""}
    )
    pushed = push(folder, Destination("me/tiny"))
    assert pushed.removed == ["adapter_model.safetensors"]
    assert set(repo.files()) == MODEL_FILES | RECORD | {".gitattributes", "LICENSE", "x/a.gguf"}


def test_what_is_no_run_is_not_written_over(hub, folder, capsys):
    foreign = hub.new("me/tiny", {"config.json": b"{}", "pytorch_model.bin": b"theirs", "notes.md": b"keep"})
    with pytest.raises(UserError, match=r"hub_model_id: me/tiny: it is there and holds .*hub_overwrite: true"):
        push(folder, Destination("me/tiny"))
    assert len(foreign.branches["main"]) == 1
    assert cli.main(["push", str(folder), "--hub_model_id", "me/tiny", "--overwrite", "true"]) == 0
    assert "pytorch_model.bin" not in foreign.files() and foreign.files()["notes.md"] == b"keep"
    # An empty repository, made by hand with a card, is taken.
    hub.new("me/empty", {"README.md": b"---\nlicense: mit\n---\n"})
    push(folder, Destination("me/empty"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_model_id": "them/x"}, r"`hub_model_id`: them/x: you are me on the Hub and can push to me/…, or to ours"),
        ({"hub_model_id": "theirs/x"}, "may only read in the organization theirs"),
        ({"hub_model_id": "me/a b"}, "hub_model_id.*Repo id must"),
        ({"hub_model_id": "a/b/c"}, "hub_model_id"),
        ({"hub_model_id": "me/locked"}, "no right to do this .403"),
        ({"hub_model_id": "me/public", "hub_private_repo": True}, "`hub_private_repo`: true, but me/public is there"),
        ({"hub_revision": "a" * 40}, "`hub_revision`: a{40} is a commit"),
        ({"hub_strategy": "every_save"}, "`hub_strategy`: every_save, but a checkpoint"),
        ({"hub_always_push": True}, "`hub_always_push`"),
        ({"use_peft": True, "lora_target_modules": ["q_proj"]}, "`push_to_hub`: an adapter is of use with its base"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_weights_are_loaded(recipe, hub, tmp_path, changes, message):
    hub.new("me/locked").read_only = True
    hub.new("me/public")
    path = recipe("sft", push_to_hub=True, **changes)
    for command in (runner.run, check):
        with pytest.raises(UserError, match=message):
            command(path, [])
    assert not (tmp_path / "sft").exists() and set(hub.repos) == {"me/locked", "me/public"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HF_TOKEN": ""}, "you are not logged in to the Hub. Log in with `hf auth login`"),
        ({"HF_TOKEN": "hf_wrong"}, r"the Hub does not take the token \(401"),
        ({"HF_TOKEN": READ_TOKEN}, "the token may read only"),
    ],
)
def test_a_login_that_will_not_do_is_said(recipe, hub, monkeypatch, capsys, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as caught:
        check(recipe("sft", push_to_hub=True), [])
    assert "hf_wrong" not in str(caught.value) and READ_TOKEN not in str(caught.value)


def test_check_says_where_it_goes_and_makes_nothing(recipe, hub, capsys):
    check(recipe("sft", push_to_hub=True, hub_private_repo=True, hub_revision="v1"), [])
    assert "pushed to sft after the results, private, branch v1" in capsys.readouterr().out
    assert not hub.repos and not any("create" in asked for asked in hub.asked)


def test_without_network_it_is_said_in_a_line(recipe, hub, folder, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="`push_to_hub`: the network was not tried, since HF_HUB_OFFLINE is set"):
        check(recipe("sft", push_to_hub=True), [])
    before = weights(folder)
    assert cli.main(["push", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "HF_HUB_OFFLINE" in said and weights(folder) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["push", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "http://127.0.0.1:9 did not answer" in said


def test_folders_that_hold_no_finished_run_are_refused(hub, folder, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            push(path, Destination("me/x"))
        assert not hub.repos
        return str(caught.value)

    assert "there is no folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no run of hpt-trl" in refused(tmp_path / "empty")
    stored = (folder / "results.json").read_text()
    (folder / "results.json").write_text("{")
    assert "is not valid JSON" in refused(folder)
    (folder / "results.json").write_text(json.dumps(json.loads(stored) | {"trained": False, "why_untrained": "flat"}))
    assert "was not trained: flat" in refused(folder)
    (folder / "results.json").unlink()
    assert "did not finish" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert "holds no model" in refused(folder)
    (folder / "recipe.yaml").write_text("stage: sft\n")
    assert "holds no run of hpt-trl" in refused(folder)


def test_options_of_the_command(hub, folder, capsys):
    assert cli.main(["push", str(folder), "--private", "maybe"]) == 2
    assert "--private: maybe is not allowed" in capsys.readouterr().err
    words = ["--private", "true", "--revision", "main", "--message", "As it is", "--hub_model_id", "ours/it"]
    assert cli.main(["push", str(folder), *words]) == 0
    repo = hub.repos["ours/it"]
    assert repo.private and repo.branches["main"][-1].message == "As it is"


def test_who_may_see_a_new_repository(hub, folder):
    """What is said, and else what its owner has set as the default."""
    hub.private = True
    for words, private in ((["--private", "false"], False), ([], True), (["--private", "true"], True)):
        name = f"me/{'-'.join(words).strip('-') or 'default'}"
        assert cli.main(["push", str(folder), "--hub_model_id", name, *words]) == 0
        assert hub.repos[name].private == private


def test_the_command_needs_nothing_heavy_until_it_pushes():
    code = "import sys, hpt_trl.hub.pushing, hpt_trl.hub.commands, hpt_trl.pipeline.reading; "
    code += "print([name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
