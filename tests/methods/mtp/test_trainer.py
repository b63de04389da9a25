"""WeightedMTPTrainer through training: families, adapters, checkpoints, what is saved, and what is refused."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl import UserError, WeightedMTPConfig, WeightedMTPTrainer, load_with_future_heads
from hpt_trl.methods.mtp.positions import longest_row
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.mtp import documents, mtp, sft, train, weights
from tests.helpers.tiny import save_tiny_model

N = 3
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
IDS = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "copy_last_layer") for family in FAMILIES), ("gemma2", "zero_residual"), ("mixtral", "zero_residual")],
)
def test_heads_of_a_family_learn(tmp_path, tiny_model_path, family, kind):
    """Every head's loss falls, with the layers' activations computed again and without, alike."""
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9, 10, 11, 12] * 3] * 4})
    settings = {"tokenizer": tiny_model_path, "dataset": rows, "n_future_tokens": N, "head_init": kind, "max_steps": 8}
    found = []
    for checkpointing in (False, True):
        model = family_model(family, vocab_size=400).float()
        trainer = mtp(
            model,
            tmp_path / str(checkpointing),
            gradient_checkpointing=checkpointing,
            per_device_train_batch_size=2,
            **(ADAMW | settings),
        )
        losses = [entry for entry in trainer.state.log_history if "mtp/loss_head_1" in entry]
        for k in range(1, N + 1):
            assert losses[-1][f"mtp/loss_head_{k}"] < losses[0][f"mtp/loss_head_{k}"]
        found.append(weights(trainer))
    assert all(torch.allclose(value, found[1][name], atol=1e-4) for name, value in found[0].items())


def test_what_is_saved_drafts_and_is_the_plain_model(tmp_path, tiny_model_path):
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, max_steps=3, **ADAMW)
    trainer.save_model()
    loaded = load_with_future_heads(tmp_path)
    mine = weights(trainer)
    found = dict(loaded.named_parameters())
    assert mine.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in mine.items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    given = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(loaded.generate(IDS[:1], use_mtp=True, **given), plain.generate(IDS[:1], **given))
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, trainer.model.eval()(IDS).logits)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["copy_last_layer", "zero_residual"])
def test_a_resumed_run_is_the_whole_one(tmp_path, tiny_model_path, kind, lora, caplog):
    settings = {"n_future_tokens": N, "head_init": kind, "lora": lora, "max_steps": 6, "save_strategy": "steps"}
    settings |= {"save_steps": 2, "per_device_train_batch_size": 3, "head_learning_rate": 3e-2, "head_warmup_steps": 3}
    settings |= {"curriculum": "forward", **ADAMW}
    whole = mtp(tiny_model_path, tmp_path / "whole", **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "future_heads" / "model.safetensors").is_file()
    resumed = mtp(tiny_model_path, tmp_path / "resumed", resume_from_checkpoint=str(checkpoint), **settings)
    mine, theirs = weights(resumed), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert "future_heads" not in caplog.text


def test_a_checkpoint_without_its_heads_is_refused(tmp_path, tiny_model_path):
    settings = {"n_future_tokens": N, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    mtp(tiny_model_path, tmp_path, **settings)
    shutil.rmtree(tmp_path / "checkpoint-1" / "future_heads")
    with pytest.raises(UserError, match="checkpoint-1/future_heads: the heads do not load"):
        mtp(tiny_model_path, tmp_path / "b", resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **settings)


def test_the_best_model_at_the_end_has_its_own_heads(tmp_path, tiny_model_path):
    settings = {"n_future_tokens": N, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    settings |= {"eval_dataset": documents(), "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    # The worst, which is the first.
    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = mtp(tiny_model_path, tmp_path, **(ADAMW | settings))
    best = load_with_future_heads(trainer.state.best_model_checkpoint)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    found = dict(best.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in weights(trainer).items())


def test_an_adapter_on_the_trunk_leaves_the_heads_whole(tmp_path, tiny_model_path):
    trainer = mtp(tiny_model_path, tmp_path, n_future_tokens=N, lora=True, max_steps=3, **ADAMW)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    heads = {name for name in trained if "future_heads" in name}
    assert len(heads) == (N - 1) * 9 and all("lora_" in name for name in trained - heads)
    assert not any("lora_" in name for name in heads)
    trainer.save_model()
    loaded = load_with_future_heads(tmp_path)
    assert isinstance(loaded, PeftModel)
    found = dict(loaded.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in weights(trainer).items() if name in trained)
    given = {"max_new_tokens": 12, "do_sample": False}
    expected = loaded.generate(input_ids=IDS[:1], **given)
    assert torch.equal(loaded.generate(input_ids=IDS[:1], use_mtp=True, **given), expected)


def test_heads_are_trained_on_where_the_model_has_some(tmp_path, tiny_model_path):
    first = mtp(tiny_model_path, tmp_path / "a", n_future_tokens=N, max_steps=2, **ADAMW)
    first.save_model()
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "a")
    second = mtp(str(tmp_path / "a"), tmp_path / "b", n_future_tokens=N, max_steps=1, learning_rate=0.0)
    mine, theirs = weights(second), weights(first)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for wrong, said in (
        ({"n_future_tokens": 4}, "n_future_tokens: 4, but the model has heads of its own, with 3"),
        ({"n_future_tokens": N, "head_init": "zero_residual"}, "head_init: zero_residual, but"),
    ):
        with pytest.raises(UserError, match=said):
            mtp(str(tmp_path / "a"), tmp_path / "c", **wrong)


def test_heads_have_a_learning_rate_of_their_own(tmp_path, tiny_model_path):
    """SGD's update is in proportion to it; the others' is what it was."""
    start = weights(mtp(tiny_model_path, tmp_path / "0", n_future_tokens=N, learning_rate=0.0))
    plain = weights(mtp(tiny_model_path, tmp_path / "a", n_future_tokens=N, learning_rate=0.1))
    ours = weights(mtp(tiny_model_path, tmp_path / "b", n_future_tokens=N, learning_rate=0.1, head_learning_rate=0.3))
    for name, value in ours.items():
        factor = 3 if name.startswith("future_heads") else 1
        assert torch.allclose(value - start[name], factor * (plain[name] - start[name]), rtol=1e-3, atol=1e-6), name


def test_a_rate_that_reaches_no_optimizer_is_refused(tmp_path, tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    config = WeightedMTPConfig(str(tmp_path), head_learning_rate=1e-3, bf16=False, use_cpu=True)
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9, 10]] * 4})
    made = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match="head_learning_rate: an optimizer was passed"):
        WeightedMTPTrainer(model, config, train_dataset=rows, optimizers=(made, None))


def test_the_trunk_is_left_alone_by_a_rate_of_zero_and_the_heads_learn(tmp_path, tiny_model_path):
    settings = {"n_future_tokens": N, "head_learning_rate": 1e-2, "max_steps": 3}
    trainer = mtp(tiny_model_path, tmp_path, **(ADAMW | settings | {"learning_rate": 0.0}))
    plain = dict(AutoModelForCausalLM.from_pretrained(tiny_model_path).named_parameters())
    for name, value in weights(trainer).items():
        if not name.startswith("future_heads"):
            assert torch.equal(value, plain[name])
    losses = [entry["mtp/loss_head_2"] for entry in trainer.state.log_history if "mtp/loss_head_2" in entry]
    assert losses[-1] < losses[0]


def test_autocast_keeps_the_heads_in_float32(tmp_path, tiny_model_path):
    settings = {"n_future_tokens": N, "bf16": True, "lora": True, "max_steps": 2}
    settings |= {"model_init_kwargs": {"dtype": "bfloat16"}}
    trainer = mtp(tiny_model_path, tmp_path, **(ADAMW | settings))
    heads = trainer.model.get_base_model().future_heads
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(6, abs=2)


def test_heads_over_a_quantized_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    path = save_tiny_model(tmp_path / "model", hidden_size=64)
    made = WeightedMTPTrainer(
        path,
        WeightedMTPConfig(
            str(tmp_path / "out"),
            n_future_tokens=N,
            max_steps=4,
            learning_rate=1e-2,
            bf16=True,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            gradient_checkpointing=False,
        ),
        train_dataset=documents(),
        processing_class=AutoTokenizer.from_pretrained(path),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    made.train()
    losses = [entry["mtp/loss_head_2"] for entry in made.state.log_history if "mtp/loss_head_2" in entry]
    assert losses[-1] < losses[0]
    made.save_model()
    assert (tmp_path / "out" / "future_heads" / "model.safetensors").is_file()


def test_experts_are_balanced_as_by_sft(tmp_path, tiny_model_path):
    """The balancing loss, which TRL adds, is the trunk's alone."""
    rows = Dataset.from_dict({"input_ids": [list(range(5, 29))] * 4})
    shared = {"tokenizer": tiny_model_path, "dataset": rows, "router_aux_loss_coef": 0.5}

    def model():
        return family_model("qwen3_moe", vocab_size=400).float()

    ours = mtp(model(), tmp_path / "a", n_future_tokens=2, head_weights=[1.0, 0.0], **shared).state.log_history[0]
    plain = sft(model(), tmp_path / "b", **shared).state.log_history[0]
    assert ours["aux_loss"] == pytest.approx(plain["aux_loss"]) and ours["aux_loss"] > 0
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-4)


# What is refused.

BAD_SETTINGS = {
    "n_future_tokens: 0": ({"n_future_tokens": 0}, "`n_future_tokens` is 0; allowed: 1 to 32"),
    "n_future_tokens: 64": ({"n_future_tokens": 64}, "`n_future_tokens` is 64; allowed: 1 to 32"),
    "max_length": ({"n_future_tokens": 8, "max_length": 8}, "`n_future_tokens` is 8 with `max_length` 8"),
    "too few weights": ({"head_weights": [0.5, 0.5]}, "2 numbers for `n_future_tokens` 4"),
    "negative weight": ({"head_weights": [1, 1, 1, -1]}, "numbers of 0 or more"),
    "no weight": ({"head_weights": [0, 0, 0, 0]}, "not all of them 0"),
    "weights of text": ({"head_weights": "fast"}, "`head_weights` is fast; allowed: uniform, decay:B"),
    "decay of 2": ({"head_weights": "decay:2"}, "decay:B with B above 0 and at most 1"),
    "decay of nothing": ({"head_weights": "decay:"}, "decay:B with B above 0 and at most 1"),
    "head_init": ({"head_init": "random"}, "`head_init` is 'random'; allowed: copy_last_layer, zero_residual"),
    "curriculum": ({"curriculum": "backward"}, "`curriculum` is 'backward'; allowed: none, forward, reverse"),
    "weighting": ({"weighting": "best"}, "`weighting` is 'best'; allowed: uniform"),
    "warm-up": ({"head_warmup_steps": -1}, "`head_warmup_steps` is -1; allowed: 0 or more"),
    "rate": ({"head_learning_rate": 0}, "`head_learning_rate` is 0; allowed: above 0"),
    "loss_type": ({"loss_type": "dft"}, "`loss_type` is dft; allowed: nll"),
    "wrapped": ({"packing": True, "packing_strategy": "wrapped"}, "heads would predict across them"),
    "smoothing": ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1; allowed: 0"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_are_refused(tmp_path, what):
    settings, said = BAD_SETTINGS[what]
    with pytest.raises(ValueError, match=said):
        WeightedMTPConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)


def test_more_heads_than_the_longest_row_has_tokens_are_refused(tmp_path, tiny_model_path):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [5, 6, 7, 8]]})
    with pytest.raises(UserError, match="n_future_tokens: 4, but the longest row has 4 tokens"):
        mtp(tiny_model_path, tmp_path, dataset=rows, n_future_tokens=4)
    # Shorter rows among longer ones are left to the heads that reach.
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [5, 6], [5, 6, 7, 8, 9]]})
    settings = {"dataset": rows, "n_future_tokens": 4, "per_device_train_batch_size": 1, "max_steps": 3}
    losses = mtp(tiny_model_path, tmp_path, **settings).state.log_history
    assert all(0 < entry["loss"] < 20 for entry in losses[:3])
    assert "mtp/loss_head_3" not in losses[0] and "mtp/loss_head_4" in losses[2]
    # One that reaches will do, no others are read.
    read = []
    rows = Dataset.from_dict({"input_ids": [[5] * (1 + row % 7) for row in range(5000)]})
    counted = rows.with_transform(lambda batch: read.append(len(batch["input_ids"])) or batch)
    assert longest_row(counted, enough=5) >= 5 and sum(read) < 2000
    assert longest_row(rows, enough=8) == 7


def test_models_and_arguments_that_are_refused(tmp_path, tiny_model_path):
    with pytest.raises(UserError, match="on a mamba model"):
        train(WeightedMTPTrainer, family_model("mamba"), tmp_path, tokenizer=tiny_model_path)
    with pytest.raises(TypeError, match="WeightedMTPTrainer takes a WeightedMTPConfig"):
        WeightedMTPTrainer(tiny_model_path, sft_config(tmp_path), train_dataset=documents())
    with pytest.raises(ValueError, match="compute_loss_func"):
        config = WeightedMTPConfig(str(tmp_path), bf16=False, use_cpu=True)
        WeightedMTPTrainer(tiny_model_path, config, train_dataset=documents(), compute_loss_func=lambda *args: 0)


def sft_config(folder):
    from trl import SFTConfig

    return SFTConfig(str(folder), bf16=False, use_cpu=True)


def test_a_model_whose_parts_are_others_than_they_seem_is_found_out(tmp_path, tiny_model_path):
    """Its last hidden state is not the norm of its last layer's output."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    decoder = model.model
    forward = type(decoder).forward

    def doubled(*args, **kwargs):
        outputs = forward(decoder, *args, **kwargs)
        outputs.last_hidden_state = 2 * outputs.last_hidden_state
        return outputs

    decoder.forward = doubled
    with pytest.raises(UserError, match="is not the norm of its last decoder layer's output"):
        train(WeightedMTPTrainer, model, tmp_path, n_future_tokens=2)
