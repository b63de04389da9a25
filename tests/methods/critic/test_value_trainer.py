"""ValueTrainer through `.train()`: its losses against float64, and what must not change them."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl import UserError, ValueConfig, ValueTrainer
from hpt_trl.methods.critic.objectives import diagnostics, lambda_at
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.models.value_model import HeadSettings, ValueModel, load_value_model, new_value_model
from tests.helpers.critics import LEARNING_RATE, configured, pairs, plain_loss, train

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "head_learning_rate": 2e-2}
LORA = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)


def value_model(path: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0, **settings) -> ValueModel:
    """A value model whose head says something from the start."""
    torch.manual_seed(0)
    model = new_value_model(path, lambda width: HeadSettings(width, "mlp", dropout), dtype=torch.float32, **settings)
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.normal_(std=0.5)
    return model.to(dtype)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("pairwise", {}),
        ("regression", {"regression_loss": "mse", "return_lambda_start": 1.0}),
        ("regression", {"regression_loss": "mse", "return_lambda_start": 0.7}),
        ("regression", {"regression_loss": "smooth_l1", "smooth_l1_beta": 0.5, "return_lambda_start": 0.9}),
    ],
    ids=["pairwise", "mse", "mse-lambda", "smooth-l1"],
)
def test_a_step_is_that_of_the_loss_in_float64(tiny_model_path, tmp_path, objective, settings):
    oracle = value_model(tiny_model_path, torch.float64)
    lam = settings.get("return_lambda_start", 1.0)
    loss = plain_loss(oracle, pairs(), objective=objective, lam=lam, loss=settings.get("regression_loss", "mse"))
    names = [name for name, _ in oracle.named_parameters()]
    grads = dict(zip(names, torch.autograd.grad(loss, list(oracle.parameters())), strict=True))
    trainer = train(value_model(tiny_model_path), tmp_path, objective=objective, **settings)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    before, after = weights(value_model(tiny_model_path)), weights(trainer.model)
    for name, grad in grads.items():
        update = (before[name] - after[name]).double() / LEARNING_RATE
        assert (update - grad).norm() <= 1e-4 * grad.norm() + 1e-7, name
    assert any(grad.norm() > 1e-3 for grad in grads.values())


def test_trunk_and_head_have_learning_rates_of_their_own(tiny_model_path, tmp_path):
    start = weights(value_model(tiny_model_path))
    one = weights(train(value_model(tiny_model_path), tmp_path / "one").model)
    two = weights(train(value_model(tiny_model_path), tmp_path / "two", head_learning_rate=2 * LEARNING_RATE).model)
    for name, weight in start.items():
        factor = 2 if name.startswith("head.") else 1
        torch.testing.assert_close(two[name] - weight, factor * (one[name] - weight), rtol=1e-3, atol=1e-6)
    trainer = train(value_model(tiny_model_path), tmp_path / "three", max_steps=4, lr_scheduler_type="linear", **ADAM)
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-2, 2e-2}
    # Both fall alike.
    left = {group["initial_lr"]: group["lr"] / group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert left[1e-2] == pytest.approx(left[2e-2])


def test_a_new_critic_learns_to_tell_right_from_wrong(tiny_model_path, tmp_path):
    trainer = train(tiny_model_path, tmp_path, max_steps=30, value_head_dropout=0.2, **ADAM)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    # A head of zeros says nothing: log 2.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < 0.3
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    regression = train(tiny_model_path, tmp_path / "r", max_steps=30, objective="regression", **ADAM)
    first = regression.state.log_history[0]
    # In the middle of the outcomes: half a unit away from all of them, at lambda 1, of a smooth L1 loss with beta 0.5.
    assert first["loss"] == pytest.approx(0.25, abs=1e-6) and first["mean_reward"] == pytest.approx(0.5)
    assert regression.evaluate()["eval_accuracy"] == 1.0


def test_measures_do_not_depend_on_the_batches(tiny_model_path, tmp_path):
    found = []
    for objective in ("pairwise", "regression"):
        for size in (1, 4, 6):
            trainer = ValueTrainer(
                value_model(tiny_model_path),
                configured(tmp_path, per_device_eval_batch_size=size, objective=objective, return_lambda=0.8),
                train_dataset=pairs(),
                eval_dataset=pairs(5),
                processing_class=AutoTokenizer.from_pretrained(tiny_model_path),
            )
            found.append({key: value for key, value in trainer.evaluate().items() if "per_second" not in key})
        for other in found[-2:]:
            for key in ("eval_loss", "eval_accuracy", "eval_margin", "eval_critic/variance", "eval_critic/spikiness"):
                assert other[key] == pytest.approx(found[-3][key], rel=1e-5), key
    oracle = value_model(tiny_model_path, torch.float64)
    assert found[0]["eval_loss"] == pytest.approx(plain_loss(oracle, pairs(5), objective="pairwise").item(), rel=1e-5)
    expected = plain_loss(oracle, pairs(5), objective="regression", lam=0.8, loss="smooth_l1").item()
    assert found[3]["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tiny_model_path, tmp_path, lora):
    settings = {"max_steps": 4, "value_head_dropout": 0.2, "save_strategy": "steps", "save_steps": 2, **ADAM}
    settings |= {"per_device_train_batch_size": 2, "peft_config": LORA if lora else None}
    whole, checkpoint = train(tiny_model_path, tmp_path / "whole", **settings), tmp_path / "whole" / "checkpoint-2"
    again = train(tiny_model_path, tmp_path / "again", **settings, resume_from_checkpoint=str(checkpoint))
    ours, theirs = weights(whole.model), weights(again.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [line["loss"] for line in again.state.log_history if "loss" in line][2:] == [
        line["loss"] for line in whole.state.log_history if "loss" in line
    ][2:]
    (checkpoint / VALUE_HEAD_FILE).unlink()
    with pytest.raises(UserError, match=r"value_head.safetensors is missing"):
        train(tiny_model_path, tmp_path / "no", **settings, resume_from_checkpoint=str(checkpoint))


def test_lora_trains_the_adapter_and_the_head_and_leaves_the_trunk(tiny_model_path, tmp_path):
    trainer = train(tiny_model_path, tmp_path / "run", max_steps=3, peft_config=LORA, **ADAM)
    fresh = new_value_model(tiny_model_path, lambda width: HeadSettings(width, "mlp", 0.0), dtype=torch.float32)
    base = trainer.model.trunk.get_base_model().state_dict()
    for name, weight in fresh.trunk.state_dict().items():
        kept = base.get(name, base.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(kept, weight), name
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_config.json").is_file()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = load_value_model(str(tmp_path / "saved"), trainable=False).eval()
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).token_values
        assert torch.equal(again(input_ids=ids).token_values, expected) and expected.std() > 0


def test_gradient_checkpointing_changes_nothing(tiny_model_path, tmp_path):
    for adapter in (None, LORA):
        settings = {"max_steps": 2, "peft_config": adapter, **ADAM}
        plain = weights(train(tiny_model_path, tmp_path / f"plain{adapter is None}", **settings).model)
        saved = train(tiny_model_path, tmp_path / f"saved{adapter is None}", gradient_checkpointing=True, **settings)
        for name, weight in weights(saved.model).items():
            assert torch.allclose(weight, plain[name], atol=1e-6), name


def test_the_best_model_comes_back_whole(tiny_model_path, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    # So large a rate that the first step is the best one.
    settings |= {"load_best_model_at_end": True, "learning_rate": 30.0, "head_learning_rate": 30.0, "optim": "sgd"}
    trainer = train(value_model(tiny_model_path), tmp_path, **settings)
    best = load_value_model(str(trainer.state.best_model_checkpoint), trainable=True)
    assert all(torch.equal(weight, weights(best)[name]) for name, weight in weights(trainer.model).items())


def test_conversations_and_rows_that_are_encoded_already(tiny_model_path, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in pairs()
    ]
    trainer = train(tiny_model_path, tmp_path, rows=Dataset.from_list(rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    row = trainer.train_dataset[1]
    said = [token for token, mine in zip(row["chosen_ids"], row["chosen_trained"], strict=True) if mine]
    assert tokenizer.decode(said).startswith(rows[1]["chosen"][0]["content"])
    again = train(tiny_model_path, tmp_path / "again", rows=trainer.train_dataset)
    assert all(torch.equal(weight, weights(again.model)[name]) for name, weight in weights(trainer.model).items())
    with pytest.raises(UserError, match="chosen_trained, rejected_trained is missing"):
        train(
            tiny_model_path, tmp_path, rows=trainer.train_dataset.remove_columns(["chosen_trained", "rejected_trained"])
        )


def test_what_a_reward_trainer_takes_is_taken(tiny_model_path, tmp_path):
    """A name alone, whose checkpoint is in half precision; several held-out sets, streams, and rows that come later."""
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    trainer = ValueTrainer(
        str(folder),
        configured(tmp_path / "out", max_steps=2, **ADAM),
        train_dataset=pairs().to_iterable_dataset(),
        eval_dataset={"few": pairs(2), "many": pairs(5)},
    )
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_few_loss"] != found["eval_many_loss"]
    assert trainer.evaluate(pairs(2))["eval_loss"] == pytest.approx(found["eval_few_loss"])


def test_margins_are_the_pairwise_losss_alone(tiny_model_path, tmp_path, caplog):
    rows = pairs().map(lambda row: {"margin": 1.0})
    train(tiny_model_path, tmp_path / "pairwise", rows=rows)
    assert "margin" not in caplog.text
    train(tiny_model_path, tmp_path / "regression", rows=rows, objective="regression")
    assert "the rows' `margin` is not used by `objective: regression`" in caplog.text


def test_the_tokenizer_is_that_of_the_models_revision(monkeypatch, tiny_model_path, tmp_path):
    asked = {}
    load = AutoTokenizer.from_pretrained

    def noted(name, **settings):
        asked.update(settings)
        return load(name)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", noted)
    args = configured(tmp_path, trust_remote_code=True, model_init_kwargs={"revision": "v2"})
    ValueTrainer(tiny_model_path, args, train_dataset=pairs())
    assert asked["revision"] == "v2" and asked["trust_remote_code"] is True


def test_arguments_that_do_not_work_together(tiny_model_path, tmp_path):
    with pytest.raises(ValueError, match="pass a name, or a `ValueModel`"):
        train(AutoModelForCausalLM.from_pretrained(tiny_model_path), tmp_path)
    with pytest.raises(ValueError, match="are for a model that is named"):
        train(value_model(tiny_model_path), tmp_path, peft_config=LORA)
    with pytest.raises(UserError, match="use LoRA"):
        train(tiny_model_path, tmp_path, peft_config=PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    for key, value in (
        ("objective", "listwise"),
        ("return_lambda", 1.5),
        ("smooth_l1_beta", 0.0),
        ("baseline_pairs", -1),
        ("value_head_dropout", 1.0),
    ):
        with pytest.raises(ValueError, match=f"`{key}` is {value!r}; allowed"):
            ValueConfig(str(Path(tmp_path) / "x"), bf16=False, use_cpu=True, **{key: value})
    with pytest.raises(
        ValueError, match=r"`center_rewards_coefficient` is 0.1, and `objective: regression` does not use"
    ):
        configured(tmp_path, objective="regression", center_rewards_coefficient=0.1)


def test_lambda_is_held_and_then_decays():
    settings = {"start": 1.0, "end": 0.95, "hold_steps": 250, "decay_steps": 500}
    at = [lambda_at(step, schedule="linear", **settings) for step in (0, 250, 500, 750, 9999)]
    assert at == pytest.approx([1.0, 1.0, 0.975, 0.95, 0.95])
    at = [lambda_at(step, schedule="cosine", **settings) for step in (0, 250, 375, 500, 750)]
    quarter = 1 - 0.05 * (1 - math.cos(math.pi / 4)) / 2
    assert at == pytest.approx([1.0, 1.0, quarter, 0.975, 0.95])
    assert lambda_at(0, schedule="constant", **settings) == 0.95
    assert lambda_at(3, start=1.0, end=0.5, schedule="linear", hold_steps=0, decay_steps=0) == 0.5


def test_diagnostics_are_those_of_numpy():
    import numpy as np

    generator = np.random.default_rng(0)
    values, mask = generator.normal(size=(3, 12)), np.zeros((3, 12), dtype=bool)
    mask[0, 3:11], mask[1, 1:4], mask[2, 5] = True, True, True
    found = diagnostics(torch.tensor(values), torch.tensor(mask))
    for row in range(2):
        own = values[row][mask[row]]
        steps = np.abs(np.diff(own))
        assert found["variance"][row].item() == pytest.approx(own.var())
        assert found["spikiness"][row].item() == pytest.approx(steps.max() / steps.mean())
        expected = np.corrcoef(own, np.arange(len(own)))[0, 1]
        assert found["position_correlation"][row].item() == pytest.approx(expected)
    # One token, and values that are all the same.
    assert all(found[name][2] == 0 for name in found)
    flat = diagnostics(torch.full((1, 5), 0.3), torch.ones(1, 5).bool())
    assert all(abs(values.item()) < 1e-9 for values in flat.values())
