"""The value model: its head, its folder, and what it makes of models that are none."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from hpt_trl.errors import UserError
from hpt_trl.models.folders import VALUE_CONFIG_FILE, VALUE_HEAD_FILE, is_value_model
from hpt_trl.models.merging import merge_adapter
from hpt_trl.models.value_model import (
    HeadSettings,
    MLPValueHead,
    ValueHead,
    load_value_model,
    mean_value,
    new_value_model,
    split_state,
)
from tests.helpers.tiny import cut
from tests.helpers.value_models import save_value_model

IDS = torch.arange(3, 15).view(2, 6)


def values(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).token_values


def mlp(width: int) -> HeadSettings:
    return HeadSettings(width, "mlp", 0.2, 0.5, "regression")


def test_a_new_head_values_everything_alike_and_learns(tiny_model_path):
    model = new_value_model(tiny_model_path, mlp).eval()
    shapes = [tuple(weight.shape) for name, weight in model.head.named_parameters() if name.endswith("weight")]
    assert shapes == [(8, 32), (4, 8), (1, 4)]
    assert (values(model) == 0.5).all() and values(model).dtype == torch.float32
    # The layers below are no zeros: the last one has a gradient at once, they have from the second step on.
    model(input_ids=IDS).token_values.sum().backward()
    assert model.head.layers[-1].weight.grad.abs().sum() > 0
    assert model.head.layers[0].weight.abs().sum() > 0


def test_the_score_is_the_mean_over_the_outputs_tokens(tiny_model_path, tmp_path):
    model = load_value_model(save_value_model(tiny_model_path, tmp_path / "critic"), trainable=False)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        found = model.eval()(input_ids=IDS, output_mask=mask)
    expected = [row[chosen].double().mean().item() for row, chosen in zip(found.token_values, mask, strict=True)]
    assert found.logits.shape == (2, 1)
    assert found.logits.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert mean_value(found.token_values, torch.zeros_like(mask)).tolist() == [[0], [0]]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_folder_gives_back_what_was_saved(tiny_model_path, tmp_path, lora):
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    torch.manual_seed(0)
    model = new_value_model(tiny_model_path, mlp, adapter=adapter, dtype=torch.float32)
    with torch.no_grad():
        model.head.layers[-1].weight.normal_()
    model.save_pretrained(tmp_path)
    assert is_value_model(str(tmp_path)) and (tmp_path / "adapter_config.json").exists() == lora
    again = load_value_model(str(tmp_path), trainable=True)
    assert torch.equal(values(again), values(model)) and again.settings == model.settings
    trained = {name for name, weight in again.named_parameters() if weight.requires_grad}
    assert {name for name in trained if name.startswith("trunk.") and "lora_" not in name} == (
        set() if lora else {name for name in trained if name.startswith("trunk.")}
    )
    # A value is the same each time.
    again.train()
    assert torch.equal(again(input_ids=IDS).token_values, values(model))
    # What several processes have gathered is taken apart by its names.
    gathered = {name: weight + 1 for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "gathered", gathered)
    head = load_file(tmp_path / "gathered" / VALUE_HEAD_FILE)
    assert torch.equal(head["layers.0.weight"], model.head.layers[0].weight + 1)
    trunk, parts = split_state(gathered)
    assert set(parts) == set(head) and len(trunk) + len(parts) == len(gathered)


def test_sequence_classifiers_and_language_models_become_value_models(tiny_model_path, tmp_path):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1, dtype="float32")
    classifier.save_pretrained(tmp_path / "reward")
    made = load_value_model(str(tmp_path / "reward"), trainable=True)
    with torch.no_grad():
        hidden = classifier.eval().model(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(values(made), classifier.score(hidden).squeeze(-1))
    of_language = load_value_model(tiny_model_path, trainable=True)
    assert (values(of_language) == 0).all()
    trunk = AutoModel.from_pretrained(tiny_model_path)
    assert all(torch.equal(weight, trunk.state_dict()[name]) for name, weight in of_language.trunk.state_dict().items())


def test_the_adapter_of_a_value_model_merges_with_its_head(tiny_model_path, tmp_path):
    folder = save_value_model(tiny_model_path, tmp_path / "critic", lora=True)
    merge_adapter(folder, tmp_path / "merged")
    expected = values(load_value_model(folder, trainable=False))
    merged = values(load_value_model(str(tmp_path / "merged"), trainable=False))
    # Weights that were added up round otherwise than two products.
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    without = load_value_model(str(tmp_path / "merged"), trainable=False)
    without.trunk = AutoModel.from_pretrained(tiny_model_path)
    assert not torch.allclose(values(without), expected, atol=1e-3)


def test_damaged_folders_are_named(tiny_model_path, tmp_path):
    folder = Path(save_value_model(tiny_model_path, tmp_path / "critic"))
    settings = json.loads((folder / VALUE_CONFIG_FILE).read_text())

    def refused(text: str) -> str:
        (folder / VALUE_CONFIG_FILE).write_text(text)
        with pytest.raises(UserError) as caught:
            load_value_model(str(folder), trainable=False)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "another value model" in refused(json.dumps(settings | {"hidden_size": 64}))
    assert "another value model" in refused(json.dumps(settings | {"kind": "linear"}))
    assert "another version" in refused(json.dumps(settings | {"format": 2}))
    assert "damaged" in refused("{") and "damaged" in refused(json.dumps(settings | {"colour": "red"}))
    cut(folder / VALUE_HEAD_FILE)
    assert "damaged" in refused(json.dumps(settings))
    (folder / VALUE_HEAD_FILE).unlink()
    assert "is missing" in refused(json.dumps(settings))


def test_heads_compute_in_their_own_type_under_autocast():
    head = MLPValueHead(32)
    hidden = torch.randn(1, 3, 32)
    with torch.no_grad():
        head.layers[-1].weight.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        found = head.eval()(hidden)
    assert torch.equal(found, head(hidden)) and isinstance(head, ValueHead)
