"""Seconds of a step by a stated model: the numbers of devices, and what a step comes to by hand."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpt_trl.cli import main
from hpt_trl.planning import devices, timing
from hpt_trl.planning.devices import Device, device_of
from hpt_trl.planning.facts import estimate_of
from hpt_trl.planning.rows import describe_rows
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import prepare_recipe
from tests.planning.test_lengths import recipe_of

SLOW = Device("a slow device", flops=1e9, bandwidth=1e9, utilisation=0.5)


def forward_of(config, length: float) -> float:
    """FLOPs of a token in a forward pass, from the config by hand."""
    width, inner = config.hidden_size, config.intermediate_size
    values = 2 * config.num_key_value_heads * (width // config.num_attention_heads)
    layer = 2 * width * width + width * values + 3 * width * inner
    return 2 * (config.num_hidden_layers * layer + config.vocab_size * width) + 2 * width * length * (
        config.num_hidden_layers
    )


def test_a_step_of_sft_by_hand(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "device_of", lambda recipe: SLOW)
    path = recipe_of(tmp_path, tiny_model_path).path
    keys = json.loads(path.read_text()).items()
    of_rollouts = ("reward_funcs", "max_completion_length", "num_generations", "loss_type")
    kept = {key: value for key, value in keys if key not in of_rollouts}
    path.write_text(
        json.dumps(
            kept
            | {"stage": "sft", "max_length": 64, "gradient_checkpointing": True}
            | {"per_device_train_batch_size": 2}
        )
    )
    prepared = prepare_recipe(read_recipe(path, []))
    lengths = describe_rows(prepared)[1]
    cost, device = timing.step_of(prepared, lengths)
    tokens = 2 * 4 * round(lengths.mean)
    assert device is SLOW and cost.generation_seconds == 0 and cost.tokens == tokens
    expected = tokens * 4 * forward_of(prepared.model_config, round(lengths.mean)) / 0.5e9
    assert cost.seconds == pytest.approx(expected)
    said = timing.step_line((cost, device))
    assert " 8 rows of" in said and "50% of the 1 GFLOPS of a slow device" in said


def test_a_step_has_no_more_rows_than_there_are(recipe, monkeypatch):
    """Of 18 rows: a batch of 64 and 1000 accumulation steps end with the epoch, unless rows are packed anew."""
    monkeypatch.setattr(timing, "device_of", lambda recipe: SLOW)

    def found(stage, world_size=1, **changes):
        prepared = prepare_recipe(read_recipe(Path(recipe(stage, **changes)), [], world_size))
        return estimate_of(prepared).total, timing.step_of(prepared, describe_rows(prepared)[1])[0].rows

    for stage, rows in (("sft", 18), ("dpo", 36)):
        exact = found(stage, per_device_train_batch_size=18)
        assert found(stage, per_device_train_batch_size=64) == exact and exact[1] == rows
        assert found(stage, gradient_accumulation_steps=1000)[1] == rows
    packed = {"packing": True, "max_length": 64}
    assert found("sft", per_device_train_batch_size=64, **packed)[1] == 64
    assert found("sft", world_size=2, per_device_train_batch_size=64)[1] == 128


def test_a_generation_by_hand(tiny_model_path, tmp_path, monkeypatch):
    """Twelve tokens of 32 completions at once: computing is slower than reading here; half a millisecond a layer."""
    prepared = prepare_recipe(recipe_of(tmp_path, tiny_model_path))
    lengths, config = describe_rows(prepared)[1], prepared.model_config
    found = {}
    for name, bandwidth in (("computes", 1e15), ("reads", 1e6)):
        device = replace(SLOW, bandwidth=bandwidth)
        monkeypatch.setattr(timing, "device_of", lambda recipe, device=device: device)
        found[name] = timing.step_of(prepared, lengths)[0].generation_seconds
    prompts, mean = round(lengths.mean), round(lengths.mean) + 12 - 6
    begun = 32 * prompts * forward_of(config, prompts) / 0.5e9
    token = 32 * forward_of(config, mean) / 0.5e9 + 0.0005 * config.num_hidden_layers
    assert found["computes"] == pytest.approx(begun + 12 * token)
    weights = 4 * AutoModelForCausalLM.from_pretrained(tiny_model_path).num_parameters()
    values = (
        2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    )
    read = (weights + 32 * mean * values * 4) / (1e6 * 0.6) + 0.0005 * config.num_hidden_layers
    assert found["reads"] == pytest.approx(begun + 12 * read)


def test_a_cpu_is_measured_by_its_products(tiny_model_path, tmp_path):
    devices._this_cpu.cache_clear()
    recipe = recipe_of(tmp_path, tiny_model_path)
    found = device_of(recipe)
    one = torch.full((1024, 1024), 0.5)
    begin = time.perf_counter()
    for _ in range(4):
        one @ one
    rate = 4 * 2 * 1024**3 / (time.perf_counter() - begin)
    # Others compute here as well: the same within a factor.
    assert 0.1 < found.flops / rate < 10 and found.bandwidth > 1e8 and found.shared
    assert found.utilisation == devices.OF_CPU


@pytest.mark.parametrize(
    ("name", "tflops", "gigabytes"),
    [("NVIDIA A100-SXM4-80GB", 312, 2000), ("NVIDIA A100-SXM4-40GB", 312, 1555), ("NVIDIA H100 80GB HBM3", 989, 3350)],
)
def test_gpus_have_the_numbers_of_their_data_sheets(name, tflops, gigabytes):
    assert devices._gpu(name) == (tflops * 1e12, gigabytes * 1e9) and devices._gpu("Quadro K420") is None


def test_check_tells_the_time_of_a_step(tiny_model_path, tmp_path, capsys):
    path = str(recipe_of(tmp_path, tiny_model_path).path)
    assert main(["check", path]) == 0
    assert "computed, not measured (--measure does): 32 rows of" in capsys.readouterr().out
    assert main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step_seconds"] > found["generation_seconds"] > 0
