"""Adapters that were pushed are named by their Hub ids: measured, merged, talked to, and refused where none will do."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load, load_file, save
from transformers import AutoModelForCausalLM

from hpt_trl import cli
from hpt_trl.chat.found import find_chat_model
from hpt_trl.displays.completing import complete
from hpt_trl.errors import UserError
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.pushing import push
from hpt_trl.models.digests import adapter_digest
from hpt_trl.models.hub_parts import adapter_folder
from hpt_trl.models.loading import load_tokenizer, parts_of
from hpt_trl.planning.check import check
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs import runner
from hpt_trl.token_scores.sources import source_of
from tests.helpers.datasets import write_jsonl
from tests.helpers.evaluations import samples
from tests.helpers.stage_runs import KEYS, LORA, results, sums

SHORT = {"max_steps": 1, "test_split_size": 6}


@pytest.fixture
def base(hub, tiny_model_path) -> str:
    hub.take("me/base", tiny_model_path)
    return "me/base"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_path) -> Path:
    """The output folder of a run with LoRA over the tiny model's folder; to be copied."""
    place = tmp_path_factory.mktemp("trained")
    write_jsonl(place / "sums.jsonl", sums())
    keys = {**KEYS, **LORA, **SHORT, "stage": "sft", "model_name_or_path": tiny_model_path, "learning_rate": 0.02}
    keys |= {"dataset_name": str(place / "sums.jsonl"), "output_dir": str(place / "lora")}
    (place / "sft.yaml").write_text(json.dumps(keys))
    runner.run(str(place / "sft.yaml"), [])
    return place / "lora"


@pytest.fixture
def lora(hub, base, trained, tiny_model_path, tmp_path) -> Path:
    """The same, as if its base had been named by its Hub id; pushed as me/lora."""
    folder = Path(shutil.copytree(trained, tmp_path / "lora"))
    for name in ("adapter_config.json", "recipe.yaml"):
        (folder / name).write_text((folder / name).read_text().replace(tiny_model_path, base))
    push(folder, Destination("me/lora"))
    assert "config.json" not in hub.repos["me/lora"].files()
    return folder


def test_it_is_measured_merged_talked_to_and_trained_on(hub, lora, base, recipe, evaluation, tmp_path, capsys):
    words = ["eval", evaluation("measured", temperature=0.0, n=1, k=[1])]
    for name, folder in (("me/lora", "remote"), (str(lora), "local"), (base, "base")):
        place = str(tmp_path / folder)
        assert cli.main([*words, "--model_name_or_path", name, "--output_dir", place]) == 0, capsys.readouterr().err
    remote, local, plain = (
        [(line["index"], line["ids"]) for line in samples(tmp_path / one)] for one in ("remote", "local", "base")
    )
    assert remote == local and remote != plain
    assert results(tmp_path / "remote")["model"] == "me/lora"

    merged = tmp_path / "merged"
    assert cli.main(["merge", "me/lora", str(merged)]) == 0
    assert cli.main(["merge", str(lora), str(tmp_path / "by-folder")]) == 0
    loaded, expected = (load_file(path / "model.safetensors") for path in (merged, tmp_path / "by-folder"))
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in loaded)
    assert results(merged)["after"] and not (merged / "model.safetensors").is_symlink()

    said = [complete(name, ["What is 3 + 1?"], chat=True, max_new_tokens=8).texts for name in ("me/lora", str(lora))]
    assert said[0] == said[1]

    def answer(name: str) -> str:
        capsys.readouterr()
        assert cli.main(["chat", name, "--prompt", "What is 3 + 1?", "--max_new_tokens", "8"]) == 0
        return capsys.readouterr().out

    answers = [answer(name) for name in ("me/lora", str(lora), str(merged), base)]
    # The adapter has learnt to end at once.
    assert answers[0] == answers[1] == answers[2] != answers[3]

    # The merged model goes on, and is pushed as one whose base is the adapter's.
    runner.run(recipe("sft", model_name_or_path=str(merged), max_steps=1, test_split_size=2), [])
    push(merged, Destination("me/merged"))
    assert f"base_model: {base}" in hub.repos["me/merged"].files()["README.md"].decode()
    assert answer("me/merged") == answers[0]


def test_a_whole_model_is_wanted_where_it_is_trained(hub, lora, recipe, tmp_path):
    hub.repos["me/lora"].branches["v2"] = list(hub.repos["me/lora"].branches["main"])
    for stage, more in (("sft", {}), ("sft", LORA), ("dpo", {}), ("grpo", {}), ("mtp", {"n_future_tokens": 2})):
        path = recipe(stage, model_name_or_path="me/lora", output_dir=str(tmp_path / "on"), **more)
        for command in (runner.run, check):
            with pytest.raises(UserError, match=r"me/lora holds a PEFT adapter.*`hpt-trl merge me/lora OUT` and name"):
                command(path, [])
    with pytest.raises(UserError, match=r"`hpt-trl merge me/lora OUT --revision v2`"):
        runner.run(path, ["--model_revision", "v2"])
    assert not (tmp_path / "on").exists()


def test_branches_and_commits_are_told_apart(hub, lora, base, evaluation, tmp_path, capsys):
    """The recipe's revision is that of the adapter, which names the one of its base."""
    other = {name: tensor * 3 for name, tensor in load_file(lora / "adapter_model.safetensors").items()}
    config = json.loads(hub.repos["me/lora"].files()["adapter_config.json"])
    pinned = hub.repos[base].commit("main").oid
    changed = {"adapter_config.json": json.dumps(config | {"revision": pinned}).encode()}
    changed["adapter_model.safetensors"] = save(other)
    files = hub.repos["me/lora"].files()
    hub.repos["me/lora"].add("v2", "second", {**files, **changed})
    # The base goes on; the adapter of the branch v2 does not follow.
    weights = load(hub.repos[base].files()["model.safetensors"])
    moved = save({name: tensor * 2 for name, tensor in weights.items()}, metadata={"format": "pt"})
    hub.repos[base].add("main", "moved", {**hub.repos[base].files(), "model.safetensors": moved})

    found = parts_of("me/lora", revision="v2")
    assert (found.base, found.revision) == (base, pinned) and parts_of("me/lora").revision is None
    for revision in ("v2", "main"):
        assert cli.main(["merge", "me/lora", str(tmp_path / revision), "--revision", revision]) == 0
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(load_file(tmp_path / "v2" / "model.safetensors")[name], weights[name])
    assert torch.equal(load_file(tmp_path / "main" / "model.safetensors")[name], 2 * weights[name])
    words = [evaluation("measured", temperature=0.0, n=1, k=[1]), "--model_revision", "v2"]
    for model in ("me/lora", str(tmp_path / "v2")):
        out = ["--output_dir", str(tmp_path / Path(model).name / "measured")]
        assert cli.main(["eval", *words, "--model_name_or_path", model, *out]) == 0, capsys.readouterr().err
    remote, merged = ([line["ids"] for line in samples(tmp_path / one / "measured")] for one in ("lora", "v2"))
    assert remote == merged


def test_of_what_is_local_or_built_in_nothing_is_asked(hub, lora, tiny_model_path, tmp_path):
    hub.asked.clear()
    for name in (tiny_model_path, "smollm2-135m", "outputs/gone", str(tmp_path / "gone"), "./gone"):
        assert adapter_folder(name) == name and parts_of(name).adapter is None
    assert adapter_folder(str(lora)) == str(lora)
    assert cli.main(["merge", "gone", str(tmp_path / "x")]) == cli.main(["chat", "gone", "--prompt", "x"]) == 2
    assert not hub.asked


def test_in_the_cache_it_needs_no_network(hub, lora, monkeypatch, tmp_path, caplog):
    assert adapter_digest(adapter_folder("me/lora")) == adapter_digest(parts_of("me/lora").adapter)
    load_tokenizer("me/lora")
    AutoModelForCausalLM.from_pretrained("me/base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    with caplog.at_level(logging.WARNING):
        assert parts_of("me/lora").base == "me/base"
        assert cli.main(["merge", "me/lora", str(tmp_path / "merged")]) == 0
    assert not hub.asked and "could not be asked" not in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/none", "me/none: there is no such folder, and no adapter of that name on the Hub"),
        ("me/base", "me/base: there is no such folder, and no adapter of that name on the Hub"),
        ("me/a b", "there is no such folder"),
        (
            "me/secret",
            "there is no such folder, and no adapter of that name on the Hub, or none that can be read",
        ),
    ],
)
def test_what_cannot_be_merged_is_said_in_a_line(hub, base, tmp_path, monkeypatch, capsys, name, message):
    hub.new("me/secret", {"adapter_config.json": b"{}"}, private=True)
    if name == "me/secret":
        monkeypatch.setenv("HF_TOKEN", "")
    assert cli.main(["merge", name, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_files_that_do_not_come_are_said_in_a_line(hub, lora, tmp_path, capsys):
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.fails = {"GET .*adapter_model": 500}
    assert cli.main(["merge", "me/lora", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "error: me/lora cannot be downloaded from the Hub: " in said and "Traceback" not in said
    hub.fails = {}
    assert cli.main(["chat", "me/none", "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert "there is no folder me/none; name the output folder of a run. As a Hub id: me/none cannot be" in said


def test_code_of_a_repository_is_not_trusted_for_its_recipe_says_so(hub, lora, tmp_path):
    keys = yaml.safe_load((lora / "recipe.yaml").read_text())
    (lora / "recipe.yaml").write_text(yaml.safe_dump(keys | {"trust_remote_code": True}))
    hub.take("me/trusting", lora)
    assert find_chat_model(str(lora)).recipe["trust_remote_code"] is True
    assert find_chat_model("me/trusting").recipe["trust_remote_code"] is False


def test_a_reward_models_adapter_scores(hub, base, lora, recipe, tmp_path):
    keys = {"model_name_or_path": base, "push_to_hub": True, "hub_model_id": "me/rm", "learning_rate": 0.05}
    runner.run(recipe("reward", **keys, **LORA, **SHORT), [])
    prompts, completions = [row["prompt"] for row in sums(4)], [row["chosen"] for row in sums(4)]
    remote, local = (RewardModel(name)(prompts, completions) for name in ("me/rm", str(tmp_path / "reward")))
    assert remote == local and len(set(remote)) > 1
    path = recipe("grpo", reward_funcs=None, reward_model_name_or_path=["me/rm"], max_steps=1)
    check(path, [])
    runner.run(path, [])
    assert "rewards/rm/mean" in (tmp_path / "grpo" / "metrics.jsonl").read_text()
    # It writes no text; and the adapter of a language model scores none.
    assert cli.main(["chat", "me/rm", "--prompt", "x"]) == 2
    with pytest.raises(UserError, match="me/lora holds an adapter of the task CAUSAL_LM"):
        RewardModel("me/lora")


def test_a_reference_may_be_an_adapter_on_the_hub(hub, lora, base, recipe, tmp_path):
    remote, local = (source_of(name, "reference_model_name_or_path") for name in ("me/lora", str(lora)))
    assert remote.digests() == local.digests() and remote.name == "me/lora"
    keys = {"dataset_layout": "demonstrations", "model_name_or_path": base, "max_length": 64, **SHORT}
    for name, more in (("shared", LORA), ("whole", {})):
        out = tmp_path / name
        path = recipe("rho1", reference_model_name_or_path="me/lora", output_dir=str(out), **keys, **more)
        check(path, [])
        runner.run(path, [])
        assert results(out)["after"]["held_out"]["loss"] > 0


def test_the_head_of_a_ppo_run_with_lora_is_merged_along_and_taken_up(hub, base, recipe, tmp_path, capsys):
    keys = {"model_name_or_path": base, "critic": "head", "learning_rate": 0.05, "max_steps": 1}
    runner.run(recipe("ppo", push_to_hub=True, hub_model_id="me/ppo", **keys, **LORA), [])
    head = load(hub.repos["me/ppo"].files()["value_head/value_head.safetensors"])
    assert any(tensor.abs().max() > 0 for tensor in head.values())
    with pytest.raises(UserError, match="hpt-trl merge me/ppo OUT"):
        runner.run(recipe("ppo", **keys | {"model_name_or_path": "me/ppo", "output_dir": str(tmp_path / "on")}), [])

    shutil.rmtree(tmp_path / "ppo")
    merged = tmp_path / "merged"
    assert cli.main(["merge", "me/ppo", str(merged)]) == 0
    push(merged, Destination("me/merged"))
    for name in (str(merged), "me/merged"):
        on = {"model_name_or_path": name, "output_dir": str(tmp_path / f"{len(name)}-on"), "learning_rate": 1e-12}
        runner.run(recipe("ppo", **keys | on), [])
        kept = load_file(Path(on["output_dir"]) / "value_head" / "value_head.safetensors")
        assert kept.keys() == head.keys()
        assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in head.items())
