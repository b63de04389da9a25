"""TokenWeights in a training: each step's weights against plain float64, its identities, and how a run goes on."""

import math
from collections import Counter
from statistics import fmean, pstdev

import pytest
import torch
from transformers import AutoTokenizer

from hpt_trl import UserError
from hpt_trl.models.value_model import load_value_model
from hpt_trl.token_scores.kinds import scored_positions
from hpt_trl.token_scores.weighting import STATE_FILE, TokenWeights
from hpt_trl.token_scores.weighting_config import TokenWeightingConfig
from tests.helpers.rho1 import demonstrations, documents
from tests.helpers.rho1 import train as train_other
from tests.helpers.rollouts import weights
from tests.helpers.tiny import save_tiny_model
from tests.helpers.value_models import plain_values, save_value_model
from tests.helpers.weighted import train

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2}


@pytest.fixture
def critic(tiny_model_path, tmp_path) -> str:
    return save_value_model(tiny_model_path, tmp_path / "critic")


def logged(trainer, name: str) -> list[float]:
    return [line[f"mtp/{name}"] for line in trainer.state.log_history if f"mtp/{name}" in line]


class Oracle:
    """The weights of the steps of a run on all rows, one row at a time, in float64."""

    def __init__(self, critic: str, model_path: str, rows=None, **settings):
        tokenizer, model = AutoTokenizer.from_pretrained(model_path), load_value_model(critic, trainable=False)
        self.lam, self.gamma, self.beta = settings.get("lam", 0.95), settings.get("gamma", 1.0), settings.get("beta", 1)
        self.baseline, self.terminal = settings.get("baseline"), settings.get("terminal", "value")
        self.mean, self.std, self.steps = 0.0, 1.0, 0
        self.advantages = []
        for row in rows or demonstrations():
            start = len(tokenizer(row["prompt"])["input_ids"])
            ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
            values = plain_values(model, {"input_ids": ids}).tolist()
            errors = [self.gamma * values[place] - values[place - 1] for place in range(start, len(ids))]
            if self.baseline is not None:
                errors[0] = self.gamma * values[start] - self.baseline
            if self.terminal == "reward":
                errors[-1] = 1.0 - values[-1]
            found, running = [], 0.0
            for error in reversed(errors):
                running = error + self.gamma * self.lam * running
                found.insert(0, running)
            self.advantages.append(found)

    def step(self, *, normalized: bool = True, sign: float = 1.0) -> list[list[float]]:
        """Weights of the next step's rows; the statistics then take it in."""
        raw = [
            [min(max(math.exp(sign * (a - self.mean) / (self.std + 1e-8) / self.beta), 0.1), 3.0) for a in row]
            for row in self.advantages
        ]
        every = [a for row in self.advantages for a in row]
        self.steps += 1
        kept = (self.steps - 1) / 10 if self.steps <= 10 else 0.9
        self.mean = kept * self.mean + (1 - kept) * fmean(every)
        self.std = kept * self.std + (1 - kept) * pstdev(every)
        self.raw = [w for row in raw for w in row]
        scale = fmean(self.raw) if normalized else 1.0
        return [[w / scale for w in row] for row in raw]


def of_rows(seen: torch.Tensor) -> list[list[float]]:
    return [[value for value in row if value != 0] for row in seen.tolist()]


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({}, {}),
        ({"td_lambda": 0.5, "td_gamma": 0.9, "weight_temperature": 0.5}, {"lam": 0.5, "gamma": 0.9, "beta": 0.5}),
        ({"td_first_baseline": 0.5}, {"baseline": 0.5}),
        ({"td_terminal": "reward"}, {"terminal": "reward"}),
        ({"normalize_weights": False}, {}),
        ({"weighting": "inverted"}, {}),
    ],
    ids=["verifiable", "lambda", "baseline", "reward", "as-they-are", "inverted"],
)
def test_the_weights_of_each_step(tiny_model_path, critic, tmp_path, settings, oracle):
    trainer = train(tiny_model_path, critic, tmp_path / "run", max_steps=12, **({"weighting": "verifiable"} | settings))
    expected = Oracle(critic, tiny_model_path, **oracle)
    for number, seen in enumerate(trainer.seen):
        rows = expected.step(
            normalized=settings.get("normalize_weights", True), sign=-1.0 if "weighting" in settings else 1.0
        )
        assert [len(row) for row in of_rows(seen)] == [len(row) for row in rows]
        for ours, theirs in zip(of_rows(seen), rows, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4), number
        assert logged(trainer, "weight_mean")[number] == pytest.approx(fmean(expected.raw), rel=1e-3)
        assert logged(trainer, "weight_std")[number] == pytest.approx(pstdev(expected.raw), rel=1e-3)
        clipped = sum(w in (0.1, 3.0) for w in expected.raw) / len(expected.raw)
        assert logged(trainer, "weight_clipped")[number] == pytest.approx(clipped, abs=1e-6)
        assert seen.dtype == torch.float32
    assert expected.raw and pstdev(expected.raw) > 0.3


def test_the_weighted_loss_is_the_plain_one_token_by_token(tiny_model_path, critic, tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = train(tiny_model_path, critic, tmp_path / "run", weighting="verifiable")
    rows = Oracle(critic, tiny_model_path).step()
    oracle = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float64)
    tokenizer, total, count = AutoTokenizer.from_pretrained(tiny_model_path), 0.0, 0
    for row, mine in zip(demonstrations(), rows, strict=True):
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        logp = oracle(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(ids) - len(mine)
        total = total - sum(w * logp[start + n - 1, ids[start + n]] for n, w in enumerate(mine))
        count += len(mine)
    loss = total / count
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    names = [name for name, _ in oracle.named_parameters()]
    before = {name: weight.detach().clone() for name, weight in oracle.named_parameters()}
    for name, grad in zip(names, torch.autograd.grad(loss, list(oracle.parameters())), strict=True):
        update = (before[name] - weights(trainer)[name].double()) / 0.5
        assert (update - grad).norm() <= 2e-3 * grad.norm() + 1e-6, name


def test_uniform_weights_are_sft(tiny_model_path, tmp_path):
    settings = {"max_steps": 3, **ADAM}
    ours = train(tiny_model_path, None, tmp_path / "ours", weighting="uniform", **settings)
    theirs = train_other("SFTTrainer", tiny_model_path, tmp_path / "theirs", rows="demonstrations", **settings)
    assert all(torch.equal(weight, weights(theirs)[name]) for name, weight in weights(ours).items())
    assert not (tmp_path / "ours" / STATE_FILE).exists()


@pytest.mark.parametrize("weighting", ["verifiable", "shuffled", "inverted", "position", "batch_permuted"])
def test_constant_values_weight_nothing(tiny_model_path, tmp_path, weighting):
    flat = save_value_model(tiny_model_path, tmp_path / "flat", scale=0.0)
    # One head without weights is SFTTrainer's own loss; two are the same code as with weights.
    settings = {"max_steps": 3, "n_future_tokens": 2, **ADAM}
    ours = train(tiny_model_path, flat, tmp_path / "ours", weighting=weighting, **settings)
    plain = train(tiny_model_path, None, tmp_path / "plain", weighting="uniform", **settings)
    assert all(torch.equal(seen, (seen > 0).float()) for seen in ours.seen)
    assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(ours).items())


def test_every_weighting_has_mean_1_over_the_tokens_of_a_step(tiny_model_path, critic, tmp_path):
    for weighting in TokenWeightingConfig.weightings[1:]:
        named = None if weighting == "random_matched" else critic
        trainer = train(
            tiny_model_path,
            named,
            tmp_path / weighting,
            weighting=weighting,
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
        for step in (trainer.seen[:4], trainer.seen[4:]):
            found = torch.cat([seen[seen > 0] for seen in step]).double()
            assert found.mean().item() == pytest.approx(1.0, rel=1e-6), weighting
            assert found.std() > 0.05, weighting


def test_weights_do_not_depend_on_how_a_step_is_cut(tiny_model_path, critic, tmp_path):
    for weighting in ("verifiable", "shuffled", "random_matched", "position"):
        found = []
        for size in (8, 2, 1):
            trainer = train(
                tiny_model_path,
                None if weighting == "random_matched" else critic,
                tmp_path / f"{weighting}-{size}",
                weighting=weighting,
                max_steps=2,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            )
            found.append([row for seen in trainer.seen for row in of_rows(seen)])
        for other in found[1:]:
            for ours, theirs in zip(found[0], other, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4), weighting


def test_the_controls_have_the_weights_without_their_places(tiny_model_path, critic, tmp_path):
    runs = {
        name: train(tiny_model_path, critic, tmp_path / name, weighting=name, max_steps=1)
        for name in ("verifiable", "shuffled", "batch_permuted")
    }
    mine = runs["verifiable"].seen[0]

    def rounded(values) -> Counter:
        return Counter(round(value, 4) for value in values)

    for row in range(8):
        assert rounded(of_rows(mine)[row]) == rounded(of_rows(runs["shuffled"].seen[0])[row])
    assert of_rows(mine) != of_rows(runs["shuffled"].seen[0])
    whole = rounded(value for row in of_rows(mine) for value in row)
    permuted = of_rows(runs["batch_permuted"].seen[0])
    assert rounded(value for row in permuted for value in row) == whole
    assert [rounded(row) for row in permuted] != [rounded(row) for row in of_rows(mine)]


def test_packed_rows_weight_each_document_by_itself(tiny_model_path, critic, tmp_path):
    loose = train(tiny_model_path, critic, tmp_path / "loose", weighting="verifiable", rows=documents())
    settings = {"padding_free": True, "max_length": None}
    flat = train(tiny_model_path, critic, tmp_path / "flat", weighting="verifiable", rows=documents(), **settings)
    assert flat.seen[0].shape[0] == 1 and loose.seen[0].shape[0] == 8
    one, other = (torch.tensor([v for row in of_rows(run.seen[0]) for v in row]) for run in (loose, flat))
    torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


def test_a_value_model_beside_the_training_gives_the_same(tiny_model_path, critic, tmp_path):
    settings = {"weighting": "verifiable", "max_steps": 3, "per_device_train_batch_size": 4}
    settings |= {"gradient_accumulation_steps": 2, **ADAM}
    cached = train(tiny_model_path, critic, tmp_path / "cached", **settings)
    online = train(tiny_model_path, critic, tmp_path / "online", value_mode="online", **settings)
    for one, other in zip(cached.seen, online.seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "cached" / "values").exists() and not (tmp_path / "online" / "values").exists()


def test_what_is_logged_beside(tiny_model_path, critic, tmp_path):
    import numpy as np

    trainer = train(tiny_model_path, critic, tmp_path / "run", weighting="verifiable", learning_rate=0.0)
    seen = of_rows(trainer.seen[0])
    place = [number * 1000 // len(row) / 1000 for row in seen for number in range(len(row))]
    flat = [value for row in seen for value in row]
    assert logged(trainer, "weight_position_correlation")[0] == pytest.approx(np.corrcoef(flat, place)[0, 1], abs=1e-6)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    with torch.no_grad():
        logp = trainer.model(**batch, fused_lm_head=True).log_probs
    nll = (-logp)[scored_positions(batch["labels"])[:, 1:]]
    assert logged(trainer, "weight_nll_correlation")[0] == pytest.approx(np.corrcoef(flat, nll)[0, 1], abs=1e-4)


@pytest.mark.parametrize("weighting", ["verifiable", "position"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tiny_model_path, critic, tmp_path, weighting):
    settings = {"weighting": weighting, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **ADAM}
    settings |= {"value_cache_dir": str(tmp_path / "values")}
    whole = train(tiny_model_path, critic, tmp_path / "whole", **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    again = train(tiny_model_path, critic, tmp_path / "again", resume_from_checkpoint=str(checkpoint), **settings)
    assert all(torch.equal(one, other) for one, other in zip(whole.seen[2:], again.seen, strict=True))
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(whole).items())
    # Without them the weights would be others.
    (checkpoint / STATE_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"token_weights.json is damaged .*\. Resume from another checkpoint, or start"):
        train(tiny_model_path, critic, tmp_path / "no", resume_from_checkpoint=str(checkpoint), **settings)
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(UserError, match=r"token_weights.json, the moving mean and spread, is missing"):
        train(tiny_model_path, critic, tmp_path / "no", resume_from_checkpoint=str(checkpoint), **settings)


def test_weights_that_are_no_numbers_are_named_with_their_row(tiny_model_path, tmp_path):
    broken = save_value_model(save_tiny_model(tmp_path / "base"), tmp_path / "broken", scale=float("inf"))
    with pytest.raises(UserError, match=r"in step 1 the weights of row \d of a batch are no numbers: 'What is"):
        train(tiny_model_path, broken, tmp_path / "run", weighting="verifiable", value_mode="online")


def test_a_batch_without_values_is_a_mistake_of_the_caller(tmp_path, critic):
    config = TokenWeightingConfig(
        str(tmp_path), weighting="verifiable", value_model_name_or_path=critic, bf16=False, use_cpu=True
    )
    batch = {"input_ids": torch.ones(1, 4).long(), "labels": torch.ones(1, 4).long()}
    with pytest.raises(ValueError, match="carries no values"):
        TokenWeights(config, all_sum=lambda value: value).weigh([batch], step=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weighting": "verifyable"}, "allowed: uniform, verifiable, shuffled"),
        ({"weighting": "verifiable"}, "`value_model_name_or_path` is missing"),
        ({"weighting": "uniform", "td_lambda": 1.5}, "`td_lambda` is 1.5"),
        ({"td_terminal": "none"}, "allowed: value, reward"),
        ({"weight_clip_low": 1.5}, "below 1"),
        ({"weight_temperature": 0}, "above 0"),
        ({"weighting": "random_matched", "random_weight_std": 3.0}, "no weights between 0.1 and 3 have the mean"),
        ({"value_mode": "later"}, "allowed: cached, online"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        TokenWeightingConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
