"""The benchmarks of multi-token prediction at sizes that say nothing but that they run: every side and figure."""

import argparse
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks import mtp_decoding, mtp_functions, mtp_step
from hpt_trl.cli import main
from hpt_trl.recipes.bundled import find_recipe
from tests.helpers.functions_chain import EVALUATION, FEW, short_chain
from tests.helpers.mtp import mtp


def test_step(tmp_path):
    sizes = ["--layers", "1", "--vocabulary", "400", "--rows", "2", "--tokens", "16", "--rounds", "1"]
    report = mtp_step.main([*sizes, "--output", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    sides = report["sides"]
    assert sides.keys() == mtp_step.SIDES.keys()
    assert sides["sft"]["of_sft"]["ratio"] == sides["sft"]["kept_ratio"] == 1
    # A layer of 2 x 576 x (576 + 192 + 3 x 768 ...) weights and four heads: by hand.
    layer = 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) + 2 * 16 * 576
    head = 2 * 576 * 400
    expected = (3 * 4 * layer + 12 * head) / (3 * layer + 4 * head)
    assert abs(sides["mtp"]["of_sft"]["flops_ratio"] - expected) < 1e-3
    # What is computed again is not kept; our head holds the gradient of the output embeddings, TRL's forms it later.
    assert sides["mtp-checkpoint"]["kept_mib"] < sides["mtp"]["kept_mib"]
    assert sides["mtp"]["formed_early_mib"] == round(400 * 576 * 4 / 2**20, 1)
    assert sides["sft"]["formed_early_mib"] == sides["mtp-kernel"]["formed_early_mib"] == 0


def test_the_flops_of_smollm2():
    # Worked out for SmolLM2-135M at 1,024 tokens a row: 30 layers, width 576, a vocabulary of 49,152.
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    config.update({"num_hidden_layers": 30, "vocab_size": 49152})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    sizes = argparse.Namespace(heads=4, tokens=1024)
    cost = {side: mtp_step.flops(side, model, sizes) for side in mtp_step.SIDES}
    assert abs(cost["mtp"] / cost["sft"] - 1.54) < 0.005
    assert abs(cost["mtp-kernel"] / cost["sft"] - 1.78) < 0.005


def test_decoding(tmp_path, tiny_model_path):
    mtp(tiny_model_path, tmp_path / "model", n_future_tokens=3, max_steps=2).save_model()
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"What is {number} + 4?"}) + "\n" for number in range(6)))
    words = ["--model", str(tmp_path / "model"), "--prompts", str(prompts), "--column", "question"]
    words += ["--template", r"{prompt}\n", "--skip", "2", "--count", "3", "--max_new_tokens", "9"]
    report = mtp_decoding.main([*words, "--output", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    sides = report["sides"]
    assert {side: found["answers_that_differ"] for side, found in sides.items()} == {
        "greedy": 0,
        "heads": 0,
        "lookup": 0,
    }
    assert sides["greedy"]["tokens_per_call"] == sides["greedy"]["ratio_median"] == 1
    assert sides["heads"]["tokens_per_call"] >= 1 and set(sides["heads"]["kept_by_tokens_ahead"]) == {1, 2}


def shortened(name: str, folder: Path, settings: dict) -> str:
    """Writes a bundled recipe with other settings; returns its path."""
    path = folder / f"{name.replace('/', '-')}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(find_recipe(name).read_text()) | settings))
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_functions(tmp_path):
    assert main(["run", short_chain(tmp_path / "chain.yaml", ["pretrain", "ref_tuning", "critic"], tmp_path)]) == 0
    words = ["--train_recipe", shortened("mtp/functions-tiny", tmp_path, FEW | {"use_cpu": True, "logging_steps": 1})]
    words += ["--evaluate_recipe", shortened("evaluate/functions-tiny", tmp_path, EVALUATION | {"use_cpu": True})]
    words += ["--chain", str(tmp_path), "--folder", str(tmp_path / "arms"), "--output", str(tmp_path / "report.json")]
    words += ["--validation", "2", "--test", "2", "--learning_rates", "1e-3", "2e-3", "--seeds", "0", "1"]
    report = mtp_functions.main(words)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    arms = report["arms"]
    assert arms.keys() == mtp_functions.ARMS.keys()
    assert len(report["runs"]) == 6 * (2 + 2)
    for arm, found in arms.items():
        assert len(found["search"]) == len(found["pass@1"]["of_seeds"]) == 2
        assert all(0 <= one <= 1 for k in (1, 2) for one in found[f"pass@{k}"]["of_seeds"])
        assert arm == "uniform" or "pass@1_above_uniform" in found
    # The arms are what their names say.
    of = {arm: [run for run in report["runs"] if run["arm"] == arm] for arm in arms}
    assert all(run["steps"] == of["uniform"][0]["steps"] for run in report["runs"])
    assert not any("mtp/weight_std" in run for arm in ("next_token", "uniform", "rho1") for run in of[arm])
    assert all(run["mtp/weight_std"] > 0 for arm in ("verifiable", "shuffled", "random_matched") for run in of[arm])
    assert len({run["held_out_loss"] for arm in arms for run in of[arm]}) > 6
    # What is finished is not run again.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").glob("*/results.json")}
    assert mtp_functions.main(words)["arms"] == arms
    assert len(written) == 2 * 24 and all(path.stat().st_mtime_ns == before for path, before in written.items())
