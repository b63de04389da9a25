"""What a checkpoint ships goes through every stage's files: at the end, in checkpoints, and through a merge."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.errors import UserError
from hpt_trl.models.future_heads.heads import new_heads
from hpt_trl.models.future_heads.model import attach, load_with_future_heads
from hpt_trl.models.merging import merge_adapter
from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.shipped import assert_drafts, save_shipping_model, shipped_tensors
from tests.helpers.stage_runs import LORA, results

REWARD = {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "num_generations": 2, "max_completion_length": 8}
# Stage -> what its recipe has beside the others' keys.
STAGES: dict[str, dict] = {
    "sft": {},
    "dpo": {},
    "grpo": {},
    "ppo": {},
    "hpt": REWARD | {"success_threshold": 3.0},
    "rho1": {"dataset_layout": "demonstrations", "selection": "full"},
    "ref_tuning": {"dataset_name": "code.jsonl", "checkpoint_fraction": 0.5},
    "mtp": {"n_future_tokens": 3},
}


@pytest.fixture(scope="module")
def mellum(tmp_path_factory) -> str:
    return save_shipping_model(tmp_path_factory.mktemp("models") / "mellum", "mellum")


@pytest.fixture(scope="module")
def with_own_heads(tmp_path_factory, tiny_model_path) -> str:
    """The tiny model with this package's heads beside it."""
    folder = tmp_path_factory.mktemp("models") / "heads"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    attach(model, new_heads(model, 3))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    return str(folder)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_keeps_what_the_checkpoint_ships(recipe, tmp_path, mellum, stage, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "code.jsonl", solutions())
    runner.run(recipe(stage, model_name_or_path=mellum, save_strategy="steps", save_steps=2, **STAGES[stage]), [])
    expected = shipped_tensors(mellum, "mellum")
    out = tmp_path / stage
    along = [out / "checkpoints" / name for name in ("50-percent", "best")] if stage == "ref_tuning" else []
    for folder in (out, out / "checkpoint-2", *along):
        assert same(shipped_tensors(folder, "mellum"), expected)
        assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert_drafts(out)
    assert "Kept as they are: 25 tensors of layers for future tokens (mtp.fc.weight" in capsys.readouterr().out


def test_tensors_beside_heads_that_are_trained_on_are_kept(recipe, tmp_path, mellum, capsys):
    """A model with both: of this package's heads, which learn, and of what the checkpoint ships, which does not."""
    both, again = str(tmp_path / "mtp"), str(tmp_path / "again")
    runner.run(recipe("mtp", model_name_or_path=mellum, n_future_tokens=3), [])
    capsys.readouterr()
    runner.run(recipe("mtp", model_name_or_path=both, n_future_tokens=3, output_dir=again), [])
    said = capsys.readouterr().out
    assert "Kept as they are: 25 tensors" in said and "Trained on:" not in said
    assert same(shipped_tensors(again, "mellum"), shipped_tensors(mellum, "mellum"))


@pytest.mark.parametrize("stage", ["sft", "mtp"])
def test_a_run_on_experts_goes_on_to_the_same_weights(recipe, tmp_path, mellum, stage):
    """From a checkpoint with an index, whose experts have other names than in memory."""
    extra = {"model_name_or_path": mellum, "save_strategy": "steps", "save_steps": 2}
    extra |= {"shipped_heads": "train", "n_future_tokens": 2} if stage == "mtp" else {}
    path = recipe(stage, **extra)
    runner.run(path, [])
    out = tmp_path / stage
    whole = {file.name: file.read_bytes() for file in out.glob("*.safetensors")}
    checkpoint = str(out / "checkpoint-2")
    runner.run(path, ["--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", checkpoint])
    assert {file.name: file.read_bytes() for file in (tmp_path / "resumed").glob("*.safetensors")} == whole
    assert len(whole) == 2


def test_check_says_what_a_checkpoint_ships(recipe, mellum, tiny_model_path, capsys):
    check(recipe("sft", model_name_or_path=mellum), [])
    said = capsys.readouterr().out
    assert "it ships:       25 tensors of layers for future tokens (mtp.fc.weight, …) (shipped_heads: keep)" in said
    check(recipe("sft"), [])
    assert "it ships" not in capsys.readouterr().out


def test_what_is_dropped_is_no_longer_announced(recipe, tmp_path, mellum, capsys):
    runner.run(recipe("sft", model_name_or_path=mellum, shipped_heads="drop"), [])
    assert not shipped_tensors(tmp_path / "sft", "mellum")
    assert json.loads((tmp_path / "sft" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert "Left out: 25 tensors" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(tmp_path / "sft")


def test_an_adapters_merge_keeps_what_its_base_ships(recipe, tmp_path, mellum, capsys):
    runner.run(recipe("sft", model_name_or_path=mellum, **LORA), [])
    assert "Kept in the base model: 25 tensors" in capsys.readouterr().out
    assert not (tmp_path / "sft" / "model.safetensors.index.json").exists()
    merge_adapter(tmp_path / "sft", tmp_path / "merged")
    assert same(shipped_tensors(tmp_path / "merged", "mellum"), shipped_tensors(mellum, "mellum"))
    assert_drafts(tmp_path / "merged")


def test_shipped_layers_are_trained(recipe, tmp_path, mellum):
    train = {"model_name_or_path": mellum, "shipped_heads": "train", "n_future_tokens": 2, "learning_rate": 1e-2}
    runner.run(recipe("mtp", max_steps=12, **train), [])
    before, after = (results(tmp_path / "mtp")[when]["held_out"] for when in ("before", "after"))
    assert after["mtp/loss_head_2"] < before["mtp/loss_head_2"]
    kept, expected = shipped_tensors(tmp_path / "mtp", "mellum"), shipped_tensors(mellum, "mellum")
    assert kept.keys() == expected.keys()
    assert not torch.equal(kept["mtp.fc.weight"], expected["mtp.fc.weight"])
    assert not (tmp_path / "mtp" / "future_heads").exists()
    assert_drafts(tmp_path / "mtp")


def test_detached_layers_are_trained_and_the_model_as_by_sft(recipe, tmp_path, mellum):
    shared = {"model_name_or_path": mellum, "optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    # Without the clipping by a norm that the heads are part of.
    shared |= {"router_aux_loss_coef": 0.0, "max_grad_norm": 0.0}
    runner.run(recipe("sft", **shared), [])
    train = {"shipped_heads": "train", "n_future_tokens": 2, "detach_trunk": True, "head_weights": [1.0, 1.0]}
    runner.run(recipe("mtp", **shared, **train), [])
    ours, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / stage) for stage in ("mtp", "sft"))
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    moved = shipped_tensors(tmp_path / "mtp", "mellum")["mtp.fc.weight"]
    assert not torch.equal(moved, shipped_tensors(mellum, "mellum")["mtp.fc.weight"])


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("sft", {"shipped_heads": "train"}, "`stage: sft` has no loss for them"),
        ("mtp", {"shipped_heads": "train", "n_future_tokens": 2, **LORA}, "train with `use_peft`"),
        ("mtp", {"shipped_heads": "train"}, "4, but the checkpoint of .* ships 1 layers"),
        ("mtp", {"head_init": "shipped"}, "`head_init`: shipped: in a recipe"),
        ("sft", {"shipped_heads": "lose"}, "one of keep, train, drop"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe, mellum, stage, changes, said):
    with pytest.raises(UserError, match=said):
        runner.run(recipe(stage, model_name_or_path=mellum, **changes), [])


def test_a_model_without_such_layers_has_none_to_train(recipe):
    with pytest.raises(UserError, match="announces no layers for future tokens"):
        runner.run(recipe("mtp", shipped_heads="train"), [])


# This package's own heads.


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", ["sft", "dpo", "mtp"])
def test_other_stages_keep_the_folder_of_heads(recipe, tmp_path, with_own_heads, stage, lora):
    extra = {"n_future_tokens": 1} if stage == "mtp" else {}
    runner.run(recipe(stage, model_name_or_path=with_own_heads, **extra, **(LORA if lora else {})), [])
    for name in ("config.json", "model.safetensors"):
        kept = (tmp_path / stage / "future_heads" / name).read_bytes()
        assert kept == (Path(with_own_heads) / "future_heads" / name).read_bytes()
    load_with_future_heads(tmp_path / stage)
    if lora:
        merge_adapter(tmp_path / stage, tmp_path / "merged")
        assert load_with_future_heads(tmp_path / "merged").future_heads.n_future_tokens == 3


def test_heads_trained_beside_an_adapter_go_through_the_merge(recipe, tmp_path):
    runner.run(recipe("mtp", n_future_tokens=3, **LORA), [])
    merge_adapter(tmp_path / "mtp", tmp_path / "merged")
    adapted, merged = load_with_future_heads(tmp_path / "mtp"), load_with_future_heads(tmp_path / "merged")
    heads = adapted.get_base_model().future_heads
    assert all(torch.equal(*pair) for pair in zip(heads.parameters(), merged.future_heads.parameters(), strict=True))


def test_the_folder_of_heads_can_be_left_out(recipe, tmp_path, with_own_heads):
    runner.run(recipe("sft", model_name_or_path=with_own_heads, shipped_heads="drop"), [])
    assert not (tmp_path / "sft" / "future_heads").exists()
    # Where heads are trained, others begin in their place: copies of the last layer, as many as are asked for.
    new = {"shipped_heads": "drop", "n_future_tokens": 2, "learning_rate": 1e-12, "max_steps": 1}
    runner.run(recipe("mtp", model_name_or_path=with_own_heads, **new), [])
    model = load_with_future_heads(tmp_path / "mtp")
    (head,) = model.future_heads.layers
    for name, value in model.model.layers[-1].state_dict().items():
        assert torch.allclose(head.state_dict()[name], value, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_future_tokens": 4}, "line .*, `n_future_tokens`: 4, but the model has heads of its own, with 3"),
        ({"n_future_tokens": 3, "head_init": "zero_residual"}, "line .*, `head_init`: .*, with copy_last_layer"),
        (
            {"n_future_tokens": 2, "shipped_heads": "train"},
            "line .*, `shipped_heads`: train, but .* has heads of its own",
        ),
        ({"n_future_tokens": 3, "damage": True}, "line .*, `model_name_or_path`: .*config.json is damaged"),
    ],
)
def test_other_heads_beside_the_model_are_refused_before_it_is_loaded(recipe, tmp_path, with_own_heads, changes, said):
    folder = Path(shutil.copytree(with_own_heads, tmp_path / "model"))
    if changes.pop("damage", False):
        (folder / "future_heads" / "config.json").write_text('{"format": 1, "kind": "copy_last_layer"}')
    (folder / "model.safetensors").write_bytes(b"no weights are read")
    with pytest.raises(UserError, match=said):
        runner.run(recipe("mtp", model_name_or_path=str(folder), **changes), [])
    assert not (tmp_path / "mtp").exists()


def test_heads_of_the_run_before_do_not_stay_in_its_folder(recipe, tmp_path, with_own_heads):
    runner.run(recipe("sft", model_name_or_path=with_own_heads), [])
    runner.run(recipe("sft", overwrite=True), [])
    assert not (tmp_path / "sft" / "future_heads").exists()
