"""LoRA over a plain, an 8-bit and a 4-bit base in every stage that takes it: trains, saves, loads, merges."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from benchmarks import quantization_gap
from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.models.adapters import keep_four_bit_trainable
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.planning.check import check
from hpt_trl.runs import reporting, runner, training
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.rho1 import TEXTS
from tests.helpers.stage_runs import KEYS, sums, weights
from tests.helpers.tiny import save_tiny_model

pytest.importorskip("bitsandbytes")

STAGES = ("sft", "ref_tuning", "rho1", "reward", "dpo", "grpo", "ppo", "hpt")
# What a recipe says of the base, and what it is then loaded with.
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "8-bit": ({"load_in_8bit": True}, {"load_in_8bit": True}),
    "4-bit": (
        {"load_in_4bit": True, "use_bnb_nested_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
}
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "max_steps": 2,
}
TEXT = "What is 3 + 45 + 6? 3 + 45 = 48, 48 + 6 = 54\n#### 54"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model and a reference 64 wide (a 4-bit block holds 64 values), and the rows of every stage."""
    folder = tmp_path_factory.mktemp("quantized")
    save_tiny_model(folder / "model", hidden_size=64)
    save_tiny_model(folder / "reference", hidden_size=64, seed=1)
    write_jsonl(folder / "sums.jsonl", sums())
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in TEXTS * 3])
    write_jsonl(folder / "code.jsonl", solutions())
    return folder


@pytest.fixture
def recipe(tmp_path, folder):
    """Writes the recipe of a stage and returns its path; the output folder is `tmp_path / stage`."""

    def write(stage: str, **changes: Any) -> str:
        data = {"ref_tuning": "code.jsonl", "rho1": "texts.jsonl"}.get(stage, "sums.jsonl")
        values = {**KEYS, "stage": stage, "dataset_name": str(folder / data), "test_split_size": 6}
        values |= {"model_name_or_path": str(folder / "model"), "output_dir": str(tmp_path / stage)}
        if stage in ("grpo", "ppo", "hpt"):
            values |= {"num_generations": 2, "max_completion_length": 8, "test_split_size": None}
            values["reward_funcs"] = ["tests.helpers.stage_runs.remainder"]
        if stage == "hpt":
            values["success_threshold"] = 6.0
        if stage == "rho1":
            values |= {"reference_model_name_or_path": str(folder / "reference"), "max_length": 64}
            values["reference_cache_dir"] = str(tmp_path / "scores")
        path = tmp_path / f"{stage}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def trainers(monkeypatch) -> list[Any]:
    """The trainers that `run` makes, in their order."""
    made: list[Any] = []
    build = training.build_trainer

    def kept(*args: Any) -> Any:
        made.append(build(*args))
        return made[-1]

    monkeypatch.setattr(training, "build_trainer", kept)
    return made


def outputs(model: Any, tokenizer: Any) -> torch.Tensor:
    """Log-probabilities of every next token of a text (tokens, vocabulary), or a reward model's score (1)."""
    with torch.no_grad():
        logits = model.eval()(**tokenizer(TEXT, return_tensors="pt")).logits[0].float()
    return logits if logits.shape[-1] == 1 else logits.log_softmax(dim=-1)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


def load(folder: Path, stage: str, **quantization: Any) -> Any:
    """A model whose own type is float32, quantized where settings are given."""
    settings: dict[str, Any] = {"dtype": torch.float32}
    if quantization:
        settings["quantization_config"] = BitsAndBytesConfig(**quantization)
    if stage != "reward":
        return AutoModelForCausalLM.from_pretrained(folder, **settings)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **settings)
    model.config.pad_token_id = 0
    return model


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("stage", STAGES)
def test_an_adapter_trains_saves_loads_and_merges(recipe, trainers, tmp_path, folder, stage, base):
    keys, quantization = BASES[base]
    runner.run(recipe(stage, **LORA, **keys), [])
    trained, out = trainers[0].model, tmp_path / stage
    if stage == "hpt":
        # Demonstrations and rollouts, both.
        assert {line.get("hpt/sft_fraction") for line in reporting.read_metrics(out)} >= {0.5, 1.0}
    used = getattr(trained.config, "quantization_config", None)
    assert {key: getattr(used, key) for key in quantization} == quantization and (used is None) == (base == "plain")
    adapter = load_file(out / "adapter_model.safetensors")
    assert len(adapter) >= 2 * 2 * 7 and all(value.any() for name, value in adapter.items() if "lora_B" in name)
    assert not (out / "model.safetensors").exists()
    assert main(["merge", str(out), str(tmp_path / "merged")]) == 0

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged, full = load(tmp_path / "merged", stage), load(folder / "model", stage)
    assert getattr(merged.config, "quantization_config", None) is None
    expected, untrained = outputs(merged, tokenizer), outputs(full, tokenizer)
    # The merge is exact: base in full precision and adapter, unmerged, say the same. And they say what was learnt.
    assert distance(expected, outputs(PeftModel.from_pretrained(full, out), tokenizer)) < 1e-5
    assert distance(expected, untrained) > 1e-3
    # Over the base that it was trained on, the saved adapter is the model that was trained.
    base_model, learnt = load(folder / "model", stage, **quantization), outputs(trained, tokenizer)
    keep_four_bit_trainable(base_model)
    quantized = outputs(base_model, tokenizer)
    again = PeftModel.from_pretrained(base_model, out)
    types = {name: parameter.dtype for name, parameter in trained.named_parameters()}
    for name, parameter in again.named_parameters():
        parameter.data = parameter.data.to(types[name])
    assert distance(learnt, outputs(again, tokenizer)) < 1e-5
    # QLoRA's known gap: the merged model is about as far from the trained one as the base from its quantized form.
    gap, of_base = distance(learnt, expected), distance(quantized, untrained)
    assert gap < 1e-5 if base == "plain" else gap > 1e-4
    # A reward model's score head is drawn anew at each loading of the base.
    if stage != "reward":
        print(f"{stage} over {base}: merged to trained {gap:.2g} nats, base to its quantized form {of_base:.2g}")
        assert gap < 1.2 * of_base + 1e-5
    assert (out / VALUE_HEAD_FILE).exists() == (tmp_path / "merged" / VALUE_HEAD_FILE).exists() == (stage == "ppo")


@pytest.mark.parametrize("base", ["8-bit", "4-bit"])
def test_a_checkpoint_that_is_quantized_itself_merges_into_the_weights_it_stands_for(
    recipe, trainers, tmp_path, folder, base
):
    load(folder / "model", "sft", **BASES[base][1]).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(tmp_path / "base")
    runner.run(recipe("sft", **LORA, model_name_or_path=str(tmp_path / "base")), [])
    assert main(["merge", str(tmp_path / "sft"), str(tmp_path / "merged")]) == 0
    tokenizer, merged = AutoTokenizer.from_pretrained(tmp_path / "merged"), load(tmp_path / "merged", "sft")
    assert getattr(merged.config, "quantization_config", None) is None
    difference = distance(outputs(trainers[0].model, tokenizer), outputs(merged, tokenizer))
    print(f"sft over a checkpoint in {base}: merged to trained {difference:.2g}")
    # In 8 bits what enters a layer is rounded as well, which no merged weights can repeat.
    assert difference < (1e-3 if base == "4-bit" else 0.05)


def test_the_benchmark_of_the_gap_finds_the_finer_type_nearer(folder):
    found = quantization_gap.main(["--model", str(folder / "model"), "--rows", "2"])["bases"]
    eight, four = found["8-bit"], found["4-bit"]
    for key in ("kl_per_token", "written_token_difference"):
        assert 0 < eight[key] < four[key]


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_stopped_run_over_a_four_bit_base_goes_on_to_the_same_weights(recipe, tmp_path, stage):
    path, out = recipe(stage, **LORA, **BASES["4-bit"][0], save_strategy="steps", save_steps=1), tmp_path / stage
    runner.run(path, [])
    straight = weights(out, "adapter_model.safetensors")
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-1")])
    assert (
        weights(out, "adapter_model.safetensors")
        == straight
        != weights(out / "checkpoint-1", "adapter_model.safetensors")
    )


@pytest.mark.parametrize(
    "name",
    ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "paged_lion_8bit"],
)
def test_an_optimizer_of_bitsandbytes_trains(recipe, trainers, tmp_path, name):
    runner.run(recipe("sft", optim=name), [])
    losses = [line["loss"] for line in reporting.read_metrics(tmp_path / "sft") if "loss" in line]
    assert losses[-1] < losses[0]
    optimizer = trainers[0].optimizer.optimizer
    assert optimizer.is_paged == name.startswith("paged_")
    # Embeddings, and parameters of fewer than 4096 numbers, keep their state in 32 bits.
    kinds = {state["state1"].dtype for state in optimizer.state.values()}
    assert kinds == ({torch.float32, torch.uint8} if "8bit" in name else {torch.float32})


def test_quantized_weights_alone_are_refused(recipe, tmp_path):
    for key in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(UserError, match=rf"sft.yaml, line \d+, `{key}`: .* add `use_peft: true`"):
            check(recipe("sft", **{key: True}), [])
