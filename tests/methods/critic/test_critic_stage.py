"""Recipes of the stage `critic` from the command on: what they leave, and what is refused before weights are loaded."""

import math
import shutil
import weakref

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from hpt_trl.cli import main
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.methods.critic import baselines
from hpt_trl.methods.critic.baselines import (
    PairMeasures,
    baseline_verdicts,
    fit_logistic,
    language_model,
    measured_pairs,
)
from hpt_trl.methods.critic.figures import pair_figures
from hpt_trl.methods.critic.results import read_curves
from hpt_trl.methods.ppo.critics.value_model import ValueModelCritic
from hpt_trl.models.folders import is_value_model
from hpt_trl.models.value_model import load_value_model
from hpt_trl.planning.facts import estimate_of
from hpt_trl.planning.memory import COMPARES
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.code_problems import solutions
from tests.helpers.datasets import write_jsonl
from tests.helpers.rho1 import _loss
from tests.helpers.stage_runs import KEYS, LORA, results
from tests.helpers.tiny import save_tiny_model


@pytest.fixture
def recipe(tmp_path, tiny_model_path):
    """Writes a recipe of the stage and returns its path."""
    data = write_jsonl(tmp_path / "code.jsonl", solutions(14, 3, 3))

    def write(rows=None, **changes) -> str:
        values = {**KEYS, "stage": "critic", "dataset_name": str(data), "test_split_size": 4, "max_length": 400}
        values |= {"model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "run")}
        values |= {"n_samples": 24, "learning_rate": 1e-2, "head_learning_rate": 2e-2, "max_steps": 12}
        if rows is not None:
            values["dataset_name"] = str(write_jsonl(tmp_path / "rows.jsonl", rows))
        path = tmp_path / "critic.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
        return str(path)

    return write


def test_a_run_leaves_a_value_model_and_how_it_tells_right_from_wrong(recipe, tmp_path, capsys):
    runner.run(recipe(max_steps=40), [])
    printed, found = capsys.readouterr().out, results(tmp_path / "run")
    assert "Drawn from" in printed and "24 pairs, of 10 of 10 problems" in printed and "tokens apart" in printed
    # A new head says nothing; a plus and a minus are soon told apart.
    before, after = found["before"]["held_out"], found["after"]["held_out"]
    assert before["accuracy"] == 0.5 and before["ties"] == 1 and before["loss"] == pytest.approx(math.log(2))
    assert after["accuracy"] == 1.0 and after["loss"] < 0.6
    assert found["after"]["held_out_rows"] == 4
    assert found["after"]["held_out_intervals"]["accuracy"] == pytest.approx(list(wilson(1.0, 4)))
    figures = found["critic"]
    assert figures["critic"]["accuracy"] == 1.0 and figures["pairs"] == 4
    assert set(figures["baselines"]) == {"chance", "length", "likelihood", "length and likelihood"}
    assert figures["same_length_bin"]["pairs"] == 4
    folder = str(tmp_path / "run")
    assert is_value_model(folder) and load_value_model(folder, trainable=False).settings.objective == "pairwise"
    assert "critic" in printed and "Value curves: " in printed and (tmp_path / "run" / "value_curves.png").is_file()
    for pair in read_curves(folder):
        for side in ("right", "wrong"):
            assert len(pair[side]["tokens"]) == len(pair[side]["values"])
            assert "n = int(input())" in "".join(pair[side]["tokens"])
    # Everything is drawn again from the files.
    (tmp_path / "run" / "value_curves.png").unlink()
    assert main(["report", folder]) == 0
    again = capsys.readouterr().out
    assert (tmp_path / "run" / "value_curves.png").is_file() and "critic, 4 pairs in one bin of lengths" in again
    assert "critic/spikiness" in again and "Values inside of a solution" in again


def test_what_it_leaves_is_taken_by_ppo(recipe, tmp_path, tiny_model_path, capsys):
    for name, keys in (("whole", {}), ("adapter", LORA)):
        runner.run(recipe(output_dir=str(tmp_path / name), max_steps=2, **keys), [])
        model = load_value_model(str(tmp_path / name), trainable=False).eval()
        policy = AutoModelForCausalLM.from_pretrained(tiny_model_path)
        critic = ValueModelCritic(policy, load_value_model(str(tmp_path / name), trainable=True))
        ids = torch.arange(3, 9)[None]
        with torch.no_grad(), critic.asked() as values:
            policy(input_ids=ids)
            torch.testing.assert_close(values[0], model(input_ids=ids).token_values)
        assert values[0].std() > 0
    values = {**KEYS, "stage": "ppo", "model_name_or_path": tiny_model_path, "output_dir": str(tmp_path / "ppo")}
    values |= {"dataset_name": "prompts", "dataset_options": {"prompts": ["I feel so", "I am"]}, "max_steps": 1}
    values |= {
        "reward_funcs": ["hpt_trl.rewards.positive_words.positive_words"],
        "max_completion_length": 6,
        "global_batch_size": 2,
    }
    values |= {"per_device_train_batch_size": 2, "test_split_size": None, "num_generations": 1}
    for name in ("whole", "adapter"):
        values |= {"value_model_name_or_path": str(tmp_path / name), "output_dir": str(tmp_path / f"ppo-{name}")}
        path = tmp_path / "ppo.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        assert main(["check", str(path)]) == 0
        runner.run(str(path), [])
        assert results(tmp_path / f"ppo-{name}")["trained"]
    # Of a policy that is an adapter over the same base its own is all that it adds.
    capsys.readouterr()
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **LORA, "output_dir": str(tmp_path / "lora")}))
    assert main(["check", str(path)]) == 0
    assert "an adapter over the policy's base" in " ".join(capsys.readouterr().out.split())


def test_the_regression_and_pairs_that_are_given(recipe, tmp_path, capsys):
    rows = [{"prompt": f"What is {n} + 1?", "chosen": f" {n + 1}", "rejected": f" {n + 2} or so"} for n in range(12)]
    path = recipe(rows, dataset_layout="comparisons", objective="regression", n_samples=None, baseline_pairs=0)
    runner.run(path, [])
    found = results(tmp_path / "run")
    assert "Drawn from" not in capsys.readouterr().out
    assert found["after"]["held_out"]["loss"] < found["before"]["held_out"]["loss"]
    assert "baselines" not in found["critic"]
    assert load_value_model(str(tmp_path / "run"), trainable=False).settings.objective == "regression"


def test_a_run_goes_on(recipe, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_steps": 4}
    runner.run(recipe(output_dir=str(tmp_path / "whole"), **keys), [])
    two = recipe(output_dir=str(tmp_path / "two"), **keys)
    runner.run(two, [])
    (tmp_path / "two" / "results.json").unlink()
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    runner.run(two, ["--resume_from_checkpoint", "true"])
    one, two = (load_value_model(str(tmp_path / name), trainable=False).state_dict() for name in ("whole", "two"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "listwise"}, "allowed: one of pairwise, regression"),
        ({"return_lambda": 2}, "return_lambda"),
        ({"head_learning_rate": 0}, "above 0"),
        ({"dataset_layout": "documents"}, "solutions, comparisons"),
        ({"train_sampling_strategy": "group_by_length"}, "sorts the held-out pairs"),
        ({"max_length": 5}, "have more than 5 tokens"),
        ({"difficulty_bins": [3, 2]}, "rising edges"),
        ({"correct_ratio": 0.5}, "correct_ratio"),
    ],
)
def test_mistakes(changes, said, recipe, tmp_path, capsys):
    assert main(["run", recipe(**changes)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_correct_solutions_alone_are_an_error(recipe, tmp_path, capsys):
    assert main(["run", recipe(solutions(8, 3, 0))]) == 2
    assert "solutions are correct); a pair takes one of each" in capsys.readouterr().err


def test_a_value_model_is_no_language_model(recipe, tmp_path, capsys, tiny_model_path):
    runner.run(recipe(max_steps=1), [])
    folder = str(tmp_path / "run")
    base = {**KEYS, "output_dir": str(tmp_path / "next"), "dataset_name": str(tmp_path / "code.jsonl")}
    for stage, key, said in (
        ("sft", "model_name_or_path", "is a value model, which writes no text"),
        ("rho1", "reference_model_name_or_path", "is a value model, which gives no token a loss"),
    ):
        rows = write_jsonl(tmp_path / "texts.jsonl", [{"text": "a b c", "prompt": "a", "completion": " b"}] * 4)
        values = base | {"stage": stage, "dataset_name": str(rows), "model_name_or_path": tiny_model_path, key: folder}
        path = tmp_path / "next.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != "test_split_size"}))
        capsys.readouterr()
        assert main(["check", str(path)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_over_a_quantized_trunk(recipe, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    # A 4-bit block holds 64 values.
    base, out = save_tiny_model(tmp_path / "wide", hidden_size=64), tmp_path / "run"
    keys = {"model_name_or_path": base, f"load_in_{bits}bit": True, "save_strategy": "steps", "save_steps": 2, **LORA}
    path = recipe(max_steps=4, lora_target_modules="all-linear", **{k: v for k, v in keys.items() if "target" not in k})
    runner.run(path, [])
    weights = {
        name: weight
        for file in ("adapter_model", "value_head/value_head")
        for name, weight in load_file(out / f"{file}.safetensors").items()
    }
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert {weight.dtype for name, weight in weights.items() if name.startswith("layers")} == {torch.float32}
    whole = load_value_model(str(out), trainable=False, dtype=torch.float32)
    quantized = load_value_model(
        str(out), trainable=False, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    )
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        one, other = (model.eval()(input_ids=ids).token_values for model in (whole, quantized))
    assert one.std() > 0 and not torch.equal(one, other)
    # Random weights round coarsely.
    assert (one - other).abs().mean() < 0.7 * one.std()
    # A run that is stopped goes on to the same weights.
    runner.run(path, ["--resume_from_checkpoint", str(out / "checkpoint-2")])
    for file in ("adapter_model", "value_head/value_head"):
        for name, weight in load_file(out / f"{file}.safetensors").items():
            assert torch.equal(weight, weights[name]), name


# The baselines, by themselves.


def test_the_logistic_weights_are_the_best_ones():
    generator = np.random.default_rng(0)
    gaps = generator.normal(size=(400, 2)) * [30, 0.2] + [-8, 0.05]
    found = fit_logistic(gaps, ridge=0.0)

    def loss(weights: np.ndarray) -> float:
        return float(np.log1p(np.exp(-gaps @ weights)).mean())

    best = loss(found)
    for step in generator.normal(size=(200, 2)) * [1e-3, 1e-1]:
        assert loss(found + step) >= best - 1e-12
    # Pairs that one feature tells apart without a fault.
    assert np.isfinite(fit_logistic(np.abs(gaps))).all() and np.isfinite(fit_logistic(np.zeros((5, 2)))).all()


def test_the_rules_are_chosen_on_the_training_pairs():
    train = [PairMeasures((10, 20), (-1.0, -2.0)), PairMeasures((10, 30), (-1.0, -3.0)), PairMeasures((40, 30), None)]
    held_out = [PairMeasures((50, 20), (-2.0, -1.0)), PairMeasures((20, 50), (-1.0, -2.0)), PairMeasures((5, 5), None)]
    found = baseline_verdicts(train, held_out)
    # On the held-out pairs the other rule would do as well.
    assert found == {"length": ("shorter wins", [0.0, 1.0, 0.5])}
    found = baseline_verdicts(train[:2], held_out[:2])
    assert found["likelihood"] == ("likelier wins", [0.0, 1.0])
    assert found["length and likelihood"][1] == [0.0, 1.0]
    longer = [PairMeasures((20, 10)), PairMeasures((30, 10))]
    assert baseline_verdicts(longer, held_out)["length"] == ("longer wins", [1.0, 0.0, 0.5])


def test_figures_of_the_pairs():
    scores = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (3.0, 1.0)]
    held_out = [PairMeasures((10, 20)), PairMeasures((10, 20)), PairMeasures((10, 60)), PairMeasures((120, 60))]
    found = pair_figures(scores, held_out, [PairMeasures((10, 20))])
    assert found["critic"]["accuracy"] == 2.5 / 4 and found["critic"]["interval"] == list(wilson(2.5 / 4, 4))
    assert found["same_length_bin"]["pairs"] == 2 and found["same_length_bin"]["accuracy"] == 0.5
    length = found["baselines"]["length"]
    # Right, wrong, a tie and right, against right, right, right and wrong.
    assert length["accuracy"] == 0.75 and length["critic_less_this"]["difference"] == pytest.approx(-0.125)
    gaps = [0.0, -1.0, -0.5, 1.0]
    assert length["critic_less_this"]["standard_error"] == pytest.approx(np.std(gaps, ddof=1) / 2)
    assert pair_figures(scores, held_out, [])["pairs"] == 4 and "baselines" not in pair_figures(scores, held_out, [])


def test_likelihoods_are_the_models(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    oracle, rows, expected = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float64), [], []
    for number in range(5):
        row, means = {}, []
        for side, answer in (("chosen", f" {number} is it" * (1 + number)), ("rejected", " no")):
            start = len(tokenizer(f"Which {number}?")["input_ids"])
            ids = tokenizer(f"Which {number}?" + answer)["input_ids"]
            row |= {f"{side}_ids": ids, f"{side}_trained": [0] * start + [1] * (len(ids) - start)}
            means.append(-_loss(oracle, ids)[start - 1 :].mean().item())
        rows.append(row)
        expected.append(means)
    model = language_model(tiny_model_path, torch.device("cpu"), dtype="float32")
    found = measured_pairs(rows, ("chosen", "rejected"), model)
    for measures, means, row in zip(found, expected, rows, strict=True):
        assert measures.likelihood == pytest.approx(means, rel=2e-3)
        assert measures.tokens == (sum(row["chosen_trained"]), sum(row["rejected_trained"]))
    assert measured_pairs(rows, ("chosen", "rejected"))[0].likelihood is None


def test_the_language_model_is_there_once_and_its_failure_costs_the_likelihood_alone(
    recipe, tmp_path, monkeypatch, caplog
):
    load, made = baselines.AutoModelForCausalLM.from_pretrained, []

    def noted(*args, **settings):
        if made:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        model = load(*args, **settings)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(baselines.AutoModelForCausalLM, "from_pretrained", noted)
    runner.run(recipe(max_steps=1), [])
    assert "likelihood" in results(tmp_path / "run")["critic"]["baselines"]
    assert len(made) == 1 and made[0]() is None
    runner.run(recipe(max_steps=1), ["--output_dir", str(tmp_path / "short")])
    assert set(results(tmp_path / "short")["critic"]["baselines"]) == {"chance", "length"}
    assert "cannot be asked (CUDA out of memory.)" in caplog.text
    # Known before the run.
    phases = [estimate_of(prepare(recipe(baseline_pairs=n), ["--overwrite", "true"])).phases for n in (9, 0)]
    assert COMPARES in phases[0] and COMPARES not in phases[1]
