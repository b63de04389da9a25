"""`hpt-trl chat`: answers are those of the model itself, and mistakes are told before torch is imported."""

import io
import json
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from hpt_trl.chat.found import find_chat_model
from hpt_trl.chat.talking import wording_of
from hpt_trl.cli import main
from hpt_trl.data.solution_texts import alpaca_prompt
from hpt_trl.errors import UserError
from hpt_trl.terminal import printable
from tests.helpers.images import TEMPLATE
from tests.helpers.processes import ENVIRONMENT
from tests.helpers.terminals import Terminal
from tests.helpers.tiny import build_model

NEW = 12


@pytest.fixture
def folder(tmp_path, tiny_model_path):
    """The output folder of a run: the tiny model, its tokenizer and a recipe."""

    def make(name: str = "run", template: str | None = "", hidden_size: int = 32, **recipe):
        path = tmp_path / name
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
        build_model(tokenizer, hidden_size=hidden_size).save_pretrained(path)
        tokenizer.chat_template = tokenizer.chat_template if template == "" else template
        tokenizer.save_pretrained(path)
        (path / "recipe.yaml").write_text(yaml.safe_dump({"stage": "sft", "output_dir": str(path)} | recipe))
        return path

    return make


@pytest.fixture
def adapter(tmp_path, folder):
    """An output folder with a LoRA adapter whose answers are not its base's, and the base's folder."""
    from peft import LoraConfig, get_peft_model

    def make(hidden_size: int = 32, **recipe):
        base = folder("base", hidden_size=hidden_size)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        )
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=1.0)
        path = tmp_path / "adapter"
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(base).save_pretrained(path)
        (path / "recipe.yaml").write_text(yaml.safe_dump({"stage": "sft", "output_dir": str(path)} | recipe))
        return path, base

    return make


def expected(model, tokenizer, prompt: str) -> str:
    """The likeliest answer, token by token, without `generate`."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(NEW):
        with torch.no_grad():
            token = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def rendered(*messages: tuple[str, str]) -> str:
    """ChatML, as the tiny model's template has it."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + "<|im_start|>assistant\n"


def answered(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["chat", *map(str, words), "--max_new_tokens", str(NEW)]) == 0
    return capsys.readouterr().out


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def test_one_answer_is_the_model_s_own(folder, capsys):
    path = folder(system_prompt="Be brief.", prompt_template="Q: {prompt}")
    prompt = rendered(("system", "Be brief."), ("user", "Q: What is 2 + 3?"))
    assert answered(capsys, path, "--prompt", "What is 2 + 3?") == printable(expected(*loaded(path), prompt)) + "\n"
    prompt = rendered(("system", "Other"), ("user", "Q: What is 2 + 3?"))
    other = answered(capsys, path, "--prompt", "What is 2 + 3?", "--system", "Other")
    assert other == printable(expected(*loaded(path), prompt)) + "\n"


def test_several_turns_and_a_new_beginning(folder, capsys, monkeypatch):
    path = folder()
    model, tokenizer = loaded(path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n/clear\n/nothing\ntwo\n/exit\nnever\n"))
    said = answered(capsys, path)
    first = expected(model, tokenizer, rendered(("user", "one")))
    second = expected(model, tokenizer, rendered(("user", "one"), ("assistant", first), ("user", "two")))
    anew = expected(model, tokenizer, rendered(("user", "two")))
    assert second != anew
    assert said == "".join(printable(text) + "\n" for text in (first, second, anew))


def test_a_model_without_chat_template_continues_each_text(folder, capsys, monkeypatch):
    path = folder(template=None, prompt_template="Question: {prompt}\nAnswer:")
    model, tokenizer = loaded(path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    texts = [expected(model, tokenizer, f"Question: {text}\nAnswer:") for text in ("one", "two")]
    assert answered(capsys, path) == "".join(printable(text) + "\n" for text in texts)
    assert main(["chat", str(path), "--prompt", "x", "--system", "Be brief."]) == 2
    assert "no system message" in capsys.readouterr().err


def test_an_adapter_stands_on_its_base(adapter, capsys):
    from peft import PeftModel

    path, base = adapter()
    model, tokenizer = loaded(base)
    prompt = rendered(("user", "What is 2 + 3?"))
    plain = expected(model, tokenizer, prompt)
    trained = expected(PeftModel.from_pretrained(model, path).eval(), tokenizer, prompt)
    assert plain != trained
    assert answered(capsys, path, "--prompt", "What is 2 + 3?") == printable(trained) + "\n"


def test_an_adapter_on_a_base_in_4_bits(adapter, capsys):
    from peft import PeftModel

    # bitsandbytes' kernels for a CPU take blocks of 64.
    path, base = adapter(64, load_in_4bit=True, bnb_4bit_quant_type="nf4", use_peft=True)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, device_map={"": "cpu"})
    model = PeftModel.from_pretrained(model, path).eval()
    wanted = expected(model, AutoTokenizer.from_pretrained(base), rendered(("user", "What is 2 + 3?")))
    assert answered(capsys, path, "--prompt", "What is 2 + 3?") == printable(wanted) + "\n"


def test_an_image_and_a_text(tmp_path, vlm_path, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    model, processor = AutoModelForImageTextToText.from_pretrained(vlm_path), AutoProcessor.from_pretrained(vlm_path)
    said = answered(capsys, vlm_path, "--prompt", "What?", "--image", tmp_path / "red.png")
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        chat_template=TEMPLATE,
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=[[Image.open(tmp_path / "red.png")]], return_tensors="pt")
    image_token = model.config.image_token_id
    ids, start = inputs.pop("input_ids"), None
    start = ids.shape[1]
    inputs.pop("attention_mask")
    for _ in range(NEW):
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, **inputs).logits[0, -1]
        logits[image_token] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
        if ids[0, -1] == processor.tokenizer.eos_token_id:
            break
    wanted = processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert said == printable(wanted) + "\n"
    assert answered(capsys, vlm_path, "--prompt", "What?") != ""


def test_draws_follow_the_seed(folder, capsys):
    path = folder()
    hot = [answered(capsys, path, "--prompt", "one", "--temperature", "5", "--seed", seed) for seed in ("1", "1", "2")]
    assert hot[0] == hot[1] != hot[2]


def test_a_conversation_that_is_too_long_says_so_and_goes_on(folder, capsys, monkeypatch):
    path = folder()
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2 3 4 " * 300 + "\nshort\n"))
    said = answered(capsys, path)
    assert said == printable(expected(*loaded(path), rendered(("user", "short")))) + "\n"
    assert main(["chat", str(path), "--prompt", "1 2 3 4 " * 300]) == 2
    assert "tokens, and the model takes 512" in capsys.readouterr().err


def test_the_prompt_is_that_of_the_stage():
    assert wording_of({"stage": "ref_tuning"}, has_template=True, system=None).prompt("x") == alpaca_prompt("x")
    assert not wording_of({"stage": "ref_tuning"}, has_template=True, system=None).chat
    assert wording_of({"stage": "ref_tuning", "conversational": True}, has_template=True, system=None).chat
    plain = {"stage": "mtp", "dataset_layout": "solutions", "solution_prompt": "plain"}
    assert wording_of(plain, has_template=True, system=None).prompt("x") == "x"
    assert wording_of({"stage": "mtp"}, has_template=True, system=None).chat
    assert not wording_of({}, has_template=False, system=None).chat


def bad_folders(tmp_path, folder, adapter):
    """Folder or words -> what is said of them."""
    run, adapted = folder(), adapter()[0]
    judge = tmp_path / "judge"
    AutoModelForSequenceClassification.from_pretrained(run, num_labels=1).save_pretrained(judge)
    critic = tmp_path / "critic"
    critic.mkdir()
    for name in ("config.json", "model.safetensors"):
        (critic / name).write_bytes((run / name).read_bytes())
    (critic / "value_head").mkdir()
    (critic / "value_head" / "value_head.json").write_text("{}")
    index = tmp_path / "indexed" / "index"
    index.mkdir(parents=True)
    (index / "index.json").write_text("{}")
    measured = tmp_path / "measured"
    measured.mkdir()
    (measured / "recipe.yaml").write_text("stage: evaluate\nmodel_name_or_path: outputs/x\n")
    chain = tmp_path / "chain"
    chain.mkdir()
    (chain / "pipeline.json").write_text(json.dumps({"pipeline": "p", "order": ["sft", "reward"], "stages": {}}))
    for name, source in (("sft", run), ("reward", judge)):
        (chain / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (chain / name / file).write_bytes((source / file).read_bytes())
    started = tmp_path / "started"
    (started / "checkpoint-3").mkdir(parents=True)
    (started / "recipe.yaml").write_text("stage: sft\n")
    for name in ("config.json", "model.safetensors"):
        (started / "checkpoint-3" / name).write_bytes((run / name).read_bytes())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").write_bytes(b"")
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    (weightless / "config.json").write_text("{}")
    lost = tmp_path / "lost"
    lost.mkdir()
    values = json.loads((adapted / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": "outputs/gone"}))
    (lost / "adapter_model.safetensors").write_bytes(b"")
    scoring = tmp_path / "scoring"
    scoring.mkdir()
    (scoring / "adapter_config.json").write_text(json.dumps(values | {"task_type": "SEQ_CLS"}))
    (scoring / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    return {
        (str(tmp_path / "nowhere"),): "there is no folder",
        (str(run / "config.json"),): "is a file",
        (str(tmp_path / "empty"),): "holds no model (neither config.json nor an adapter)",
        (str(judge),): "holds a reward model",
        (str(scoring),): "holds a reward model",
        (str(critic),): "holds a critic",
        (str(index),): f"holds a search index; ask it with `hpt-trl search {index}",
        (str(index.parent),): f"holds a search index; ask it with `hpt-trl search {index}",
        (str(measured),): "holds an evaluation, no model; name what it measured: outputs/x",
        (str(chain),): f"holds a pipeline; name one of its stages: {chain}/sft.",
        (str(started),): f"holds no model yet; its newest checkpoint is {started}/checkpoint-3",
        (str(broken),): "config.json cannot be read",
        (str(weightless),): "holds no weights",
        (str(lost),): "the base model of the adapter in",
        (str(run), "--temperature", "-1"): "--temperature: -1 is not allowed",
        (str(run), "--temperature", "nan"): "--temperature: nan is not allowed",
        (str(run), "--max_new_tokens", "0"): "--max_new_tokens: 0 is not allowed",
        (str(run), "--image", str(tmp_path / "text.png")): "holds a model of text alone",
    }


def test_mistakes_are_one_line_before_torch_is_imported(tmp_path, folder, adapter):
    cases = bad_folders(tmp_path, folder, adapter)
    code = (
        "import json, sys; from hpt_trl.cli import main;"
        "codes = [main(['chat', *words, '--prompt', 'x']) for words in json.loads(sys.argv[1])];"
        "heavy = {'torch', 'transformers', 'trl', 'peft'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else set(codes) != {2})"
    )
    started = time.perf_counter()
    words = [sys.executable, "-c", code, json.dumps(list(cases))]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(cases) and done.stdout == ""
    for line, (given, said) in zip(lines, cases.items(), strict=True):
        assert line.startswith("error: ") and said in line, (given, line)
    assert time.perf_counter() - started < 10


def test_images_that_cannot_be_read(tmp_path, vlm_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    for name, said in (("text.png", "cannot be read as an image"), ("gone.png", "there is no file")):
        assert main(["chat", vlm_path, "--prompt", "x", "--image", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_a_checkpoint_has_its_run_s_recipe(tmp_path, folder):
    run = folder(system_prompt="Be brief.")
    checkpoint = run / "checkpoint-2"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_bytes((run / name).read_bytes())
    assert find_chat_model(str(checkpoint)).recipe["system_prompt"] == "Be brief."
    with pytest.raises(UserError, match="no folder"):
        find_chat_model(str(tmp_path / "gone"))


def test_on_a_terminal_it_asks_and_ends_quietly(folder):
    """Ctrl-D in one, Ctrl-C in another; no traceback, and exit code 0."""
    for end in ("\x04", "\x03"):
        terminal = Terminal("-m", "hpt_trl", "chat", str(folder(f"run{ord(end)}")), "--max_new_tokens", "4")
        terminal.read(lambda seen: "> " in seen)
        terminal.write("What is 2 + 3?\n")
        terminal.read(lambda seen: seen.count("> ") == 2)
        # Between its prompt and its reading Python's `input` does not hear of Ctrl-C.
        time.sleep(0.5)
        terminal.write(end)
        assert terminal.ended() == 0, terminal.seen
        assert "/clear begins anew" in terminal.seen and "Traceback" not in terminal.seen
