"""Loss and update of one training step against the oracle of tests/helpers/mtp.py, and the identities."""

import math

import pytest
import torch

from hpt_trl import UserError, WeightedMTPTrainer
from tests.helpers.mtp import Oracle, assert_same_step, demonstrations, mtp, sft, train, weights

N = 3


def start_of(oracle: Oracle) -> dict[str, torch.Tensor]:
    named = dict(oracle.model.named_parameters()) | {
        f"future_heads.layers.{number}.{name}": parameter
        for number, head in enumerate(oracle.heads)
        for name, parameter in head.named_parameters()
    }
    return {name: parameter.detach().clone() for name, parameter in named.items()}


SHAPES = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "packed": {"packing": True, "packing_strategy": "bfd", "max_length": 200, "shuffle_dataset": False},
    "padding-free": {"padding_free": True, "max_length": None},
    "checkpointed": {"gradient_checkpointing": True},
    "heads-checkpointed": {"checkpoint_heads": True},
    "both-checkpointed": {"gradient_checkpointing": True, "checkpoint_heads": True},
    "eager": {"model_init_kwargs": {"attn_implementation": "eager"}},
}


@pytest.mark.parametrize("kind", ["copy_last_layer", "zero_residual"])
@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_the_oracles(tmp_path, tiny_model_path, rows, shape, kind):
    oracle = Oracle(tiny_model_path, N, rows, residual=kind == "zero_residual")
    loss = oracle.loss([1 / N] * N)
    trainer = mtp(tiny_model_path, tmp_path, rows=rows, n_future_tokens=N, head_init=kind, **SHAPES[shape])
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    if shape != "accumulated":
        # Averages of micro-batches otherwise, as the base's are.
        for k, (mean, right) in enumerate(zip(oracle.head_losses, oracle.right, strict=True), start=1):
            assert logged[f"mtp/loss_head_{k}"] == pytest.approx(mean, rel=1e-4)
            assert logged[f"mtp/accuracy_head_{k}"] == pytest.approx(right / oracle.counts[k - 1])
        assert logged["mean_token_accuracy"] == pytest.approx(logged["mtp/accuracy_head_1"])
    assert_same_step(trainer, oracle.updated(loss), start_of(oracle))


@pytest.mark.parametrize("kind", ["copy_last_layer", "zero_residual"])
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ([0.7, 0.2, 0.1], [0.7, 0.2, 0.1]),
        ("decay:0.5", [4 / 7, 2 / 7, 1 / 7]),
        ([1, 0, 0], [1, 0, 0]),
        ("[0.5, 0, 2]", [0.5, 0, 2]),
    ],
)
def test_weights_of_the_heads(tmp_path, tiny_model_path, setting, expected, kind):
    oracle = Oracle(tiny_model_path, N, residual=kind == "zero_residual")
    loss = oracle.loss(expected)
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, head_weights=setting, head_init=kind)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_same_step(trainer, oracle.updated(loss), start_of(oracle))


@pytest.mark.parametrize("kind", ["copy_last_layer", "zero_residual"])
@pytest.mark.parametrize(
    "settings",
    [
        {"detach_trunk": True},
        {"head_warmup_steps": 1},
        {"detach_trunk": True, "checkpoint_heads": True},
        {"detach_trunk": True, "gradient_checkpointing": True},
        {
            "detach_trunk": True,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
    ],
    ids=str,
)
def test_detached_heads_learn_by_themselves(tmp_path, tiny_model_path, settings, kind):
    oracle = Oracle(tiny_model_path, N, residual=kind == "zero_residual")
    loss = oracle.loss([1.0, 0.5, 0.25], detach=True)
    given = {"n_future_tokens": N, "head_weights": [1.0, 0.5, 0.25], "head_init": kind}
    trainer = mtp(tiny_model_path, tmp_path, **given, **settings)
    assert_same_step(trainer, oracle.updated(loss), start_of(oracle))
    # What is not a head's is trained as by SFT.
    assert_trunk_of_sft(trainer, sft(tiny_model_path, tmp_path / "sft"))


def assert_trunk_of_sft(trainer, plain) -> None:
    expected = weights(plain)
    for name, value in weights(trainer).items():
        if not name.startswith("future_heads"):
            assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize("key", [{"detach_trunk": True}, {"head_warmup_steps": 9}], ids=str)
def test_detached_heads_are_clipped_by_themselves(tmp_path, tiny_model_path, key):
    # Clipped well below the gradients' norm; an epsilon that size lets no rounding decide on AdamW's step.
    shared = {"max_grad_norm": 0.1, "optim": "adamw_torch", "adam_epsilon": 1e-3, "learning_rate": 1e-2, "max_steps": 3}
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, head_weights=[1.0, 1.0, 1.0], **key, **shared)
    plain = sft(tiny_model_path, tmp_path / "sft", **shared)
    assert_trunk_of_sft(trainer, plain)
    logs = [run.state.log_history for run in (trainer, plain)]
    norms = [[entry["grad_norm"] for entry in log if "grad_norm" in entry] for log in logs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and min(norms[0]) > 0.1


@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
@pytest.mark.parametrize("lora", [False, True])
def test_one_head_is_sft_to_the_bit(tmp_path, tiny_model_path, rows, lora):
    shared = {"rows": rows, "lora": lora, "max_steps": 3, "optim": "adamw_torch", "per_device_train_batch_size": 4}
    ours = mtp(tiny_model_path, tmp_path / "mtp", n_future_tokens=1, **shared)
    plain = sft(tiny_model_path, tmp_path / "sft", **shared)
    mine, theirs = weights(ours), weights(plain)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    drop = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    for one, other in zip(ours.state.log_history, plain.state.log_history, strict=True):
        assert {key: value for key, value in one.items() if key not in drop} == {
            key: value for key, value in other.items() if key not in drop
        }


def test_one_head_of_ours_is_sft_to_rounding(tmp_path, tiny_model_path):
    """The same path as several heads take, of which weights of 1 change nothing."""
    ones = {"weighting": "random_matched", "random_weight_mean": 1.0, "random_weight_std": 0.0}
    ours = mtp(tiny_model_path, tmp_path, n_future_tokens=1, **ones)
    plain = weights(sft(tiny_model_path, tmp_path / "sft"))
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in weights(ours).items())


# Weights of tokens.


def by_token(ids: torch.Tensor) -> torch.Tensor:
    """A weight that depends on the token alone."""
    return 0.25 + (ids % 5).float()


def weigh(function):
    """Batches bring weights of their own; tokens without a label have a number that must not matter."""

    def change(trainer):
        collate = trainer.data_collator

        def collated(examples):
            batch = collate(examples)
            found = function(batch["input_ids"])
            batch["token_weights"] = torch.where(batch["labels"] == -100, torch.tensor(1e6), found)
            return batch

        trainer._collate_train = collated

    return change


def oracle_weights(oracle: Oracle, function) -> list[torch.Tensor]:
    """Weights of each row's tokens, of mean 1 over the trained ones."""
    rows = [function(torch.tensor(ids)).double() for ids, _ in oracle.rows]
    trained = torch.cat([row[torch.tensor(mask)] for row, (_, mask) in zip(rows, oracle.rows, strict=True)])
    return [row / trained.mean() for row in rows]


@pytest.mark.parametrize("shape", ["padded", "accumulated", "packed", "padding-free"])
@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
def test_a_token_counts_by_its_weight_whichever_head_predicts_it(tmp_path, tiny_model_path, rows, shape):
    oracle = Oracle(tiny_model_path, N, rows)
    loss = oracle.loss([1 / N] * N, token_weights=oracle_weights(oracle, by_token))
    given = {"n_future_tokens": N, "change": weigh(by_token)}
    trainer = mtp(tiny_model_path, tmp_path, rows=rows, **given, **SHAPES[shape])
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_same_step(trainer, oracle.updated(loss), start_of(oracle))


def test_one_head_takes_the_weights_of_its_batches(tmp_path, tiny_model_path):
    oracle = Oracle(tiny_model_path, 1)
    loss = oracle.loss([1.0], token_weights=oracle_weights(oracle, by_token))
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=1, change=weigh(by_token))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_same_step(trainer, oracle.updated(loss), start_of(oracle))


def test_weights_of_some_batches_alone_are_refused(tmp_path, tiny_model_path):
    def some(trainer) -> None:
        weigh(by_token)(trainer)
        collate, seen = trainer._collate_train, []

        def every_second(examples):
            batch = collate(examples)
            seen.append(batch)
            if len(seen) % 2:
                del batch["token_weights"]
            return batch

        trainer._collate_train = every_second

    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(UserError, match="token_weights: of 2 micro-batches of a step 1 bring them"):
        mtp(tiny_model_path, tmp_path, n_future_tokens=N, change=some, **given)
    given = {"weighting": "random_matched", "n_future_tokens": N}
    with pytest.raises(UserError, match="`weighting: random_matched` would make others"):
        mtp(tiny_model_path, tmp_path, change=weigh(by_token), **given)


@pytest.mark.parametrize("factor", [1.0, 0.25, 1000.0])
def test_weights_that_are_all_the_same_are_none_at_all(tmp_path, tiny_model_path, factor):
    given = {"n_future_tokens": N, "max_steps": 2, "per_device_train_batch_size": 3}
    plain = weights(mtp(tiny_model_path, tmp_path / "a", **given))
    change = weigh(lambda ids: torch.full(ids.shape, factor))
    ours = mtp(tiny_model_path, tmp_path / "b", change=change, **given)
    assert all(torch.equal(value, plain[name]) for name, value in weights(ours).items())
    assert ours.state.log_history[0]["mtp/weight_mean"] == pytest.approx(factor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_weights_that_are_none_are_refused(tmp_path, tiny_model_path, bad):
    change = weigh(lambda ids: torch.full(ids.shape, bad))
    with pytest.raises(UserError, match="token weights: their mean over a step's trained tokens is"):
        mtp(tiny_model_path, tmp_path, n_future_tokens=N, change=change)


# Curricula.


@pytest.mark.parametrize(
    ("curriculum", "heads"), [("none", [3, 3, 3, 3]), ("forward", [1, 1, 2, 3]), ("reverse", [3, 3, 2, 1])]
)
def test_a_curriculum_trains_the_heads_one_after_the_other(tmp_path, tiny_model_path, curriculum, heads):
    changed = []

    class Watched(WeightedMTPTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            layers = self.model.future_heads.layers
            changed.append(1 + sum(next(layer.parameters()).grad is not None for layer in layers))
            return loss

    train(Watched, tiny_model_path, tmp_path, n_future_tokens=N, curriculum=curriculum, max_steps=4)
    assert changed == heads


def test_a_curriculum_keeps_the_sum_of_the_weights(tmp_path, tiny_model_path):
    """The first step of a forward curriculum is next-token training."""
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, curriculum="forward")
    oracle = Oracle(tiny_model_path, 1)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(oracle.loss([1.0]).item(), rel=1e-4)


# Held-out rows.


@pytest.mark.parametrize("batch", [8, 3])
@pytest.mark.parametrize("shape", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
def test_held_out_losses_are_of_each_head_over_all_its_tokens(tmp_path, tiny_model_path, shape, batch):
    settings = {
        "rows": "demonstrations",
        "eval_dataset": demonstrations(),
        "per_device_eval_batch_size": batch,
        "learning_rate": 1e-9,
    }
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, **settings, **shape)
    found = trainer.evaluate()
    oracle = Oracle(tiny_model_path, N, "demonstrations")
    oracle.loss([1 / N] * N)
    for k, (mean, right) in enumerate(zip(oracle.head_losses, oracle.right, strict=True), start=1):
        assert found[f"eval_mtp/loss_head_{k}"] == pytest.approx(mean, rel=1e-4)
        assert found[f"eval_mtp/accuracy_head_{k}"] == pytest.approx(right / oracle.counts[k - 1])
    # Head 1's, which is comparable with other methods'.
    assert found["eval_loss"] == pytest.approx(oracle.head_losses[0], rel=1e-4)
    assert math.isclose(found["eval_mean_token_accuracy"], found["eval_mtp/accuracy_head_1"], rel_tol=1e-6)
