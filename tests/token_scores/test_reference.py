"""A reference model: which models will do, what is said of those that will not, and how it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GraniteConfig,
    Idefics3Processor,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from trl.trainer.utils import add_fused_lm_head

from hpt_trl import UserError
from hpt_trl.models.merging import merge_adapter
from hpt_trl.token_scores.config import ReferenceConfig
from hpt_trl.token_scores.reference import check_reference, fingerprint, is_trained_model, load_reference
from hpt_trl.token_scores.reference_scores import reference_nll
from hpt_trl.token_scores.tokenizers import differences, digest
from tests.helpers.tiny import build_tokenizer, save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(reference_model_path, tmp_path_factory) -> str:
    """A LoRA adapter over the reference that changes it, with the tokenizer beside it as a run leaves it."""
    folder = tmp_path_factory.mktemp("models") / "adapter"
    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(reference_model_path),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(reference_model_path).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def configured(tmp_path):
    def make(name: str, **settings) -> ReferenceConfig:
        settings = {"bf16": False, "use_cpu": True, "max_length": 64} | settings
        return ReferenceConfig(output_dir=str(tmp_path), reference_model_name_or_path=name, **settings)

    return make


def batch(rows: int = 3, tokens: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 372, (rows, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :5] = labels[1, 7:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def plain_nll(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Losses from the whole logits, in float64."""
    labels = inputs["labels"][:, 1:]
    logp = model.double()(inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
    return -logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (labels != -100)


def changed(change) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with something of its file changed."""
    from tokenizers import Tokenizer

    tokenizer = build_tokenizer()
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def test_what_pads_or_renders_chats_may_differ(tiny_model_path):
    ours, other = AutoTokenizer.from_pretrained(tiny_model_path), build_tokenizer()
    other.pad_token, other.padding_side, other.chat_template = "<|im_end|>", "right", None
    assert differences(ours, other) == []
    assert digest(ours) == digest(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts["model"]["merges"].reverse(), ["merges: ", "the text "]),
        (lambda parts: parts.update(normalizer={"type": "NFKC"}), ["normaliser: none here, {'type': 'NFKC'} there"]),
        (lambda parts: parts["pre_tokenizer"].update(use_regex=False), ["pre-tokenizer: "]),
        (lambda parts: parts["added_tokens"][0].update(lstrip=True), ["added tokens: "]),
    ],
    ids=["merges", "normaliser", "pre-tokenizer", "added-tokens"],
)
def test_tokenizers_of_one_vocabulary_are_told_apart(change, said):
    ours, other = build_tokenizer(), changed(change)
    assert ours.get_vocab() == other.get_vocab()
    found = differences(ours, other)
    for text in said:
        assert any(line.startswith(text) for line in found), found
    assert digest(ours) != digest(other)


def test_what_differs_is_said_with_ids():
    ours, smaller = build_tokenizer(), build_tokenizer(300)
    lone = ours.convert_ids_to_tokens(300)
    assert f"vocabulary: {len(ours) - 300} tokens have an id here only, e.g. {lone!r} (300)" in differences(
        ours, smaller
    )
    a, b = ours.convert_tokens_to_ids(["a", "b"])
    moved = changed(lambda parts: parts["model"]["vocab"].update({"a": b, "b": a}))
    assert any("another id, e.g. 'a' is" in line for line in differences(ours, moved))
    ended = build_tokenizer()
    ended.eos_token = "<|endoftext|>"
    assert differences(ours, ended) == ["end-of-sequence token: 2 here, 0 there"]


def test_a_tokenizer_that_begins_texts_is_another():
    def begin(parts):
        special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
        first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
        template = parts["post_processor"]
        template["single"].insert(0, first)
        template["special_tokens"] = special

    found = differences(build_tokenizer(), changed(begin))
    assert "tokens added around a text: [[], []] here, [[1], []] there" in found


def test_references_that_will_not_do(configured, reference_model_path, adapter, tiny_model_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)

    def refused(name, **settings) -> str:
        with pytest.raises(UserError) as caught:
            check_reference(configured(str(name), **settings), tokenizer, model=tiny_model_path)
        assert str(caught.value).startswith("reference_model_name_or_path: ")
        return str(caught.value)

    other = Path(save_tiny_model(tmp_path / "other"))
    build_tokenizer(300).save_pretrained(other)
    assert "another tokenizer" in refused(other) and "tokens have an id here only" in refused(other)
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "nobody/no-such-model" in refused("nobody/no-such-model")
    assert "takes 512 tokens, but `max_length` is 600" in refused(reference_model_path, max_length=600, packing=True)
    # Whether the trained model itself will do, the method decides.
    check_reference(configured(tiny_model_path), tokenizer, model=tiny_model_path)
    assert is_trained_model(configured(tiny_model_path + "/"), tiny_model_path)
    assert not is_trained_model(configured(reference_model_path), tiny_model_path)
    assert not is_trained_model(configured(adapter), adapter)

    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    assert "cannot be loaded" in refused(other)
    classifier = LlamaForSequenceClassification.from_pretrained(reference_model_path, num_labels=1)
    classifier.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    assert "is a reward model" in refused(tmp_path / "reward")

    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    settings = json.loads((moved / "adapter_config.json").read_text())
    for change, said in (
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "the base model of the adapter"),
        ({"task_type": "SEQ_CLS"}, "adapter of a reward model"),
        ({"target_modules": ["q_proj", "lm_head"]}, f"Merge it with `hpt-trl merge {moved} OUT`"),
        ({"target_modules": ".*head"}, "adapts `lm_head`"),
        ({"modules_to_save": ["lm_head"]}, "adapts `lm_head`"),
        ({"peft_type": "PROMPT_TUNING"}, "puts learnt tokens before each row"),
    ):
        (moved / "adapter_config.json").write_text(json.dumps(settings | change))
        assert said in refused(moved)
        assert said in refused(moved, reference_mode="online")

    processor = Idefics3Processor(image_processor=Idefics3ImageProcessorPil(), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"^reference_model_name_or_path: .* does not support images"):
        check_reference(configured(reference_model_path), processor, model="vision")


def test_the_end_of_rows_is_the_one_that_the_training_will_set(configured, tiny_model_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    tuned = Path(save_tiny_model(tmp_path / "tuned", seed=1))
    ended = build_tokenizer()
    ended.eos_token = "<|endoftext|>"
    ended.save_pretrained(tuned)
    check_reference(configured(str(tuned), eos_token="<|endoftext|>"), tokenizer, model=tiny_model_path)
    assert tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(UserError, match="end-of-sequence token: 2 here, 0 there"):
        check_reference(configured(str(tuned)), tokenizer, model=tiny_model_path)


def test_an_adapter_in_the_hubs_cache_is_taken(configured, adapter, tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--someone--adapter", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(adapter, folder / "snapshots" / commit)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    check_reference(configured("someone/adapter"), tokenizer, model=tiny_model_path)
    marks = [fingerprint(configured(name), tokenizer, autocast=None) for name in ("someone/adapter", adapter)]
    assert marks[0] == marks[1] and marks[0]["adapter"] is not None


def test_hub_names_and_adapters_are_checked_without_weights(configured, adapter, tiny_model_path):
    check_reference(configured(adapter), AutoTokenizer.from_pretrained(tiny_model_path), model=tiny_model_path)
    with pytest.raises(UserError, match="another tokenizer"):
        check_reference(
            configured("smollm2-135m"), AutoTokenizer.from_pretrained(tiny_model_path), model=tiny_model_path
        )


def test_an_adapter_scores_as_merged_and_nothing_can_be_trained(configured, adapter, reference_model_path, tmp_path):
    inputs = batch()
    merge_adapter(adapter, tmp_path / "merged")
    loaded = load_reference(configured(adapter), CPU)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    scores = reference_nll(loaded, inputs)
    assert scores.dtype == torch.float16 and scores.shape == inputs["labels"].shape
    merged = reference_nll(load_reference(configured(str(tmp_path / "merged")), CPU), inputs)
    torch.testing.assert_close(scores, merged, rtol=2e-3, atol=1e-5)
    oracle = plain_nll(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), inputs)
    torch.testing.assert_close(scores[:, 1:].double(), oracle, rtol=1e-3, atol=1e-5)
    assert (scores[:, 0] == 0).all()
    base = reference_nll(load_reference(configured(reference_model_path), CPU), inputs)
    assert (base - scores).abs().mean() > 0.1


def test_small_adapters_over_half_precision_are_not_lost(configured, reference_model_path, tmp_path):
    inputs = batch()
    model = AutoModelForCausalLM.from_pretrained(reference_model_path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(reference_model_path).save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    over = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    with torch.no_grad():
        for name, weight in over.named_parameters():
            # Less than the last place of most weights.
            weight.mul_(0.003 if "lora_B" in name else 1)
    over.save_pretrained(tmp_path / "adapter")
    base = reference_nll(load_reference(configured(str(tmp_path / "base")), CPU), inputs)
    scores = reference_nll(load_reference(configured(str(tmp_path / "adapter")), CPU), inputs)
    assert not torch.equal(scores, base)
    # As the online mode has it, which takes turns with the trained adapter over one base.
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    add_fused_lm_head(trained)
    trained = get_peft_model(trained, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained.load_adapter(str(tmp_path / "adapter"), "reference", is_trainable=False)
    trained.set_adapter("reference")
    assert torch.equal(scores, reference_nll(trained.eval(), inputs))


@pytest.mark.parametrize(
    "kind", [Gemma2Config(final_logit_softcapping=2.0, head_dim=8), GraniteConfig(logits_scaling=0.3)]
)
def test_logits_are_scaled_and_capped_as_the_model_does(kind):
    for name, value in {"vocab_size": 372, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}.items():
        setattr(kind, name, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind).eval()
    inputs = batch()
    add_fused_lm_head(model)
    scores = reference_nll(model, inputs)
    torch.testing.assert_close(scores[:, 1:].double(), plain_nll(model, inputs), rtol=1e-3, atol=1e-5)


def test_four_bit_references_score_close_to_whole_ones(configured, adapter, tmp_path):
    base = save_tiny_model(tmp_path / "base", hidden_size=64, seed=1)
    inputs = batch()
    whole = reference_nll(load_reference(configured(base), CPU), inputs)
    four_bit = load_reference(configured(base, reference_load_in_4bit=True), CPU)
    assert four_bit.is_loaded_in_4bit
    # Random weights round coarsely; another model would be apart by more than one.
    assert 0 < (reference_nll(four_bit, inputs) - whole).abs().mean() < 0.6
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(tmp_path / "over")
    adapted = reference_nll(load_reference(configured(str(tmp_path / "over")), CPU), inputs)
    over = load_reference(configured(str(tmp_path / "over"), reference_load_in_4bit=True), CPU)
    assert not any(weight.requires_grad for weight in over.parameters())
    apart = (reference_nll(over, inputs) - adapted).abs().mean()
    assert apart < 0.6 < (whole - adapted).abs().mean()


def test_the_fingerprint_is_of_contents_not_of_names(configured, reference_model_path, adapter, tmp_path):
    reference = reference_model_path
    tokenizer = AutoTokenizer.from_pretrained(reference)

    def taken(name, autocast=None, **settings):
        return fingerprint(configured(str(name), **settings), tokenizer, autocast=autocast)

    copy = Path(shutil.copytree(reference, tmp_path / "copy"))
    (copy / "results.json").write_text("{}")
    assert taken(copy) == taken(reference)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    settings = json.loads((moved / "adapter_config.json").read_text())
    for change, same in (({"base_model_name_or_path": str(copy)}, True), ({"lora_alpha": 3}, False)):
        (moved / "adapter_config.json").write_text(json.dumps(settings | change))
        assert (taken(moved) == taken(adapter)) == same
    shutil.copy(Path(save_tiny_model(tmp_path / "other", seed=2)) / "model.safetensors", copy)
    for other in (
        taken(copy),
        taken(adapter),
        taken(reference, reference_dtype="bfloat16"),
        taken(reference, reference_load_in_4bit=True),
        taken(reference, max_length=32),
        taken(reference, packing=True),
        taken(reference, autocast="torch.bfloat16"),
    ):
        assert other != taken(reference)
