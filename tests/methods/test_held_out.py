"""Measures on held-out rows: exact, whatever the batches, and with their errors."""

import json
import math

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM

from hpt_trl.methods.held_out import RowMeasures, errors_of, means_of, measure_held_out
from hpt_trl.runs import reporting, runner
from tests.helpers.forks import run_in_processes
from tests.helpers.held_out_measures import rows, trainer_of
from tests.helpers.processes import free_port

CLOSE = {"rel": 2e-6, "abs": 1e-6}


def log_probs_of(folder: str, ids: list[int], labels: list[int]) -> torch.Tensor:
    """Log-probabilities of the tokens of one row that have a label, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        log_probs = log_softmax(model(torch.tensor([ids])).logits[0, :-1], dim=-1)
    targets = torch.tensor(labels[1:])
    return log_probs[torch.arange(len(targets)), targets.clamp(min=0)][targets != -100]


@pytest.fixture(scope="module")
def measured(tiny_model_path, reference_model_path, tmp_path_factory):
    """Measures of one kind of trainer at one batch size, in this process."""
    trainers = {}

    def measure(kind: str, size: int, **settings) -> dict[str, float]:
        key = (kind, *sorted(settings))
        if key not in trainers:
            folder = str(tmp_path_factory.mktemp(kind))
            trainers[key] = trainer_of(kind, tiny_model_path, folder, reference_model_path, **settings)
        trainers[key].args.per_device_eval_batch_size = size
        return measure_held_out(trainers[key])

    measure.trainers = trainers
    return measure


@pytest.mark.parametrize("kind", ["sft", "flat", "rho1", "dpo", "reward"])
def test_measures_do_not_depend_on_the_batch(measured, kind):
    one = measured(kind, 1)
    assert {"loss"} < set(one) and all(math.isfinite(value) for value in one.values())
    for size in (2, 3, 7, 16):
        assert measured(kind, size) == pytest.approx(one, **CLOSE), size
    # The log has the same values, and nothing is left over for the next evaluation.
    logged = measured.trainers[kind,].state.log_history[-1]
    assert {name: logged[f"eval_{name}"] for name in one} == pytest.approx(one, **CLOSE)
    assert not measured.trainers[kind,]._metrics["eval"]


def test_the_loss_of_sft_is_the_sum_over_tokens_by_their_number(measured, tiny_model_path):
    found = measured("sft", 3)
    data = measured.trainers["sft",].eval_dataset
    parts = [log_probs_of(tiny_model_path, row["input_ids"], row["labels"]) for row in data]
    assert len({len(part) for part in parts}) > 3
    expected = -torch.cat(parts).mean().item()
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    # Packed without padding, each row sees itself alone: the same tokens, the same loss.
    assert measured("flat", 2)["loss"] == pytest.approx(expected, rel=1e-6)
    # Means over rows, or over batches of three, are other numbers.
    assert abs(-torch.stack([part.mean() for part in parts]).mean().item() - expected) > 0.01


def test_dft_is_measured_by_its_own_loss(measured, tiny_model_path):
    found = measured("sft", 4, loss_type="dft")
    data = measured.trainers["sft", "loss_type"].eval_dataset
    log_probs = torch.cat([log_probs_of(tiny_model_path, row["input_ids"], row["labels"]) for row in data])
    assert found["loss"] == pytest.approx((-log_probs * log_probs.exp()).mean().item(), rel=1e-5)


def test_comparisons_count_alike(measured, tiny_model_path, reference_model_path):
    found, beta = measured("dpo", 4), 0.1
    margins = []
    for row in measured.trainers["dpo",].eval_dataset:
        rewards = []
        for name in ("chosen_ids", "rejected_ids"):
            ids, labels = row["prompt_ids"] + row[name], [-100] * len(row["prompt_ids"]) + row[name]
            sums = [log_probs_of(folder, ids, labels).sum() for folder in (tiny_model_path, reference_model_path)]
            rewards.append(beta * (sums[0] - sums[1]))
        margins.append(rewards[0] - rewards[1])
    margins = torch.stack(margins)
    assert found["loss"] == pytest.approx(-logsigmoid(margins).mean().item(), rel=1e-5)
    assert found["rewards/margins"] == pytest.approx(margins.mean().item(), rel=1e-4, abs=1e-5)
    assert found["rewards/accuracies"] == pytest.approx((margins > 0).double().mean().item())
    assert found["rewards/ties"] == 0
    errors = errors_of(measured.trainers["dpo",].held_out_rows)
    assert errors["rewards/margins"] == pytest.approx(margins.std().item() / math.sqrt(len(margins)), rel=1e-4)


def test_a_policy_that_is_its_reference_ties(tiny_model_path, tmp_path):
    found = measure_held_out(trainer_of("dpo", tiny_model_path, str(tmp_path), per_device_eval_batch_size=3))
    assert found["rewards/ties"] == 1 and found["rewards/accuracies"] == 0.5 and found["rewards/margins"] == 0
    assert found["loss"] == pytest.approx(math.log(2))


def test_several_processes_measure_what_one_does(measured, tiny_model_path, reference_model_path, tmp_path):
    words = [tiny_model_path, reference_model_path, str(tmp_path), "3"]
    run_in_processes("tests.helpers.held_out_measures", words, processes=2, port=free_port(), output=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    # Ten rows in two rounds of six: two of them only fill the last round up.
    assert len(rows()) % 6 != 0
    for kind, measures in found.items():
        assert measures == pytest.approx(measured(kind, 2), **CLOSE), kind


def test_errors_are_those_of_independent_rows():
    values = [(2.0, 3.0), (1.0, 5.0), (4.0, 1.0), (3.0, 2.0)]
    found = [RowMeasures(place, {"loss": pair, "score": (pair[0], 1.0)}) for place, pair in enumerate(values)]
    assert means_of(found)["loss"] == pytest.approx(21 / 11)
    # Of a mean over rows it is the usual one; of a ratio, by hand.
    plain = torch.tensor([value for value, _ in values], dtype=torch.float64)
    errors = errors_of(found)
    assert errors["score"] == pytest.approx(plain.std().item() / 2)
    parts = [weight * (value - 21 / 11) for value, weight in values]
    assert errors["loss"] == pytest.approx(math.sqrt(4 / 3 * sum(part * part for part in parts)) / 11)
    # Rows that all change alike leave no doubt about the change, however they differ among themselves.
    later = [
        RowMeasures(row.place, {name: (value - 0.5, weight) for name, (value, weight) in row.values.items()})
        for row in found
    ]
    assert errors_of(later, found)["loss"] == pytest.approx(0, abs=1e-12)
    assert errors_of(found[:1]) == {}


def test_a_step_of_ties_is_half_right(recipe, tmp_path):
    runner.run(recipe("dpo", max_steps=2), [])
    first, second = [line for line in reporting.read_metrics(tmp_path / "dpo") if "rewards/accuracies" in line][:2]
    assert first["rewards/accuracies"] == 0.5 and first["rewards/margins"] == 0
    assert second["rewards/margins"] != 0
