"""benchmarks/gpu.py on a tiny shape, for real: every section, its figures and what the table of peaks says."""

import json
import math
from importlib.util import find_spec

import pytest

from benchmarks import flops, gpu
from hpt_trl.planning.devices import peak_flops_of
from tests.helpers.processes import ROOT


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    words = ["--shape", "tiny", "--steps", "1", "--rounds", "1", "--output", str(path)]
    assert gpu.main(words)["sections"].keys() == set(gpu.SECTIONS)
    return json.loads(path.read_text())


def test_a_peak_is_known_of_the_devices_of_the_table_alone(report):
    peak = peak_flops_of(report["device"])
    assert report["peak_tflops"] == (peak and peak / 1e12)
    assert report["device"] != "cpu" or peak is None


@pytest.mark.parametrize("section", gpu.SECTIONS)
def test_every_section_has_both_sides_and_finite_ratios(report, section):
    found = report["sections"][section]
    if section == "lora-4bit" and find_spec("bitsandbytes") is None:
        assert found == {"skipped": "bitsandbytes is not installed: pip install bitsandbytes"}
        return
    for name in ("ratio_median", "ratio_min", "ratio_max"):
        assert math.isfinite(found[name]) and found[name] > 0
    for side in ("ours", "stock"):
        tflops, mfu = found[side]["tflops_per_second"], found[side]["mfu"]
        assert found[side]["tokens_per_second"] > 0 and tflops > 0
        if (peak := report["peak_tflops"]) is None:
            assert mfu is None
        else:
            assert mfu == pytest.approx(tflops / peak, abs=1e-4)  # both are rounded to four digits


def test_a_step_has_the_tokens_that_it_was_given(report):
    shape = report["shape"]
    for section in ("sft", "rho1", "lora"):
        # One row's first token is the tokenizer's own, its last the trainer's.
        assert report["sections"][section]["tokens_per_step"] == shape["rows"] * shape["tokens"]
    # 64 rollouts, no prompt above its limit, no completion either.
    grpo = report["sections"]["grpo"]["tokens_per_step"]
    assert 64 * (shape["prompt"] // 2 + shape["completion"] // 4) < grpo < 64 * (shape["prompt"] + shape["completion"])


def test_the_full_shape_is_that_of_the_published_figures():
    published = [json.loads(path.read_text())["shape"] for path in (ROOT / "benchmarks/results").glob("gpu-*.json")]
    assert len(published) == 4
    for shape in published:
        for model in ("small", "large"):
            assert getattr(gpu.SHAPES["full"], model) == shape[model]


def test_flops_of_a_step_by_hand(tiny_model_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    counted = flops.Flops(model)
    ids = torch.ones(2, 8, dtype=torch.long)
    model(input_ids=ids, attention_mask=torch.tensor([[1] * 8, [0] * 4 + [1] * 4]))
    # Width 32, MLP 64, 2 layers: q and o 32 x 32, k and v 32 x 16, three of 32 x 64; a head of 32 x vocabulary.
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * model.config.vocab_size
    # 12 tokens, positions squared 64 + 16, both matrices of both layers, half of the square.
    forward = 12 * 2 * linear + (64 + 16) * 2 * 32 * 2
    assert counted.take() == 3 * forward
    with torch.no_grad():
        model(input_ids=ids)
    assert counted.take() == 16 * 2 * linear + 2 * 64 * 2 * 32 * 2


def test_sections_are_left_out_when_the_time_is_over():
    report = gpu.main(["--shape", "tiny", "--sections", "sft", "--minutes", "-1"])
    assert report["sections"] == {"sft": {"skipped": "the -1 minutes were over"}}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_peaks_by_device_name(name, tflops):
    assert peak_flops_of(name) == tflops * 1e12
