"""Merging: the merged, written and loaded model is the one that was trained, and nothing is written where it is not."""

import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from hpt_trl.errors import UserError
from hpt_trl.models import merging
from hpt_trl.models.loading import load_sequence_classifier
from hpt_trl.models.merging import merge_adapter
from hpt_trl.planning.check import check
from hpt_trl.runs import runner
from tests.helpers.stage_runs import LORA, results

IDS = torch.arange(3, 43).reshape(2, 20)
# Kind of adapter over a model with tied embeddings -> whether they are still tied after the merge.
KINDS = {
    "layers": ({"target_modules": ["q_proj", "down_proj"]}, True),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "both": ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, False),
    "both as one": ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    "DoRA": ({"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, False),
    "DoRA of the head": ({"target_modules": ["q_proj", "lm_head"], "use_dora": True}, False),
    "rsLoRA": ({"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True}, False),
    "whole embeddings": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
    "whole head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "whole as one": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        True,
    ),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 8]}, True),
}


def write_adapter(base, folder, *, kind=AutoModelForCausalLM, add_tokens=0, task="CAUSAL_LM", **settings) -> str:
    """An adapter whose every trained weight has moved, with the tokenizer beside it as a run leaves it."""
    torch.manual_seed(1)
    labels = {"num_labels": 1} if task == "SEQ_CLS" else {}
    model = kind.from_pretrained(base, dtype=torch.float32, **labels)
    if add_tokens:
        model.resize_token_embeddings(model.config.vocab_size + add_tokens, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type=task, **settings))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.03 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def unmerged(base, adapter, kind=AutoModelForCausalLM, **settings) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32, **settings), adapter))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_files_of_an_adapter_that_cannot_be_used_are_told_in_a_line(tiny_model_path, tmp_path):
    adapter = write_adapter(tiny_model_path, tmp_path / "adapter", target_modules=["q_proj"])
    for file, was, what in (
        ("adapter_config.json", '"peft_type"', "adapter_config"),
        ("tokenizer.json", '"vocab"', "tokenizer"),
    ):
        whole = (tmp_path / "adapter" / file).read_text()
        assert was in whole
        (tmp_path / "adapter" / file).write_text(whole.replace(was, was.upper(), 1))
        with pytest.raises(UserError, match=rf"the {what}.* of {adapter} cannot be loaded"):
            merge_adapter(adapter, tmp_path / "merged")
        (tmp_path / "adapter" / file).write_text(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_of_tied_embeddings_is_the_trained_one(tiny_model_path, tmp_path, kind):
    settings, tied = KINDS[kind]
    adapter = write_adapter(tiny_model_path, tmp_path / "adapter", **settings)
    merge_adapter(adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = unmerged(tiny_model_path, adapter)
    assert distance(logits(merged), expected) < 1e-5
    assert distance(logits(AutoModelForCausalLM.from_pretrained(tiny_model_path)), expected) > 1e-2
    assert merged.config.tie_word_embeddings == tied == ("lm_head.weight" not in load_file(weights(tmp_path)))
    assert not list(tmp_path.glob(".*"))


def weights(folder):
    return folder / "merged" / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_rounded_once(tiny_model_path, tmp_path, dtype):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=dtype).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(base)
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    merge_adapter(adapter, tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(weights(tmp_path)).values()} == {dtype}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert distance(logits(merged), unmerged(base, adapter)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [372, 374]},
    ],
)
def test_added_tokens_come_along(tiny_model_path, tmp_path, settings):
    adapter = write_adapter(tiny_model_path, tmp_path / "adapter", add_tokens=3, **settings)
    merge_adapter(adapter, tmp_path / "merged")
    base = LlamaForCausalLM.from_pretrained(tiny_model_path)
    size = base.config.vocab_size + 3
    base.resize_token_embeddings(size, mean_resizing=False)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == size and distance(logits(merged), expected) < 1e-5


def test_a_reward_model_merges_and_its_positions_stay_exact(tiny_model_path, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(base)
    classifier = AutoModelForSequenceClassification
    adapter = write_adapter(
        base, tmp_path / "adapter", kind=classifier, task="SEQ_CLS", target_modules=["q_proj", "embed_tokens"]
    )
    adapter = shutil.copytree(adapter, tmp_path / "copy")
    loaded = load_sequence_classifier(str(adapter), pad_token_id=0)
    merge_adapter(adapter, tmp_path / "merged")
    written = classifier.from_pretrained(tmp_path / "merged", dtype="auto")
    assert loaded.dtype == written.dtype == torch.bfloat16
    assert torch.equal(logits(loaded), logits(written))
    frequencies = loaded.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, written.model.rotary_emb.inv_freq)


def test_a_merge_that_would_give_another_model_writes_nothing(tiny_model_path, tmp_path, monkeypatch):
    adapter = write_adapter(tiny_model_path, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    with monkeypatch.context() as patched:
        patched.setattr(merging, "_untie", lambda model, tied: None)
        with pytest.raises(UserError, match="would give another model: the logits differ by"):
            merge_adapter(adapter, tmp_path / "merged")
    with monkeypatch.context() as patched:
        save = LlamaForCausalLM.save_pretrained

        def save_tied(self, folder, **kwargs):
            self.config.tie_word_embeddings = True
            save(self, folder, **kwargs)
            stored = load_file(folder / "model.safetensors")
            save_file({name: stored[name] for name in stored if name != "lm_head.weight"}, folder / "model.safetensors")

        patched.setattr(LlamaForCausalLM, "save_pretrained", save_tied)
        with pytest.raises(UserError, match=r"another one \(lm_head\.weight\)"):
            merge_adapter(adapter, tmp_path / "merged")
    # A weight that is no number.
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stored = {name: torch.full_like(value, torch.nan) for name, value in stored.items()}
    save_file(stored, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="differ by nan"):
        merge_adapter(adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_merge_goes_where_a_link_leads_and_never_over_another_one(tiny_model_path, tmp_path, monkeypatch):
    adapter = write_adapter(tiny_model_path, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    merge_adapter(adapter, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "place" / "model.safetensors").is_file()

    checked = merging._check_written

    def overtaken(*args):
        checked(*args)
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "other").write_text("of another merge")

    monkeypatch.setattr(merging, "_check_written", overtaken)
    with pytest.raises(UserError, match="merged is not empty, and nothing is written over"):
        merge_adapter(adapter, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["other"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "link", "merged", "place"]


def test_prompt_learning_has_no_merged_form(tiny_model_path, tmp_path):
    from peft import PromptTuningConfig

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    settings = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="PROMPT_TUNING has no merged form"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("sft", {"lora_target_modules": ["q_proj", "v_proj", "embed_tokens"]}),
        ("dpo", {"lora_target_modules": ["q_proj", "embed_tokens"]}),
        ("sft", {"lora_modules_to_save": ["lm_head"]}),
        ("reward", {"lora_target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_a_run_that_adapts_the_embeddings_goes_on_from_what_it_learnt(recipe, tmp_path, stage, settings):
    runner.run(recipe(stage, **LORA | {"learning_rate": 0.05} | settings), [])
    learnt = results(tmp_path / stage)
    assert learnt["after"]["held_out"]["loss"] < 0.95 * learnt["before"]["held_out"]["loss"]
    merge_adapter(tmp_path / stage, tmp_path / "merged")
    runner.run(
        recipe(stage, model_name_or_path=str(tmp_path / "merged"), output_dir=str(tmp_path / "next"), max_steps=1), []
    )
    if stage == "dpo":
        # The next run's reference is the merged model, so that its loss begins anew.
        return
    assert results(tmp_path / "next")["before"]["held_out"]["loss"] == pytest.approx(
        learnt["after"]["held_out"]["loss"], rel=1e-4
    )


def test_layers_that_cannot_be_adapted_are_refused_before_the_run(recipe):
    for settings, message in [
        ({"lora_target_modules": ["q_proj", "lm_head"]}, r"lora_target_modules.*`lora_modules_to_save: \[lm_head\]`"),
        ({"lora_target_modules": ["nonesuch", "neither"]}, "lora_target_modules.*not found in the base model"),
    ]:
        with pytest.raises(UserError, match=message):
            check(recipe("sft", **LORA | settings), [])
