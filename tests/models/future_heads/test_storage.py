"""Heads on disk, the plain model around them, and the models that can have none."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, T5Config

from hpt_trl.errors import UserError
from hpt_trl.models.adapters import keep_four_bit_trainable
from hpt_trl.models.future_heads.heads import COPIES, KINDS, check_heads, new_heads
from hpt_trl.models.future_heads.model import attach, load_with_future_heads
from hpt_trl.models.future_heads.storage import heads_in, save_heads
from hpt_trl.models.future_heads.trunk import check_architecture, parts_of, watched
from tests.helpers.families import FAMILIES, family_config, family_model
from tests.helpers.tiny import cut
from tests.models.future_heads.test_decoding import with_heads

IDS = torch.randint(5, 90, (2, 10), generator=torch.Generator().manual_seed(3))


def states(model) -> list[torch.Tensor]:
    with torch.no_grad(), watched(parts_of(model).layer) as seen:
        model(IDS, use_cache=False)
        return model.future_heads.states(model, seen, count=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_saved_heads_come_back_to_the_bit(tmp_path, family, kind):
    # Some families have buffers that are not saved and would be float64 here, float32 there.
    model = with_heads(family, kind).float()
    model.save_pretrained(tmp_path)
    loaded = load_with_future_heads(tmp_path, dtype="auto")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(states(loaded), states(model), strict=True))
    assert loaded.future_heads.n_future_tokens == 4 and loaded.future_heads.kind == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_plain_model(tmp_path, family, kind, caplog):
    """As AutoModelForCausalLM loads it without a word of keys that it does not know, and as vLLM reads it."""
    model = with_heads(family, kind).float()
    model.save_pretrained(tmp_path)
    plain = family_model(family).float()
    plain.save_pretrained(tmp_path / "plain")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "plain"))
    assert ours == theirs
    beside = [path.name for path in tmp_path.glob("*.safetensors")]
    assert beside == ["model.safetensors"]
    kept, expected = load_file(tmp_path / beside[0]), load_file(tmp_path / "plain" / beside[0])
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(loaded) is type(plain) and "future_heads" not in caplog.text
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_the_plain_models_logits_are_those_of_the_first_head(tmp_path):
    model = with_heads("llama")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    # Head 1's logits as the heads' own trunk gives them.
    with torch.no_grad(), watched(parts_of(model).layer) as seen:
        model(IDS, use_cache=False)
        head = model.get_output_embeddings()(parts_of(model).norm(seen.output))
        assert torch.equal(loaded(IDS, use_cache=False).logits, head)


def test_heads_beside_an_adapter(tmp_path):
    base = family_model("llama")
    base.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    heads = new_heads(model, 4)
    # The copies are of the base's weights, adapters left out.
    assert not any("lora" in name for name, _ in heads.named_parameters())
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    attach(model, heads)
    assert all(parameter.requires_grad for parameter in heads.parameters())
    adapted.save_pretrained(tmp_path / "adapter")
    found, _ = heads_in(adapted.state_dict())
    assert found.keys() == heads.state_dict().keys()
    save_heads(model, found, tmp_path / "adapter")
    loaded = load_with_future_heads(tmp_path / "adapter", dtype="auto")
    expected = states(adapted.eval().get_base_model())
    ours = states(loaded.eval().get_base_model())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, expected, strict=True))


def test_heads_of_a_quantized_model_are_copied_in_the_type_that_it_computes_in(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    family_model("llama", hidden_size=64, intermediate_size=64).float().save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    keep_four_bit_trainable(model)
    heads = new_heads(model, 3)
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}
    attach(model, heads)
    with torch.no_grad(), watched(parts_of(model).layer) as seen:
        model(IDS, use_cache=False)
        first = parts_of(model).norm(seen.output)
        for state in model.future_heads.states(model, seen, count=3):
            assert torch.allclose(state, first, atol=1e-4)


def damaged(change):
    def write(folder):
        file = folder / "future_heads" / "config.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return write


BAD = {
    "none": (lambda folder: shutil.rmtree(folder / "future_heads"), "holds no heads"),
    "no-weights": (lambda folder: (folder / "future_heads" / "model.safetensors").unlink(), "do not load"),
    "cut-weights": (lambda folder: cut(folder / "future_heads" / "model.safetensors"), "do not load"),
    "no-fits": (damaged(lambda values: values.pop("fits")), "damaged: 'fits'"),
    "other-fits": (damaged(lambda values: values.update(fits=["llama"])), "damaged: `fits` is"),
    "another-family": (damaged(lambda values: values["fits"].update(model_type="qwen2")), "model_type qwen2, the"),
    "another-width": (damaged(lambda values: values["fits"].update(hidden_size=64)), "hidden_size 64, the model's is"),
    "another-depth": (damaged(lambda values: values["fits"].update(num_hidden_layers=2)), "num_hidden_layers 2"),
    "another-number": (damaged(lambda values: values.update(n_future_tokens=3)), "do not load"),
    "later-format": (damaged(lambda values: values.update(format=2)), "format 2"),
    "no-kind": (damaged(lambda values: values.pop("kind")), "damaged"),
    "unknown-kind": (damaged(lambda values: values.update(kind="medusa")), "medusa; allowed"),
}


@pytest.mark.parametrize("what", BAD)
def test_heads_that_do_not_fit_are_refused(tmp_path, what):
    with_heads("llama").save_pretrained(tmp_path)
    change, said = BAD[what]
    change(tmp_path)
    with pytest.raises(UserError, match=said):
        load_with_future_heads(tmp_path)


def test_heads_of_other_widths_inside_are_refused(tmp_path):
    """The same model but for the width of its layers' inner parts."""
    with_heads("llama").save_pretrained(tmp_path)
    family_model("llama", intermediate_size=64).save_pretrained(tmp_path / "other")
    shutil.copytree(tmp_path / "future_heads", tmp_path / "other" / "future_heads")
    with pytest.raises(UserError, match=r"do not load.*size mismatch"):
        load_with_future_heads(tmp_path / "other")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_can_have_heads(family):
    check_architecture(family_config(family))


REFUSED = {
    "opt": "not followed by one norm",
    "bloom": "ALiBi",
    "gemma3n_text": "several streams",
    "mamba": "linear_attention",
    "rwkv": "keep a state",
    "recurrent_gemma": "(linear_attention|keep a state)",
    "llama4_text": "no single list",
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_can_have_none_are_refused_by_name(family):
    with pytest.raises(UserError, match=f"on a {family} model: .*{REFUSED[family]}"):
        check_architecture(family_config(family, num_hidden_layers=4))


def test_models_that_are_no_decoders_are_refused():
    with pytest.raises(UserError, match="on a t5 model: it is an encoder-decoder"):
        check_architecture(T5Config())


@pytest.mark.parametrize("number", [-1, 0, 1, 33])
def test_numbers_of_tokens_that_are_refused(number):
    with pytest.raises(UserError, match=f"n_future_tokens: {number}; allowed: 2 to 32"):
        check_heads(number, COPIES)


def test_a_vision_language_model_is_refused(vlm_path):
    from transformers import AutoConfig

    with pytest.raises(UserError, match="vision-language"):
        check_architecture(AutoConfig.from_pretrained(vlm_path))
