"""Rho1Trainer through `.train()`: what it must equal, and a float64 oracle of the paper's loss."""

import json

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerFast
from trl.kernels import chunked_logprob

from hpt_trl import Rho1Config, Rho1Trainer, UserError
from hpt_trl.models.merging import merge_adapter
from hpt_trl.token_scores.samples import TokenSamples
from tests.helpers.processes import launch
from tests.helpers.rho1 import LEARNING_RATE, Oracle, train
from tests.helpers.rollouts import assert_same_update, start_weights, weights

ALL = [list(range(8))]
EACH = [[row] for row in range(8)]
PACKED = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}
ADAM = {"max_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-2}


@pytest.fixture
def rho1(tiny_model_path, reference_model_path, tmp_path):
    """Trains Rho1Trainer at ratio 0.6 and returns it."""

    def run(name: str = "run", **settings):
        settings = {"select_ratio": 0.6, "reference_model_name_or_path": reference_model_path} | settings
        return train("Rho1Trainer", tiny_model_path, tmp_path / name, **settings)

    return run


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def metrics(trainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"rows": "demonstrations"},
        PACKED,
        {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        {"padding_free": True, "max_length": None},
        {"lora": True},
        {"gradient_checkpointing": True},
        {"bf16": True},
    ],
    ids=["plain", "accumulation", "completions", "wrapped", "bfd", "padding-free", "lora", "checkpointing", "bf16"],
)
def test_ratio_1_is_sft_bit_for_bit(settings, rho1, tiny_model_path, tmp_path):
    stock = train("SFTTrainer", tiny_model_path, tmp_path / "sft", **ADAM, **settings)
    ours = rho1(select_ratio=1.0, **ADAM, **settings)
    assert_equal(weights(ours), weights(stock))
    assert metrics(ours, "loss") == metrics(stock, "loss")
    assert metrics(ours, "grad_norm") == metrics(stock, "grad_norm")
    full = rho1("full", selection="full", reference_model_name_or_path=None, **ADAM, **settings)
    assert_equal(weights(full), weights(stock))


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"rows": "demonstrations"},
        {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        {"lora": True},
    ],
    ids=["accumulation", "completions", "bfd", "lora"],
)
def test_a_ratio_that_rounds_to_all_tokens_is_sft(settings, rho1, tiny_model_path, tmp_path):
    # Unlike ratio 1, this goes the whole way: scores, ranks, weights of 1 and the short backward pass of the head.
    settings = settings | {"max_steps": 3, "logging_steps": 1}
    stock = train("SFTTrainer", tiny_model_path, tmp_path / "sft", **settings)
    ours = rho1(select_ratio=0.9999, **settings)
    assert metrics(ours, "rho1/select_ratio") == [1, 1, 1]
    assert metrics(ours, "loss") == pytest.approx(metrics(stock, "loss"), rel=1e-6)
    start = {name: 0 * value for name, value in weights(stock).items()}
    assert_same_update(weights(ours), weights(stock), start, tolerance=1e-6)


@pytest.mark.parametrize("rows", ["documents", "demonstrations"])
@pytest.mark.parametrize("selection", ["excess", "reference_low"])
@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_oracle(rows, selection, scope, accumulation, rho1, tiny_model_path, reference_model_path):
    per_step = 8 // accumulation
    groups = {
        "sequence": EACH,
        "micro_batch": [list(range(first, first + per_step)) for first in range(0, 8, per_step)],
        "global": ALL,
    }[scope]
    oracle = Oracle(tiny_model_path, reference_model_path, rows)
    gradient = oracle.gradient(0.6, groups, selection)
    trained = rho1(
        rows=rows,
        selection=selection,
        selection_scope=scope,
        per_device_train_batch_size=per_step,
        gradient_accumulation_steps=accumulation,
    )
    start = start_weights(tiny_model_path)
    expected = {name: start[name].double() - LEARNING_RATE * gradient[name] for name in start}
    assert_same_update(weights(trained), expected, start, tolerance=1e-5)
    assert metrics(trained, "loss") == pytest.approx([oracle.loss], rel=1e-5)


def test_metrics(rho1, tiny_model_path, reference_model_path):
    trained = rho1()
    oracle = Oracle(tiny_model_path, reference_model_path)
    excess = [loss.detach() - other for loss, other in zip(oracle.losses, oracle.references, strict=True)]
    chosen, rest, thresholds = [], [], []
    for loss, score in zip(oracle.losses, excess, strict=True):
        order = score.argsort(descending=True)
        count = round(0.6 * len(loss))
        chosen.append(loss[order[:count]])
        rest.append(loss[order[count:]])
        thresholds.append(score[order[count - 1]])
    expected = {
        "selected_loss": torch.cat(chosen).mean(),
        "unselected_loss": torch.cat(rest).mean(),
        "mean_excess": torch.cat(excess).mean(),
        "threshold": torch.stack(thresholds).mean(),
        "select_ratio": len(torch.cat(chosen)) / sum(len(loss) for loss in oracle.losses),
    }
    for name, value in expected.items():
        assert metrics(trained, f"rho1/{name}") == pytest.approx([float(value)], rel=1e-4), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        PACKED,
        {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        {"padding_free": True, "max_length": None},
        {"rows": "demonstrations", "selection_scope": "global"},
        {"bf16": True, "per_device_train_batch_size": 4} | PACKED,
    ],
    ids=["padded", "wrapped", "bfd", "padding-free", "completions", "bf16"],
)
def test_cached_is_online(settings, rho1):
    settings = ADAM | settings
    cached = rho1(**settings)
    online = rho1("online", reference_mode="online", **settings)
    assert_equal(weights(cached), weights(online))
    assert metrics(cached, "rho1/mean_excess") == metrics(online, "rho1/mean_excess")


@pytest.mark.parametrize("selection", ["excess", "random"])
@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"padding_free": True, "max_length": None},
        {"packing": True, "packing_strategy": "bfd", "max_length": 128},
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 1},
    ],
    ids=["accumulation", "padding-free", "packed", "checkpointing", "workers"],
)
def test_a_sequence_is_ranked_alone_however_it_is_batched(settings, selection, rho1, tiny_model_path):
    one = rho1(selection=selection)
    other = rho1("other", selection=selection, **settings)
    assert_same_update(weights(other), weights(one), start_weights(tiny_model_path), tolerance=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"selection_scope": "sequence"},
        {"selection_scope": "global"},
        {"selection_scope": "global", "selection": "random"},
        {"selection_scope": "global", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"selection_scope": "sequence", "reference_mode": "online", "rows": "demonstrations"},
    ],
    ids=["sequence", "global", "global-random", "global-accumulated", "online"],
)
def test_two_processes_are_one(settings, rho1, tiny_model_path, reference_model_path, tmp_path):
    settings = {"select_ratio": 0.6, "reference_model_name_or_path": reference_model_path} | settings
    one = rho1(**(settings | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}))
    settings = {"per_device_train_batch_size": 4} | settings
    two, log = launch(tiny_model_path, tmp_path / "two", module="tests.helpers.rho1", trainer="Rho1Trainer", **settings)
    assert_same_update(two, weights(one), start_weights(tiny_model_path), tolerance=1e-5)
    first = one.state.log_history[0]
    assert log["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for name in ("rho1/selected_loss", "rho1/unselected_loss", "rho1/select_ratio", "rho1/threshold"):
        # Means over micro-batches weigh each alike, however many tokens it holds.
        assert log[name] == pytest.approx(first[name], rel=0.05), name


def test_random_control_follows_the_seed(rho1):
    settings = {"selection": "random", "reference_model_name_or_path": None}
    one, again, other = (rho1(f"{name}-{seed}", seed=seed, **settings) for name, seed in (("a", 7), ("b", 7), ("c", 8)))
    assert_equal(weights(one), weights(again))
    assert not torch.equal(weights(one)["model.norm.weight"], weights(other)["model.norm.weight"])
    assert metrics(one, "rho1/select_ratio")[0] == pytest.approx(0.6, abs=0.02)
    assert "rho1/mean_excess" not in one.state.log_history[0]


def test_the_head_goes_back_over_selected_tokens_alone(rho1, monkeypatch):
    rows = []
    accumulate = chunked_logprob._addmm_fp32

    def counting(total, left, right):
        rows.append(left.shape[0])
        accumulate(total, left, right)

    monkeypatch.setattr(chunked_logprob, "_addmm_fp32", counting)
    trained = rho1()
    tokens = len(
        torch.cat(Oracle(trained.model.config._name_or_path, trained.args.reference_model_name_or_path).losses)
    )
    # The first product of the backward pass is the gradient of the hidden states: one row a token.
    assert rows[0] == pytest.approx(0.6 * tokens, abs=4)


def test_warmup_trains_on_all_tokens(rho1, tiny_model_path, tmp_path):
    stock = train("SFTTrainer", tiny_model_path, tmp_path / "sft", **(ADAM | {"max_steps": 2}))
    assert_equal(weights(rho1(selection_warmup_steps=2, **(ADAM | {"max_steps": 2}))), weights(stock))
    longer = rho1("longer", selection_warmup_steps=2, **ADAM)
    assert metrics(longer, "rho1/select_ratio") == pytest.approx([0.6], abs=0.02)
    falling = rho1("falling", select_ratio_schedule="linear", **(ADAM | {"max_steps": 5}))
    assert metrics(falling, "rho1/select_ratio") == pytest.approx([0.9, 0.8, 0.7, 0.6], abs=0.02)


def test_evaluation_stays_on_all_tokens(rho1, tiny_model_path, tmp_path):
    ours = rho1(learning_rate=1e-9)
    stock = train("SFTTrainer", tiny_model_path, tmp_path / "sft", learning_rate=1e-9)
    rows = Dataset.from_dict({"text": ["What is 5 + 6? It is 11", "What is 1 + 1? It is 2"]})
    assert ours.evaluate(rows)["eval_loss"] == pytest.approx(stock.evaluate(rows)["eval_loss"], rel=1e-6)


def test_an_adapter_over_the_shared_base(rho1, tiny_model_path, tmp_path):
    adapter = train("SFTTrainer", tiny_model_path, tmp_path / "adapter", lora=True, learning_rate=1.0, max_steps=3)
    adapter.save_model()
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    shared, merged = (
        rho1(run, lora=True, reference_mode="online", reference_model_name_or_path=str(tmp_path / folder), max_steps=2)
        for run, folder in (("shared", "adapter"), ("merged-run", "merged"))
    )
    assert metrics(shared, "rho1/mean_excess")[0] != 0
    assert metrics(shared, "rho1/mean_excess") == pytest.approx(metrics(merged, "rho1/mean_excess"), rel=1e-3)
    assert len(shared.model.peft_config) == 2
    # The reference's own weights are those that were loaded.
    loaded = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    held = {name.replace(".reference.", "."): value for name, value in shared.model.state_dict().items()}
    assert all(torch.equal(held[name], value) for name, value in loaded.items())
    assert weights(shared).keys() == weights(merged).keys()
    shared.save_model()
    assert not (tmp_path / "shared" / "reference").exists()
    saved = load_file(tmp_path / "shared" / "adapter_model.safetensors")
    assert sum("lora_A" in name for name in saved) == len(weights(shared)) // 2, list(saved)


@pytest.mark.parametrize(
    "settings",
    [{}, {"reference_mode": "online", "reference_load_in_4bit": True, "selection_scope": "global"}],
    ids=["cached", "4-bit-reference"],
)
def test_four_bit_base_with_lora_learns(settings, rho1, tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
    )
    trained = rho1(model=model, lora=True, gradient_accumulation_steps=2, **(ADAM | {"max_steps": 12} | settings))
    losses = metrics(trained, "rho1/selected_loss")
    assert losses[-1] < losses[0] - 0.3


def test_a_quantized_base_is_shared_only_with_a_quantized_reference(rho1, tiny_model_path, tmp_path):
    adapter = train("SFTTrainer", tiny_model_path, tmp_path / "adapter", lora=True, learning_rate=1.0)
    adapter.save_model()
    adapters = []
    for in_4bit in (False, True):
        model = AutoModelForCausalLM.from_pretrained(
            tiny_model_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
        )
        trained = rho1(
            model=model,
            lora=True,
            reference_mode="online",
            reference_load_in_4bit=in_4bit,
            reference_model_name_or_path=str(tmp_path / "adapter"),
        )
        adapters.append(len(trained.model.peft_config))
    assert adapters == [1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"selection": "random", "select_ratio_schedule": "cosine"},
        {"selection_scope": "global", "gradient_accumulation_steps": 2},
        {"lora": True, "reference_mode": "online"},
    ],
    ids=["random", "cached-global", "shared-adapter"],
)
def test_resumes_bit_for_bit(settings, rho1, tmp_path, tiny_model_path):
    if settings.get("lora"):
        adapter = train("SFTTrainer", tiny_model_path, tmp_path / "adapter", lora=True, learning_rate=1.0)
        adapter.save_model()
        settings = settings | {"reference_model_name_or_path": str(tmp_path / "adapter")}
    # Rows in an order drawn anew in each epoch.
    settings = ADAM | {"max_steps": 6, "train_sampling_strategy": "random", "per_device_train_batch_size": 2} | settings
    settings |= {"save_strategy": "steps", "save_steps": 2}
    whole = rho1(**settings)
    kept = json.loads((tmp_path / "run" / "selections.jsonl").read_text().splitlines()[-1])
    assert kept["step"] == 4
    resumed = rho1(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"), **settings)
    assert_equal(weights(resumed), weights(whole))
    assert json.loads((tmp_path / "run" / "selections.jsonl").read_text().splitlines()[-1]) == kept


def test_rows_with_one_token_or_none(rho1, tmp_path):
    rows = Dataset.from_dict(
        {
            "input_ids": [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]],
            "labels": [[-100, -100, -100], [8, 9], [10, -100, -100, 13], [14]],
        }
    )
    for scope in ("sequence", "micro_batch", "global"):
        trained = rho1(scope, dataset=rows, max_length=None, selection_scope=scope, per_device_train_batch_size=4)
        assert all(value.isfinite().all() for value in weights(trained).values())
        assert metrics(trained, "loss")[0] > 0
    # A micro-batch with nothing to train on adds nothing.
    alone = rho1("alone", dataset=rows, max_length=None, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    together = rho1("together", dataset=rows, max_length=None, per_device_train_batch_size=4)
    assert_same_update(weights(alone), weights(together), start_weights(alone.model.config._name_or_path))


@pytest.mark.parametrize("scope", ["sequence", "global"])
def test_exactly_k_tokens_where_all_are_alike(scope, rho1, tmp_path):
    # Every token of such a row has the same loss: a quantile would select all of them, or none.
    rows = Dataset.from_dict({"input_ids": [[9] * 41] * 4})
    trained = rho1(dataset=rows, selection="reference_low", selection_scope=scope, per_device_train_batch_size=4)
    assert metrics(trained, "rho1/select_ratio") == [0.6]
    sample = json.loads((tmp_path / "run" / "selections.jsonl").read_text())
    assert scope == "global" or sum(flag for flag in sample["selected"] if flag) == 24


def test_a_token_keeps_its_leading_space(tiny_model_path, tmp_path):
    # SentencePiece-like decoders drop the space at the front of a text, so tokens by themselves have none.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(["one two three one two"], trainers.BpeTrainer(vocab_size=40, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = fast("one two three")["input_ids"]
    TokenSamples(tmp_path / "selections.jsonl", fast).write(1, ids, {})
    tokens = json.loads((tmp_path / "selections.jsonl").read_text())["tokens"]
    assert len(tokens) == len(ids) and "".join(tokens) == "one two three"


def test_a_new_run_forgets_the_samples_of_an_old_one(rho1, tmp_path):
    rho1(max_steps=4)
    rho1(max_steps=3, logging_steps=3)
    lines = (tmp_path / "run" / "selections.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3]


def test_samples_of_the_selection(rho1, tmp_path):
    rho1(max_steps=5, per_device_train_batch_size=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "selections.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]
    tokens, selected = lines[0]["tokens"], lines[0]["selected"]
    assert "".join(tokens).startswith("What is 0 + 0?") and len(tokens) == len(selected) == len(lines[0]["loss"])
    assert selected[0] is None and sum(selected[1:]) == round(0.6 * (len(tokens) - 1))
    excess = [a - b for a, b in zip(lines[0]["loss"], lines[0]["reference_loss"], strict=True) if a is not None]
    kept = [flag for flag in selected if flag is not None]
    assert min(e for e, flag in zip(excess, kept, strict=True) if flag) > max(
        e for e, flag in zip(excess, kept, strict=True) if not flag
    )


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"select_ratio": 0.0}, "above 0 to 1"),
        ({"select_ratio": 1.2}, "above 0 to 1"),
        ({"selection": "exces"}, "allowed: excess"),
        ({"selection_scope": "batch"}, "allowed: sequence"),
        ({"reference_mode": "disk"}, "allowed: cached"),
        ({"reference_model_name_or_path": None}, "ref_tuning"),
        ({"loss_type": "dft"}, "allowed: nll"),
        ({"label_smoothing_factor": 0.1}, "allowed: 0"),
        ({"selection_warmup_steps": -1}, "0 or more"),
    ],
)
def test_settings_that_are_refused(settings, said, rho1):
    with pytest.raises(ValueError, match=said):
        rho1(**settings)


def test_arguments_that_are_refused(tiny_model_path, reference_model_path, tmp_path):
    config = Rho1Config(str(tmp_path), reference_model_name_or_path=reference_model_path, bf16=False, use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    with pytest.raises(TypeError, match="Rho1Config"):
        Rho1Trainer(tiny_model_path, train("SFTTrainer", tiny_model_path, tmp_path).args)
    with pytest.raises(ValueError, match="compute_loss_func"):
        Rho1Trainer(tiny_model_path, config, compute_loss_func=print)
    with pytest.raises(UserError, match="LoRA"):
        prompts = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model_path),
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        )
        train("Rho1Trainer", tiny_model_path, tmp_path, model=prompts, selection="random")
    with pytest.raises(UserError, match="online"):
        rows = Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()
        streamed = Rho1Config(
            str(tmp_path), reference_model_name_or_path=reference_model_path, bf16=False, use_cpu=True, max_steps=1
        )
        Rho1Trainer(tiny_model_path, streamed, train_dataset=rows, processing_class=tokenizer)
