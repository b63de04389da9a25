"""Layers for future tokens that a checkpoint ships: found, kept, and trained as what they are."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hpt_trl import UserError
from hpt_trl.models.future_heads.chained import load_chained_heads
from hpt_trl.models.future_heads.decoding import generate_rows
from hpt_trl.models.future_heads.model import attach
from hpt_trl.models.future_heads.shipped import (
    add_tensors,
    announce_nothing,
    check_keepable,
    find_shipped_heads,
    keep_heads,
    read_tensors,
)
from hpt_trl.models.future_heads.trunk import parts_of, watched
from tests.helpers.shipped import KINDS, assert_drafts, save_shipping_model, shipped_tensors

COUNTS = {"glm4_moe": 27, "deepseek_v3": 32, "mellum": 25}


@pytest.fixture(scope="module", params=KINDS)
def shipping(request, tmp_path_factory):
    """Kind and folder of a model that ships a layer; read only."""
    folder = tmp_path_factory.mktemp("models") / request.param
    return request.param, save_shipping_model(folder, request.param)


def load(folder: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def find(folder: str):
    return find_shipped_heads(str(folder), AutoConfig.from_pretrained(folder))


def test_what_is_shipped_is_found_and_lost_by_saving(shipping, tmp_path):
    kind, folder = shipping
    shipped = find(folder)
    expected = shipped_tensors(folder, kind)
    assert set(shipped.tensors) == set(expected) and len(expected) == COUNTS[kind]
    assert f"{COUNTS[kind]} tensors" in str(shipped)
    load(folder).save_pretrained(tmp_path)
    # What this is all about: transformers leaves them out, and goes on to announce them.
    assert not shipped_tensors(tmp_path, kind)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert not find(tmp_path)


@pytest.mark.parametrize("size", ["50GB", "20KB"], ids=["one-file", "shards"])
def test_what_is_kept_is_there_to_the_bit_and_drafts(shipping, tmp_path, size):
    kind, folder = shipping
    model = load(folder)
    # Twice, as into a folder that is written again.
    for _ in range(2):
        model.save_pretrained(tmp_path, max_shard_size=size)
        keep_heads(find(folder), tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    kept, expected = shipped_tensors(tmp_path, kind), shipped_tensors(folder, kind)
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    held = {name: path.name for path in tmp_path.glob("*.safetensors") for name in load_file(path)}
    # As vLLM reads it: every tensor once, where the index says.
    assert index["weight_map"] == held
    assert sum(len(load_file(path)) for path in tmp_path.glob("*.safetensors")) == len(held)
    again = load(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), model.parameters(), strict=True))
    assert_drafts(tmp_path)


def test_shards_are_read_by_their_index(tmp_path):
    folder = save_shipping_model(tmp_path, "mellum", shards=True)
    shipped = find(folder)
    assert len({path.name for path in shipped.tensors.values()}) == 3
    expected = shipped_tensors(folder, "mellum")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_tensors(shipped.tensors).items())


def test_layers_that_are_the_models_own_are_none_that_it_ships(tmp_path, tiny_model_path):
    assert not find(tiny_model_path)
    assert not find_shipped_heads("smollm2-135m", AutoConfig.from_pretrained(tiny_model_path))
    assert not find_shipped_heads("nobody/nothing", AutoConfig.from_pretrained(tiny_model_path))
    keep_heads(find(tiny_model_path), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_config_can_be_made_to_announce_nothing(tmp_path):
    folder = save_shipping_model(tmp_path, "mellum")
    announce_nothing(folder)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert load(folder).config.num_mtp_layers == 0


def test_quantized_layers_do_not_stand_beside_plain_weights(tmp_path):
    folder = save_shipping_model(tmp_path, "mellum")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"mtp.fc.weight in .* is quantized \(F8_E4M3\)"):
        check_keepable(find(folder))


# Trained.


def test_what_is_loaded_is_written_under_the_same_names(shipping, tmp_path):
    kind, folder = shipping
    model = load(folder)
    heads = load_chained_heads(model, folder)
    attach(model, heads)
    assert heads.n_future_tokens == 2
    # What they share with the model is not theirs.
    assert not any("embed_tokens" in name or "shared_head" in name for name, _ in heads.named_parameters())
    model.save_pretrained(tmp_path)
    kept, expected = shipped_tensors(tmp_path, kind), shipped_tensors(folder, kind)
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert_drafts(tmp_path)


def test_states_are_what_transformers_drafts_from(shipping):
    """The layer's token for each prefix of a sequence, by transformers' own drafting, and by ours for all at once."""
    from transformers.modeling_layers import MtpModel

    _, folder = shipping
    model = load(folder).eval()
    ids = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(3))
    heads = load_chained_heads(model, folder)
    with torch.no_grad():
        with watched(parts_of(model).layer) as seen:
            hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
        (state,) = heads.states(model, seen, count=2, input_ids=ids)
        ours = model.get_output_embeddings()(state)[0]
        chain = MtpModel.from_pretrained(model)
        for length in range(2, ids.shape[1]):
            positions = torch.arange(1, length)[None]
            mask = torch.ones_like(positions)
            _, logits, _ = chain(ids[:, 1:length], hidden[:, : length - 1], mask, positions, None)
            assert torch.allclose(logits[0, 0], ours[length - 2], atol=1e-4)


def test_the_shared_copies_follow_the_model(tmp_path):
    """DeepSeek's checkpoints hold the embeddings a second time, which vLLM reads with the layer."""
    folder = save_shipping_model(tmp_path / "a", "deepseek_v3")
    model = load(folder)
    heads = load_chained_heads(model, folder)
    attach(model, heads)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
        model.get_output_embeddings().weight.mul_(2)
    model.save_pretrained(tmp_path / "b")
    kept = shipped_tensors(tmp_path / "b", "deepseek_v3")
    assert torch.equal(kept["model.layers.61.embed_tokens.weight"], model.get_input_embeddings().weight)
    assert torch.equal(kept["model.layers.61.shared_head.head.weight"], model.get_output_embeddings().weight)


def test_layers_that_cannot_be_trained_are_refused(tmp_path, tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    with pytest.raises(UserError, match="ships no layers for future tokens"):
        load_chained_heads(model, tiny_model_path)
    # A Llama with a part of that name, which transformers knows nothing of.
    model.save_pretrained(tmp_path)
    add_tensors(tmp_path, {"mtp.fc.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="that transformers cannot load"):
        load_chained_heads(load(tmp_path), str(tmp_path))


def test_rows_are_decoded_by_counted_drafts_alone(tmp_path):
    folder = save_shipping_model(tmp_path, "mellum")
    model = load(folder)
    with pytest.raises(UserError, match="the model has no heads"):
        generate_rows(model, torch.ones(2, 4).long())
    attach(model, load_chained_heads(model, folder))
    with pytest.raises(UserError, match="heads that its checkpoint ships, whose drafts are not counted"):
        generate_rows(model, torch.ones(2, 4).long())


def test_a_layer_half_there_is_refused(tmp_path):
    folder = save_shipping_model(tmp_path, "mellum")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["mtp.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"that transformers cannot load: .*missing"):
        load_chained_heads(load(folder), folder)


def test_trained_layers_are_saved_as_they_are(tmp_path):
    folder = save_shipping_model(tmp_path / "a", "mellum")
    model = load(folder)
    heads = load_chained_heads(model, folder)
    attach(model, heads)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "b")
    again = load_chained_heads(load(tmp_path / "b"), str(tmp_path / "b"))
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), heads.parameters(), strict=True))
