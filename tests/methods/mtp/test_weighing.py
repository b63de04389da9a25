"""Weights of tokens in training: of a value model, of a reference, and their controls, against loops in float64."""

import json
import shutil
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl import UserError, WeightedMTPConfig
from hpt_trl.models.value_model import load_value_model
from hpt_trl.token_scores.weights_page import draw_weights
from tests.helpers.mtp import ROWS, Oracle, assert_same_step, mtp, weights
from tests.helpers.value_models import plain_values, save_value_model
from tests.methods.mtp.test_loss import SHAPES, start_of

N = 3
MODES = ("cached", "online")
FIRST_HEADS = ("full", "selected")
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}


@pytest.fixture(scope="module")
def value_model(tmp_path_factory, reference_model_path) -> str:
    return save_value_model(reference_model_path, tmp_path_factory.mktemp("value") / "model", scale=0.5)


@pytest.fixture
def settings(tmp_path, value_model):
    return {
        "n_future_tokens": N,
        "weighting": "verifiable",
        "value_model_name_or_path": value_model,
        "value_cache_dir": str(tmp_path / "values"),
    }


def by_value(oracle: Oracle, value_model: str, *, gamma=1.0, lam=0.95, first=None, terminal="value"):
    """Weights of each row's tokens in the first step, which is whitened with mean 0 and spread 1: loops alone."""
    model = load_value_model(value_model, trainable=False)
    found = []
    for ids, trained in oracle.rows:
        values = plain_values(model, {"input_ids": ids}).tolist()
        # Values are kept in float16 or float32 on disk; the oracle takes what a float32 cache would hold.
        row, last = [0.0] * len(ids), 0.0
        for place in range(len(ids) - 1, 0, -1):
            if not trained[place]:
                last = 0.0
                continue
            begins = not trained[place - 1]
            before = first if begins and first is not None else values[place - 1]
            ends = place == len(ids) - 1 or not trained[place + 1]
            error = (1.0 - values[place]) if ends and terminal == "reward" else gamma * values[place] - before
            last = error + (0.0 if ends else gamma * lam * last)
            row[place] = last
        found.append(torch.tensor(row, dtype=torch.float64).exp().clamp(0.1, 3.0))
    trained = torch.cat([row[torch.tensor(mask)] for row, (_, mask) in zip(found, oracle.rows, strict=True)])
    return [row / trained.mean() for row in found]


@pytest.mark.parametrize("mode", ["cached", "online"])
@pytest.mark.parametrize("shape", ["padded", "accumulated", "packed", "padding-free"])
@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
def test_a_step_by_values_is_the_oracles(tmp_path, tiny_model_path, settings, value_model, rows, shape, mode):
    oracle = Oracle(tiny_model_path, N, rows)
    expected = by_value(oracle, value_model)
    assert max(float(row.max()) for row in expected) > 1.3
    loss = oracle.loss([1 / N] * N, token_weights=expected)
    trainer = mtp(tiny_model_path, tmp_path, rows=rows, value_mode=mode, **settings, **SHAPES[shape])
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=2e-3)
    plain = oracle.loss([1 / N] * N)
    assert abs(logged["loss"] - plain.item()) > 3 * abs(logged["loss"] - loss.item())
    for name in ("weight_mean", "weight_std", "weight_clipped", "weight_position_correlation"):
        assert isinstance(logged[f"mtp/{name}"], float)


def test_cached_and_online_values_train_alike(tmp_path, tiny_model_path, settings):
    found = [
        weights(mtp(tiny_model_path, tmp_path / mode, value_mode=mode, **(ADAMW | settings | {"max_steps": 3})))
        for mode in ("cached", "online")
    ]
    assert all(torch.allclose(value, found[1][name], atol=2e-4) for name, value in found[0].items())


def test_values_that_are_all_the_same_are_no_weights(tmp_path, tiny_model_path, reference_model_path, settings):
    flat = save_value_model(reference_model_path, tmp_path / "flat", scale=0.0)
    given = {"max_steps": 2, "per_device_train_batch_size": 3}
    plain = weights(mtp(tiny_model_path, tmp_path / "a", n_future_tokens=N, **given))
    ours = mtp(tiny_model_path, tmp_path / "b", **(settings | given | {"value_model_name_or_path": flat}))
    assert all(torch.equal(value, plain[name]) for name, value in weights(ours).items())


@pytest.mark.parametrize("weighting", ["verifiable", "shuffled", "position", "batch_permuted", "random_matched"])
def test_a_resumed_run_is_the_whole_one(tmp_path, tiny_model_path, settings, weighting):
    given = settings | {"weighting": weighting, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, **ADAMW}
    given |= {"per_device_train_batch_size": 3}
    whole = mtp(tiny_model_path, tmp_path / "whole", **given)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "token_weights.json").is_file() == (weighting != "random_matched")
    resumed = mtp(tiny_model_path, tmp_path / "resumed", resume_from_checkpoint=str(checkpoint), **given)
    mine, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_statistics_matter_to_a_resumed_run(tmp_path, tiny_model_path, settings):
    """With those of another moment the run ends elsewhere: what is restored is used."""
    given = settings | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **ADAMW}
    whole = weights(mtp(tiny_model_path, tmp_path / "whole", **given))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    state = json.loads((checkpoint / "token_weights.json").read_text())
    state["statistics"]["mean"] += 1.0
    (checkpoint / "token_weights.json").write_text(json.dumps(state))
    other = weights(mtp(tiny_model_path, tmp_path / "b", resume_from_checkpoint=str(checkpoint), **given))
    assert any(not torch.equal(value, whole[name]) for name, value in other.items())


def test_a_checkpoint_without_its_statistics_is_refused(tmp_path, tiny_model_path, settings):
    given = settings | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    mtp(tiny_model_path, tmp_path, **given)
    (tmp_path / "checkpoint-1" / "token_weights.json").unlink()
    with pytest.raises(UserError, match=r"token_weights\.json, the moving mean and spread, is missing"):
        mtp(tiny_model_path, tmp_path / "b", resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **given)


def test_weights_can_be_looked_at(tmp_path, tiny_model_path, settings):
    trainer = mtp(tiny_model_path, tmp_path, rows="demonstrations", **(settings | {"max_steps": 3}), **ADAMW)
    lines = [json.loads(line) for line in (tmp_path / "token_weights.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        known = [place for place, weight in enumerate(line["weight"]) if weight is not None]
        # A completion follows its prompt; the value before its first token is the prompt's last.
        assert known[0] > 1 and known == list(range(known[0], len(line["tokens"])))
        assert [place for place, value in enumerate(line["value"]) if value is not None] == [known[0] - 1, *known]
        assert all(line["loss"][place] > 0 for place in known)
    page = draw_weights(tmp_path)
    assert "verifiable" in page.read_text()
    assert trainer.state.global_step == 3


# Rho-1 on heads.


def excess_weights(
    oracle: Oracle, reference: str, ratio: float, *, first: str, anchored: bool = False
) -> list[list[torch.Tensor]]:
    """Of each row and head: n / s on the s tokens with the highest excess, 0 on the others.

    Anchored, the tokens are those of head 1's highest excess, as far as a head reaches them.
    """
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float64)
    found = []
    for ids, trained in oracle.rows:
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll = [0.0, *(-float(logp[place - 1, ids[place]]) for place in range(1, len(ids)))]
        # A cache holds half precision.
        nll = torch.tensor(nll, dtype=torch.float64).half().double().tolist()
        heads, anchor = [], []
        for k, own in enumerate(oracle.logp(ids), start=1):
            places = [place for place in range(k, len(ids)) if trained[place]]
            row = torch.zeros(len(ids), dtype=torch.float64)
            excess = {place: -float(own[place - k, ids[place]].detach()) - nll[place] for place in places}
            chosen = sorted(places, key=lambda place: -excess[place])[: max(round(ratio * len(places)), 1)]
            anchor = chosen if k == 1 else anchor
            chosen = [place for place in anchor if place in places] if anchored else chosen
            if k == 1 and first == "full":
                row[places] = 1.0
            elif chosen:
                row[chosen] = len(places) / len(chosen)
            heads.append(row)
        found.append(heads)
    return found


@pytest.mark.parametrize(
    ("first", "detach", "mode", "shape", "anchored"),
    [
        *(
            (first, detach, mode, "padded", False)
            for first in FIRST_HEADS
            for detach in (False, True)
            for mode in MODES
        ),
        *(("full", False, "cached", shape, False) for shape in ("accumulated", "packed", "padding-free")),
        *(("full", False, mode, "padded", True) for mode in MODES),
    ],
)
@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
def test_a_step_by_excess_is_the_oracles(
    tmp_path, tiny_model_path, reference_model_path, rows, first, detach, mode, shape, anchored
):
    oracle = Oracle(tiny_model_path, N, rows)
    chosen = excess_weights(oracle, reference_model_path, 0.5, first=first, anchored=anchored)
    total = torch.zeros((), dtype=torch.float64)
    counts = [sum(sum(trained[k:]) for _, trained in oracle.rows) for k in range(1, N + 1)]
    for (ids, trained), heads in zip(oracle.rows, chosen, strict=True):
        for k, logp in enumerate(oracle.logp(ids, detach=detach), start=1):
            for place in range(k, len(ids)):
                if trained[place]:
                    total = total - heads[k - 1][place] * logp[place - k, ids[place]] / N / counts[k - 1]
    given = {"n_future_tokens": N, "weighting": "rho1", "detach_trunk": detach, "select_ratio": 0.5}
    given |= {"reference_model_name_or_path": reference_model_path, "reference_mode": mode}
    given |= {"reference_cache_dir": str(tmp_path / "cache"), "selection_first_head": first}
    given |= {"selection_anchored": anchored, "rows": rows}
    trainer = mtp(tiny_model_path, tmp_path, **given, **SHAPES[shape])
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert_same_step(trainer, oracle.updated(total), start_of(oracle))


def test_a_selection_is_measured_and_can_be_looked_at(tmp_path, tiny_model_path, reference_model_path):
    given = {"n_future_tokens": N, "weighting": "rho1", "select_ratio": 0.5, "reference_mode": "online"}
    given |= {"reference_model_name_or_path": reference_model_path}
    oracle = Oracle(tiny_model_path, N)
    chosen = excess_weights(oracle, reference_model_path, 0.5, first="full")
    logged = mtp(tiny_model_path, tmp_path, **given).state.log_history[0]
    for k in range(1, N + 1):
        losses: dict[bool, list[float]] = {True: [], False: []}
        for (ids, trained), heads in zip(oracle.rows, chosen, strict=True):
            logp = oracle.logp(ids)[k - 1].detach()
            for place in range(k, len(ids)):
                if trained[place]:
                    losses[bool(heads[k - 1][place] > 0)].append(-float(logp[place - k, ids[place]]))
        count = len(losses[True]) + len(losses[False])
        assert logged[f"mtp/select_ratio_head_{k}"] == pytest.approx(len(losses[True]) / count)
        assert logged[f"mtp/selected_loss_head_{k}"] == pytest.approx(fmean(losses[True]), rel=1e-4)
        assert (f"mtp/unselected_loss_head_{k}" in logged) == (k > 1)
        if k > 1:
            assert logged[f"mtp/unselected_loss_head_{k}"] == pytest.approx(fmean(losses[False]), rel=1e-4)
        assert f"mtp/mean_excess_head_{k}" in logged
    page = draw_weights(tmp_path)
    (sample,) = map(json.loads, (tmp_path / "token_weights.jsonl").read_text().splitlines())
    assert page is not None and "rho1, head 2" in page.read_text()
    ids = oracle.rows[0][0]
    expected = [float(weight) for weight in chosen[0][1][2 : len(ids)]]
    assert sample["weight"][:2] == [None, None] and sample["weight"][2:] == pytest.approx(expected)
    assert [loss is None for loss in sample["loss"]] == [weight is None for weight in sample["weight"]]


def test_what_is_shown_of_a_selection_is_of_the_step_that_it_names(tmp_path, tiny_model_path, reference_model_path):
    given = {"n_future_tokens": N, "weighting": "rho1", "select_ratio": 0.5, "reference_mode": "online"}
    given |= {"reference_model_name_or_path": reference_model_path, "per_device_train_batch_size": 4}
    mtp(tiny_model_path, tmp_path, max_steps=2, logging_steps=2, **given)
    (sample,) = map(json.loads, (tmp_path / "token_weights.jsonl").read_text().splitlines())
    # Four rows a step, in their order.
    fifth = ROWS["documents"]()[4]["text"]
    assert sample["step"] == 2 and fifth.startswith("".join(sample["tokens"])[:20])


def test_all_tokens_selected_is_uniform(tmp_path, tiny_model_path, reference_model_path):
    given = {"n_future_tokens": N, "max_steps": 2}
    plain = weights(mtp(tiny_model_path, tmp_path / "a", **given))
    ours = mtp(tiny_model_path, tmp_path / "b", weighting="rho1", select_ratio=1.0, **given)
    assert all(torch.equal(value, plain[name]) for name, value in weights(ours).items())


# What is refused.


def test_a_value_model_of_another_tokenizer_is_refused(tmp_path, tiny_model_path, value_model, settings):
    from tests.helpers.tiny import build_tokenizer

    other = tmp_path / "other"
    shutil.copytree(value_model, other)
    build_tokenizer(vocab_size=300).save_pretrained(other)
    with pytest.raises(UserError, match=r"value_model_name_or_path: .* has another tokenizer"):
        mtp(tiny_model_path, tmp_path, **(settings | {"value_model_name_or_path": str(other)}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weighting": "verifiable"}, "`value_model_name_or_path` is missing"),
        ({"weighting": "rho1"}, "`reference_model_name_or_path` is missing"),
        ({"weighting": "rho1", "n_future_tokens": 1}, "`selection_first_head` is full, .* selection_first_head: sel"),
        ({"weighting": "verifable"}, "`weighting` is 'verifable'"),
        ({"weighting": "rho1", "selection_scope": "global"}, "`selection_scope` is 'global'"),
        ({"weighting": "random_matched", "random_weight_std": 5.0}, "`random_weight_std` is 5.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        WeightedMTPConfig(str(tmp_path), bf16=False, use_cpu=True, **given)


def test_a_model_that_gives_no_values_is_refused(tmp_path, tiny_model_path, settings):
    with pytest.raises(UserError, match=r"value_model_name_or_path: .* is no value model"):
        mtp(tiny_model_path, tmp_path, **(settings | {"value_model_name_or_path": tiny_model_path}))
    assert AutoTokenizer.from_pretrained(tiny_model_path) is not None
