"""The built-in `tiny-vlm`, and the tiny Qwen2.5-VL of the tests: real processors, turns with images anywhere."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics3Config
from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.digests import model_digest
from hpt_trl.models.end_tokens import end_token_ids
from hpt_trl.models.loading import load_config, load_tokenizer, model_exists, positions_of
from hpt_trl.models.whole_models import resolve_model
from tests.helpers.processes import hpt_trl
from tests.helpers.qwen_vl import save_tiny_qwen_vl

NAME = "tiny-vlm"
# Of every weight: sum of magnitudes, and sum. Where they change, raise the version in the name of the folder.
# Not bytes: how a processor computes a normal number differs in the last ones.
WEIGHTS = (12131.95, 1212.37)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPT_TRL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> str:
    return save_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen2.5-vl")


@pytest.fixture(params=[NAME, "qwen2.5-vl"])
def family(request, cache) -> str:
    return NAME if request.param == NAME else request.getfixturevalue("qwen")


def said(role: str, text: str = "", *, image: bool = False) -> dict:
    parts = [{"type": "image"}] if image else []
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if text else parts}


TURNS = [
    said("user", "Which colour has the card of Norwick?"),
    said("assistant", "<think>I need a page.</think><search>Card of Norwick</search>"),
    said("user", image=True),
    said("assistant", "<think>I look closer.</think><bbox>[12, 12, 628, 428]</bbox>"),
    said("user", "Here it is.", image=True),
    said("assistant", "<think>I can see it.</think><answer>red</answer>"),
]


def encoded(processor, turns: list[dict], **settings) -> dict:
    text = processor.apply_chat_template(turns, tokenize=False, **settings)
    images = [Image.new("RGB", (640, 480), (205, 35, 40))] * sum(
        part["type"] == "image" for turn in turns for part in turn["content"]
    )
    return processor(images=[images] if images else None, text=[text], return_tensors="pt")


def test_config_and_processor_need_no_file_and_are_those_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    model_exists(NAME)
    config, processor = load_config(NAME), load_tokenizer(NAME)
    assert not list(tmp_path.iterdir())
    assert isinstance(config, Idefics3Config) and positions_of(config) == 2048
    assert resolve_model(NAME) == str(tmp_path / BUILT_IN[NAME].folder)
    stored = load_tokenizer(NAME)
    for loaded in (processor, stored):
        assert (loaded.tokenizer.eos_token, loaded.tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
        assert (loaded.tokenizer.padding_side, loaded.tokenizer.model_max_length) == ("left", 2048)
    assert stored.chat_template == processor.chat_template
    assert stored.tokenizer.response_template == processor.tokenizer.response_template
    assert stored.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    same = [encoded(loaded, TURNS) for loaded in (processor, stored)]
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])
    told = {**load_config(NAME).to_dict(), "_name_or_path": "", "dtype": None, "architectures": None}
    for part in (told, told["text_config"], told["vision_config"]):
        part.pop("dtype", None)
    fresh = {**config.to_dict(), "_name_or_path": "", "architectures": None}
    for part in (fresh, fresh["text_config"], fresh["vision_config"]):
        part.pop("dtype", None)
    assert told == fresh
    assert end_token_ids(NAME, processor.tokenizer.eos_token_id) == [processor.tokenizer.eos_token_id]


def test_the_name_means_the_same_weights_everywhere(cache, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = AutoModelForImageTextToText.from_pretrained(resolve_model(NAME))
    assert torch.equal(torch.get_rng_state(), before)
    weights = torch.cat([weight.double().flatten() for weight in model.parameters()])
    assert (weights.abs().sum().item(), weights.sum().item()) == pytest.approx(WEIGHTS, abs=0.05)
    assert model.dtype == torch.float32 and model.num_parameters() < 1_000_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    first = model_digest(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPT_TRL_CACHE", str(tmp_path))
        assert model_digest(NAME) == first


def test_any_text_encodes_and_what_pages_say_is_short(cache):
    tokenizer = load_tokenizer(NAME).tokenizer
    for text in ("Ünïcödé ✓ 日本\n\t x=1234567", "<search>Card of Norwick</search>", "a  b\r\n", "<think>", "{}[]"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("<search>Card of Norwick 1987</search>") == [
        "<search>", "Card", "Ġof", "ĠNor", "wick", "Ġ", "1", "9", "8", "7", "</search>"
    ]  # fmt: skip
    # A completion that is decoded without special tokens keeps its tags.
    ids = tokenizer("<think>a</think><bbox>[1]</bbox><answer>red</answer><|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><bbox>[1]</bbox><answer>red</answer>"


def test_turns_that_follow_change_no_earlier_token(family):
    processor = load_tokenizer(family)
    whole = encoded(processor, TURNS)["input_ids"][0].tolist()
    for count in (1, 3, 5):
        part = encoded(processor, TURNS[:count], add_generation_prompt=True)["input_ids"][0].tolist()
        assert whole[: len(part)] == part
        part = encoded(processor, TURNS[: count + 1])["input_ids"][0].tolist()
        assert whole[: len(part)] == part
    with_system = [said("system", "Be brief."), *TURNS]
    assert "Be brief." in processor.apply_chat_template(with_system, tokenize=False)


def test_every_image_gets_its_tokens_and_the_vision_weights_a_gradient(family):
    processor = load_tokenizer(family)
    model = AutoModelForImageTextToText.from_pretrained(resolve_model(family), dtype=torch.float32)
    batch = encoded(processor, TURNS)
    images = int((batch["input_ids"] == model.config.image_token_id).sum())
    # Idefics3: 4 each. Qwen: 640 x 480 become 32 x 24 pixels, 4 x 3 tokens of 8 x 8 pixels.
    assert images == 2 * (4 if family == NAME else 12)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    vision = [(name, weight.grad) for name, weight in model.named_parameters() if "vision" in name or "visual" in name]
    moved = [name for name, gradient in vision if gradient is not None and gradient.abs().max() > 0]
    assert len(moved) > 0.9 * len(vision) > 10
    # Another image is another sequence to it.
    other = {**batch, "pixel_values": -batch["pixel_values"]}
    with torch.no_grad():
        assert not torch.allclose(model(**batch).logits[0, -1], model(**other).logits[0, -1])
    model.generation_config.do_sample = False
    question = encoded(processor, TURNS[:3], add_generation_prompt=True)
    assert model.generate(**question, max_new_tokens=2).shape[1] == question["input_ids"].shape[1] + 2


def test_left_padding_leaves_what_is_said_alone(cache):
    processor = load_tokenizer(NAME)
    model = AutoModelForImageTextToText.from_pretrained(resolve_model(NAME)).eval()
    long, short = TURNS[:5], TURNS[:3]
    red = Image.new("RGB", (640, 480), (205, 35, 40))
    texts = [
        processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in (long, short)
    ]
    both = processor(images=[[red, red], [red]], text=texts, padding=True, return_tensors="pt")
    alone = processor(images=[[red]], text=texts[1:], return_tensors="pt")
    assert both["input_ids"][1, 0] == processor.tokenizer.pad_token_id
    positions = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(**both, position_ids=positions).logits[1, -1]
        assert torch.allclose(padded, model(**alone).logits[0, -1], atol=1e-5)


def test_the_template_knows_tools(cache):
    processor = load_tokenizer(NAME)
    assert supports_tool_calling(processor) and is_chat_template_prefix_preserving(processor)
    search = {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Find a page.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    }
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "Card of Norwick"}}}
    turns = [
        said("system", "Be brief."),
        said("user", "Which colour?"),
        {**said("assistant", "<think>I need a page.</think>"), "tool_calls": [call]},
        said("tool", image=True),
    ]
    text = processor.apply_chat_template(turns, tools=[search], add_generation_prompt=True, tokenize=False)
    assert text.count("Be brief.") == 1 and "Find a page." in text
    answer = text.split("<|im_start|>assistant\n")[1]
    assert answer.startswith('<think>I need a page.</think><tool_call>{"name": "search", "arguments": {"query": ')
    assert text.endswith("<|im_start|>tool\n<image><|im_end|>\n<|im_start|>assistant\n")
    parsed = processor.tokenizer.parse_response(answer.split("<|im_start|>")[0], prefix="<|im_start|>assistant\n")
    assert parsed["content"] == "<think>I need a page.</think>" and parsed["tool_calls"] == [call]


def test_check_takes_it_with_made_pages(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"stage: sft\nmodel_name_or_path: tiny-vlm\ndataset_name: pages\noutput_dir: {tmp_path}/out\nmax_steps: 1\n"
        f"dataset_options: {{size: 4, test_size: 2, layouts: swatch, folder: {tmp_path}/pages}}\n"
    )
    done = hpt_trl("check", str(recipe), HPT_TRL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "tiny-vlm (idefics3, dtype float32)" in done.stdout and "pages (test), 2 rows" in done.stdout
    assert "<answer>" in done.stdout and not (tmp_path / "cache").exists()
