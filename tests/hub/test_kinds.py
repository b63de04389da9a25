"""Models of every kind on the Hub: what lies there, that the card's own block of Python loads it, and who goes on."""

import json

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM

from hpt_trl import cli
from hpt_trl.errors import UserError
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.pushing import push
from hpt_trl.methods.ppo.critics.branch import BranchCritic
from hpt_trl.models.future_heads.model import load_with_future_heads
from hpt_trl.models.future_heads.shipped import find_shipped_heads
from hpt_trl.models.value_model import load_value_model
from hpt_trl.runs import runner
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.stage_runs import LORA
from tests.helpers.tiny import save_tiny_model

SHORT = {"max_steps": 1, "test_split_size": 6}


@pytest.fixture
def base(hub, tiny_model_path) -> str:
    """The tiny model on the Hub, with a card that names a licence."""
    hub.take("me/base", tiny_model_path)
    hub.repos["me/base"].files()["README.md"] = b"---\nlicense: apache-2.0\n---\n# Base\n"
    return "me/base"


def card_of(hub, name: str) -> ModelCard:
    """The card, by huggingface_hub's own reading; it has to be whole."""
    card = ModelCard(hub.repos[name].files()["README.md"].decode())
    assert card.data.to_dict()["tags"][0] == "hpt-trl"
    return card


def run_block(hub, name: str, capsys) -> dict:
    """Runs the card's block of Python and returns what it defines."""
    text = card_of(hub, name).text
    block = text.split("```python\n")[1].split("\n```")[0]
    defined: dict = {}
    capsys.readouterr()
    exec(compile(block, f"{name}/README.md", "exec"), defined)
    assert capsys.readouterr().out.strip() or "generate" in block
    return defined


def test_a_whole_model(recipe, hub, base, capsys):
    runner.run(recipe("dpo", model_name_or_path=base, push_to_hub=True, hub_model_id="me/dpo", **SHORT), [])
    card = card_of(hub, "me/dpo")
    assert card.data.base_model == base and card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert "arxiv:2305.18290" in card.data.tags and "rafailov2023direct" in card.text
    found = {(one.metric_type, one.metric_name.split()[-2]) for one in card.data.eval_results}
    assert {("loss", "before"), ("loss", "after")} <= found
    run_block(hub, "me/dpo", capsys)


def test_an_adapter_names_its_base_by_its_hub_id(recipe, hub, base, capsys, tmp_path):
    keys = {"model_name_or_path": base, "push_to_hub": True, "hub_model_id": "me/lora", **LORA, **SHORT}
    runner.run(recipe("sft", **keys), [])
    files = hub.repos["me/lora"].files()
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == base
    assert "config.json" not in files and "adapter_model.safetensors" in files
    card = card_of(hub, "me/lora")
    assert card.data.base_model_relation == "adapter" and card.data.library_name == "peft"
    defined = run_block(hub, "me/lora", capsys)
    trained = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in defined["model"].state_dict().items()}
    assert trained and all(torch.equal(loaded[name], value) for name, value in trained.items())

    # Merged, it is a model of its own, with the same record.
    assert cli.main(["merge", str(tmp_path / "sft"), str(tmp_path / "merged")]) == 0
    assert cli.main(["push", str(tmp_path / "merged"), "--hub_model_id", "me/merged"]) == 0
    card = card_of(hub, "me/merged")
    assert card.data.base_model_relation == "finetune" and "an adapter merged into its base" in card.text
    run_block(hub, "me/merged", capsys)


def test_an_adapter_over_a_local_base_needs_the_base_on_the_hub(recipe, hub, tmp_path, capsys):
    runner.run(recipe("sft", **SHORT), [])
    local, out = str(tmp_path / "sft"), tmp_path / "lora"
    path = recipe("dpo", model_name_or_path=local, output_dir=str(out), **LORA, **SHORT)
    runner.run(path, [])
    with pytest.raises(UserError, match=f"hpt-trl push {local}.*hpt-trl merge {out} {out}-merged"):
        push(out, Destination("me/lora"))
    push(local, Destination("me/first"))
    push(out, Destination("me/lora"))
    config = json.loads(hub.repos["me/lora"].files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/first"
    assert config["revision"] == hub.repos["me/first"].commit("main").oid
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == local
    run_block(hub, "me/lora", capsys)
    # With other weights, the folder no longer holds what was pushed.
    AutoModelForCausalLM.from_pretrained("me/first").save_pretrained(local)
    with pytest.raises(UserError, match="is on this machine"):
        push(out, Destination("me/lora"))


def test_an_adapter_over_a_base_of_four_bits(recipe, hub, tmp_path, capsys):
    # Wide enough for the layout that bitsandbytes has for inference.
    hub.take("me/wide", save_tiny_model(tmp_path / "wide", hidden_size=128))
    keys = {"model_name_or_path": "me/wide", "push_to_hub": True, "hub_model_id": "me/q", "load_in_4bit": True}
    runner.run(recipe("sft", **keys, **LORA, **SHORT), [])
    card = card_of(hub, "me/q")
    assert "arxiv:2305.14314" in card.data.tags and "load_in_4bit=True" in card.text
    assert run_block(hub, "me/q", capsys)["model"].is_loaded_in_4bit


def test_ppo_takes_its_value_head_up_from_the_hub(recipe, hub, base, capsys, tmp_path):
    keys = {"model_name_or_path": base, "learning_rate": 0.05, "max_steps": 1}
    runner.run(recipe("ppo", push_to_hub=True, hub_model_id="me/ppo", **keys), [])
    head = load(hub.repos["me/ppo"].files()["value_head/value_head.safetensors"])
    assert any(tensor.abs().max() > 0 for tensor in head.values())
    defined = run_block(hub, "me/ppo", capsys)
    assert all(torch.equal(defined["head"][name], value) for name, value in head.items())
    assert "value-head" in card_of(hub, "me/ppo").data.tags

    critic = BranchCritic(AutoModelForCausalLM.from_pretrained("me/ppo"), 2)
    assert all(torch.equal(critic.module.state_dict()[name], value) for name, value in head.items())
    fresh = BranchCritic(AutoModelForCausalLM.from_pretrained(base), 2)
    assert not any(value.any() for value in fresh.head.state_dict().values())
    on = {"model_name_or_path": "me/ppo", "output_dir": str(tmp_path / "on"), "learning_rate": 1e-12, "max_steps": 1}
    runner.run(recipe("ppo", **on), [])
    kept = load_file(tmp_path / "on" / "value_head" / "value_head.safetensors")
    assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in head.items())


def test_heads_for_future_tokens(recipe, hub, base, capsys, tmp_path):
    keys = {"model_name_or_path": base, "n_future_tokens": 2, "max_length": 64, **SHORT}
    runner.run(recipe("mtp", push_to_hub=True, hub_model_id="me/mtp", **keys), [])
    files = hub.repos["me/mtp"].files()
    assert {"future_heads/config.json", "future_heads/model.safetensors", "model.safetensors"} <= set(files)
    run_block(hub, "me/mtp", capsys)
    heads = load(files["future_heads/model.safetensors"])
    model = load_with_future_heads("me/mtp")
    assert all(torch.equal(model.future_heads.state_dict()[name], value) for name, value in heads.items())
    assert find_shipped_heads("me/mtp", model.config).folder is not None

    # They are trained on, so that another number of them is refused.
    with pytest.raises(UserError, match="`n_future_tokens`: 3, but the model has heads of its own, with 2"):
        runner.run(recipe("mtp", **keys | {"model_name_or_path": "me/mtp", "n_future_tokens": 3}), ["--overwrite"])
    # A training without a loss for them keeps them.
    runner.run(recipe("sft", model_name_or_path="me/mtp", **SHORT), [])
    kept = load_file(tmp_path / "sft" / "future_heads" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in heads.items())


def test_a_reward_model(recipe, hub, base, capsys):
    runner.run(recipe("reward", model_name_or_path=base, push_to_hub=True, hub_model_id="me/rm", **SHORT), [])
    assert card_of(hub, "me/rm").data.pipeline_tag == "text-classification"
    run_block(hub, "me/rm", capsys)


def assert_trained_are_loaded(folder, model) -> None:
    """The weights of an adapter's file are those of the model that the card's block has loaded."""
    trained = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", "").replace(".modules_to_save", ""): value for name, value in model.items()}
    assert trained and all(torch.equal(loaded[name], value) for name, value in trained.items())


def test_an_adapter_that_scores(recipe, hub, base, capsys, tmp_path):
    keys = {"model_name_or_path": base, "push_to_hub": True, "hub_model_id": "me/rm", **LORA, **SHORT}
    runner.run(recipe("reward", **keys), [])
    card = card_of(hub, "me/rm")
    assert card.data.pipeline_tag == "text-classification" and card.data.base_model_relation == "adapter"
    assert_trained_are_loaded(tmp_path / "reward", run_block(hub, "me/rm", capsys)["model"].state_dict())


def test_an_adapter_with_heads_for_future_tokens(recipe, hub, base, capsys, tmp_path):
    keys = {"model_name_or_path": base, "n_future_tokens": 2, "max_length": 64, **LORA, **SHORT}
    runner.run(recipe("mtp", push_to_hub=True, hub_model_id="me/mtp", **keys), [])
    model = run_block(hub, "me/mtp", capsys)["model"]
    heads = load_file(tmp_path / "mtp" / "future_heads" / "model.safetensors")
    assert all(torch.equal(model.future_heads.state_dict()[name], value) for name, value in heads.items())


def test_a_value_model(recipe, hub, base, tmp_path, capsys):
    data = write_jsonl(tmp_path / "code.jsonl", solutions(14, 3, 3))
    keys = {"model_name_or_path": base, "dataset_name": str(data), "max_length": 400, "n_samples": 24, "max_steps": 1}
    runner.run(recipe("critic", test_split_size=4, **keys), [])
    critic = tmp_path / "critic"
    push(critic, Destination("me/critic"))
    run_block(hub, "me/critic", capsys)
    ids = torch.arange(3, 12)[None]
    local, remote = (load_value_model(name, trainable=False).eval() for name in (str(critic), "me/critic"))
    assert torch.equal(local(ids).token_values, remote(ids).token_values)
    with pytest.raises(UserError, match="me/critic is a value model, which writes no text"):
        runner.run(recipe("sft", model_name_or_path="me/critic"), [])


@pytest.fixture
def seen(vlm_path, tmp_path) -> dict:
    """Keys of a recipe over rows with a picture."""
    picture = Image.new("RGB", (32, 32), "grey")
    rows = [{"prompt": f"What is {i}?", "completion": "It is grey.", "image": picture} for i in range(8)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "rows"))
    keys = {"dataset_name": str(tmp_path / "rows"), "model_name_or_path": vlm_path, "test_split_size": 4}
    return keys | {"push_to_hub": True, "hub_model_id": "me/vlm", "max_steps": 1, "per_device_train_batch_size": 2}


def test_a_vision_language_model(recipe, hub, seen, capsys):
    runner.run(recipe("sft", **seen), [])
    assert card_of(hub, "me/vlm").data.pipeline_tag == "image-text-to-text"
    run_block(hub, "me/vlm", capsys)


def test_an_adapter_that_sees_names_the_commit_of_its_base(recipe, hub, seen, vlm_path, capsys, tmp_path):
    repo = hub.take("me/eyes", vlm_path)
    commit = repo.commit("main").oid
    # Weights that nobody can load stand on main by now.
    repo.add("main", "spoiled", {**repo.files(), "model.safetensors": b"none"})
    runner.run(recipe("sft", **seen | {"model_name_or_path": "me/eyes", "model_revision": commit}, **LORA), [])
    text = card_of(hub, "me/vlm").text
    assert f'from_pretrained("me/eyes", revision="{commit}", dtype="auto")' in text
    assert_trained_are_loaded(tmp_path / "sft", run_block(hub, "me/vlm", capsys)["model"].state_dict())


def test_the_base_of_a_vision_adapter_keeps_its_bits(recipe, hub, seen, vlm_path, capsys):
    hub.take("me/eyes", vlm_path)
    bits = {"model_name_or_path": "me/eyes", "load_in_8bit": True}
    runner.run(recipe("sft", **seen | bits, **LORA), [])
    assert run_block(hub, "me/vlm", capsys)["model"].get_base_model().is_loaded_in_8bit
