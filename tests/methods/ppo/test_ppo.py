"""PPOTrainer through `.train()`: against a float64 oracle, by its identities, with adapters, resumed, and learning."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from hpt_trl import PPOConfig, PPOTrainer, UserError
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.models.merging import merge_adapter
from hpt_trl.rollouts.rows import unpad
from tests.helpers.ppo_oracle import displace, oracle, tool_mask
from tests.helpers.processes import launch
from tests.helpers.rollouts import (
    FixedPPO,
    assert_same_update,
    build,
    start_weights,
    train,
    weights,
)
from tests.helpers.tiny import save_tiny_model

PPO: dict[str, Any] = {"num_generations": 2, "loss_type": "dapo", "learning_rate": 0.2, "kl_coef": 0.1, "vf_coef": 0.3}


class WithTool:
    """Mixin: of each completion's tokens some in the middle, and sometimes the last, come from a tool."""

    def _generate(self, prompts):
        prompt_ids, completion_ids, _, *rest = super()._generate(prompts)
        return prompt_ids, completion_ids, [tool_mask(ids) for ids in completion_ids], *rest


class ToolPPO(WithTool, FixedPPO):
    pass


class SampledElsewhere(FixedPPO):
    """As rollouts of vLLM are: the log-probabilities of another engine come with them."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completions, _ = super()._generate_single_turn(*args, **kwargs)
        return completions, [[-1.0] * len(ids) for ids in completions]


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_step_is_the_papers(tiny_model_path, tmp_path, epochs, tool):
    trainer = build(
        ToolPPO if tool else FixedPPO, tiny_model_path, tmp_path, num_iterations=epochs, max_steps=epochs, **PPO
    )
    displace(trainer.model)
    start = weights(trainer)
    trainer.train()
    expected = oracle(start, tiny_model_path, trainer.args, epochs, tool)
    assert_same_update(weights(trainer), expected, start)
    logs = [line for line in trainer.state.log_history if "ppo/ratio" in line]
    assert logs[0]["ppo/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert logs[0]["ppo/clipfrac"] == logs[0]["ppo/value_clipfrac"] == 0.0
    assert logs[0]["ppo/kl"] != 0.0
    if epochs > 1:
        assert abs(logs[-1]["ppo/ratio"] - 1) > 1e-3
        assert logs[-1]["ppo/clipfrac"] > 0
        assert logs[1]["ppo/value_clipfrac"] > 0


def test_dealing_and_accumulation_change_nothing(tiny_model_path, tmp_path):
    whole = train(
        FixedPPO, tiny_model_path, tmp_path / "1", per_device_train_batch_size=16, gradient_accumulation_steps=1, **PPO
    )
    parts = train(
        FixedPPO, tiny_model_path, tmp_path / "2", per_device_train_batch_size=4, gradient_accumulation_steps=4, **PPO
    )
    assert_same_update(weights(parts), weights(whole), {**start_weights(tiny_model_path), **zero_head(whole)})


def zero_head(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(p) for n, p in trainer.model.named_parameters() if n.startswith("value_head")}


def test_one_completion_per_prompt_is_enough(tiny_model_path, tmp_path):
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **(PPO | {"num_generations": 1}))
    assert trainer.args.num_generations == 1
    assert type(trainer.args.num_generations) is int
    assert trainer.state.log_history[0]["ppo/value_loss"] > 0
    assert any((p != start_weights(tiny_model_path)[n]).any() for n, p in weights(trainer).items() if "value" not in n)


def test_the_reference_is_what_was_passed(tiny_model_path, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    displace(model)  # its config still names the folder of the weights before
    trainer = train(FixedPPO, tiny_model_path, tmp_path, model=model, **PPO, max_steps=2)
    first, second = (line["ppo/kl"] for line in trainer.state.log_history[:2])
    assert first == pytest.approx(0.0, abs=1e-5)
    assert second != pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("passed", [False, True], ids=["new-adapter", "trained-adapter"])
def test_the_reference_under_lora_is_the_initial_adapter(tiny_model_path, tmp_path, passed):
    config = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear")
    arguments: dict[str, Any] = {"peft_config": config}
    if passed:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_path), config)
        displace(model)
        arguments = {"model": model}
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **PPO, **arguments, max_steps=2)
    assert trainer.ref_model is None
    first, second = (line["ppo/kl"] for line in trainer.state.log_history[:2])
    assert first == pytest.approx(0.0, abs=1e-5)
    assert second != pytest.approx(0.0, abs=1e-3)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert not any("value_head" in name or ".reference." in name for name in saved)
    assert (tmp_path / "saved" / VALUE_HEAD_FILE).is_file()
    assert not (tmp_path / "saved" / "reference").exists()
    # Merged into its base, the model keeps the head beside it.
    merge_adapter(tmp_path / "saved", tmp_path / "merged")
    assert (tmp_path / "merged" / VALUE_HEAD_FILE).read_bytes() == (tmp_path / "saved" / VALUE_HEAD_FILE).read_bytes()


def test_the_engine_that_generates_sees_the_plain_model(tiny_model_path, tmp_path, monkeypatch):
    # vLLM's weight sync walks over the parameters during the base's `_generate_single_turn`.
    seen = []
    generate = FixedPPO._generate_single_turn

    def watched(self, *args, **kwargs):
        seen.append({name for name, _ in self.model.named_parameters()})
        return generate(self, *args, **kwargs)

    monkeypatch.setattr("trl.GRPOTrainer._generate_single_turn", watched)
    trainer = build(PPOTrainer, tiny_model_path, tmp_path, vllm_importance_sampling_correction=False, **PPO)
    trainer.use_vllm = True  # the engine itself: tests_vllm/
    trainer.train()
    assert seen == [set(start_weights(tiny_model_path))]
    assert "value_head.head.linear.weight" in weights(trainer)


def test_a_separate_value_model(tiny_model_path, tmp_path):
    settings = PPO | {"value_model_name_or_path": tiny_model_path, "learning_rate": 0.5}
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **settings, max_steps=2)
    trunk = trainer.model.value_head.trunk
    moved = [(p != start_weights(tiny_model_path)[f"model.{n}"]).any() for n, p in trunk.named_parameters()]
    assert all(moved[1:])  # of the embeddings only some rows
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / VALUE_HEAD_FILE)
    assert set(saved) == set(trainer.model.value_head.state_dict())


def test_files_hold_the_plain_model_and_the_head_beside_it(tiny_model_path, tmp_path):
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **PPO)
    trainer.save_model(str(tmp_path / "saved"))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    saved = weights(trainer)
    assert all(torch.equal(p, saved[n]) for n, p in model.named_parameters())
    # A run that starts from the folder takes the head along.
    again = build(FixedPPO, tiny_model_path, tmp_path / "again", model=model, **PPO)
    critic, kept = again.model.value_head.state_dict(), trainer.model.value_head.state_dict()
    assert critic.keys() == kept.keys() and all(torch.equal(critic[name], kept[name]) for name in kept)
    assert critic["head.linear.weight"].any()


def test_a_value_model_takes_over_the_head_of_a_reward_model(tiny_model_path, tmp_path):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
    classifier.to(torch.bfloat16).save_pretrained(tmp_path / "reward")
    trainer = build(FixedPPO, tiny_model_path, tmp_path, **PPO, value_model_name_or_path=str(tmp_path / "reward"))
    head = trainer.model.value_head.head.linear
    assert torch.equal(head.weight, classifier.score.weight.float())
    # What is trained is float32, in whatever type it was stored.
    assert {p.dtype for p in trainer.model.value_head.parameters()} == {torch.float32}
    # A head of another shape beside the model is left alone.
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    plain = build(FixedPPO, tiny_model_path, tmp_path / "plain", model=model, critic="head", **PPO)
    assert not plain.model.value_head.linear.weight.any()


def test_positions_that_are_absolute_are_those_of_the_rollouts(tiny_model_path, tmp_path):
    """TRL's padded layout would shift GPT-2's positions; ours has no gap, in the rollouts' pass and in the update's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    displace(model)
    model.config._name_or_path = ""
    trainer = train(FixedPPO, tiny_model_path, tmp_path, model=model, **PPO)
    assert trainer.state.log_history[0]["ppo/approx_kl"] < 1e-10


def test_a_cut_completion_pays_for_its_missing_end(tiny_model_path, tmp_path):
    plain = train(FixedPPO, tiny_model_path, tmp_path / "1", **PPO)
    fined = train(FixedPPO, tiny_model_path, tmp_path / "2", **PPO, missing_eos_penalty=0.5)
    cut = plain.state.log_history[0]["completions/clipped_ratio"]
    assert 0 < cut < 1
    expected = plain.state.log_history[0]["ppo/score"] - 0.5 * cut
    assert fined.state.log_history[0]["ppo/score"] == pytest.approx(expected)


RESUMED = PPO | {"optim": "adamw_torch", "learning_rate": 1e-2, "kl_controller": "adaptive", "kl_horizon": 50.0}


# 2 epochs of 2 mini-batches: step 3 lies inside of a generation batch, step 4 between two. 8 prompts make 2
# generation batches a pass, so that steps 9 and on are in the second pass over the data.
@pytest.mark.parametrize(
    "stopped,kind", [(3, {}), (4, {}), (11, {}), (3, {"lora": True}), (3, {"value_model_name_or_path": "tiny"})]
)
def test_a_resumed_run_is_one_that_never_stopped(tiny_model_path, tmp_path, stopped, kind):
    kind = {key: tiny_model_path if value == "tiny" else value for key, value in kind.items()}
    settings = (
        RESUMED
        | kind
        | {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "generation_batch_size": 8,
            "num_iterations": 2,
            "max_steps": 13,
            "save_strategy": "steps",
            "save_steps": stopped,
        }
    )
    # Real rollouts: the random state is part of what is resumed.
    whole = train(PPOTrainer, tiny_model_path, tmp_path / "run", **settings)
    checkpoint = tmp_path / "run" / f"checkpoint-{stopped}"
    resumed = train(PPOTrainer, tiny_model_path, tmp_path / "run", **settings, resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 13
    one, other = weights(whole), weights(resumed)
    assert any(name.startswith("value_head") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed._kl_controller.coefficient == whole._kl_controller.coefficient != 0.1


def test_a_checkpoint_without_a_value_head_is_refused(tiny_model_path, tmp_path):
    train(FixedPPO, tiny_model_path, tmp_path / "run", **PPO, save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / VALUE_HEAD_FILE).unlink()
    with pytest.raises(UserError, match="not written by PPO"):
        train(FixedPPO, tiny_model_path, tmp_path / "run", **PPO, resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    "settings", [{"lora": True}, {"num_iterations": 2, "score_centering": "prompt"}], ids=["lora", "epochs"]
)
def test_two_processes_are_one(tiny_model_path, tmp_path, settings):
    settings = PPO | {"shuffle_dataset": False, "max_steps": 2, "learning_rate": 0.5} | settings
    one = train(FixedPPO, tiny_model_path, tmp_path, **settings)
    two, log = launch(
        tiny_model_path,
        tmp_path / "two",
        trainer="FixedPPO",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=one.args.gradient_accumulation_steps,
        **settings,
    )
    start = weights(build(FixedPPO, tiny_model_path, tmp_path, **settings))
    assert_same_update(two, weights(one), start)
    expected = one.state.log_history[0]
    for name in ("ppo/kl", "ppo/score", "ppo/value_loss", "ppo/returns_mean", "ppo/ratio"):
        assert log[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


def test_a_rollout_without_a_score_teaches_nothing(tiny_model_path, tmp_path):
    def some(completion_ids, kind, **_):
        return [None if k == "fail" else float(sum(ids) % 2) for ids, k in zip(completion_ids, kind, strict=True)]

    kinds = ["mixed", "fail"]
    both = train(
        FixedPPO, tiny_model_path, tmp_path / "1", kinds=kinds, reward=some, per_device_train_batch_size=4, **PPO
    )
    assert both.state.log_history[0]["ppo/score"] in (0.0, 0.5, 1.0)
    assert both.state.log_history[0]["grad_norm"] > 0
    none = train(
        FixedPPO,
        tiny_model_path,
        tmp_path / "2",
        kinds=["fail"] * 2,
        reward=some,
        per_device_train_batch_size=4,
        num_iterations=2,
        max_steps=2,
        **PPO,
    )
    assert [line["grad_norm"] for line in none.state.log_history if "grad_norm" in line] == [0, 0]


class CountingPPO(FixedPPO):
    """Notes how many positions its forward passes have."""

    def _forward_of(self, rows):
        forward = super()._forward_of(rows)
        self.positions = getattr(self, "positions", 0) + forward.arguments["input_ids"].numel()
        return forward


class WholePPO(CountingPPO):
    """Reads every row whole."""

    def _rows_of(self, batch):
        return unpad(batch)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_rows_without_a_loss_are_hardly_read_and_change_nothing(tiny_model_path, tmp_path, loss_type):
    """Cut ones that are masked, and those without a score."""

    def some(completion_ids, kind, **_):
        return [None if k == "fail" else float(sum(ids) % 2) for ids, k in zip(completion_ids, kind, strict=True)]

    # Members 0 and 3 of a group are cut.
    settings = PPO | {"num_generations": 4, "kinds": ["mixed", "fail"], "reward": some, "loss_type": loss_type}
    settings |= {"mask_truncated_completions": True, "num_iterations": 2, "max_steps": 2}
    # Without padding a row without a loss is not read at all.
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "padding_free": False}
    short, whole = (
        train(kind, tiny_model_path, tmp_path / kind.__name__, **settings) for kind in (CountingPPO, WholePPO)
    )
    assert_same_update(weights(short), weights(whole), start_weights(tiny_model_path) | zero_head(short), 1e-5)
    for name in ("loss", "grad_norm", "ppo/kl", "ppo/value_loss", "ppo/returns_mean", "entropy"):
        pairs = [[line[name] for line in one.state.log_history if name in line] for one in (short, whole)]
        # The entropy is a mean over micro-batches, whichever rows they have.
        tolerance = {"rel": 0.02} if name == "entropy" else {"rel": 1e-5, "abs": 1e-7}
        assert pairs[0] == pytest.approx(pairs[1], **tolerance), name
    assert short.positions < 0.9 * whole.positions


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"beta": 0.1}, "kl_coef"),
        ({"loss_type": "cispo"}, "dapo, grpo, dr_grpo"),
        ({"kl_controller": "pid"}, "fixed, adaptive"),
        ({"lam": 1.5}, "0 to 1"),
        ({"num_generations": 1, "score_centering": "prompt"}, "at least 2"),
        ({"cliprange_value": 0.0}, "above 0"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


# Tokens of one letter or two: a random model of 128 dimensions can be taught to say one of them.
WORD = set(range(40, 60))


def holds_a_word(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """+1 where the completion holds one of the words, else -1: the positive-words task for a random model."""
    return [1.0 if WORD & set(ids) else -1.0 for ids in completion_ids]


@pytest.mark.parametrize("kind", ["full", "lora", "4-bit"])
def test_the_positive_words_task_is_learnt(tmp_path, kind):
    model_path = save_tiny_model(tmp_path / "model", hidden_size=128)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    trainer = PPOTrainer(
        model=model_path,
        reward_funcs=holds_a_word,
        args=PPOConfig(
            str(tmp_path / "run"),
            per_device_train_batch_size=64,
            num_iterations=4,
            max_completion_length=6,
            kl_coef=0.01,
            max_steps=100,
            learning_rate=5e-4 if kind == "full" else 2e-3,
            lr_scheduler_type="constant",
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in ("I feel so", "This makes me", "I am really")] * 22),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=None if kind == "full" else lora,
        quantization_config=nf4 if kind == "4-bit" else None,
    )
    trainer.train()
    assert (getattr(trainer.model, "is_loaded_in_4bit", False)) is (kind == "4-bit")
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[0] < 0.0
    assert sum(rewards[-3:]) / 3 > 0.7


@pytest.mark.parametrize(
    "settings", [{}, {"score_centering": "batch", "score_scaling": "batch"}], ids=["raw", "scaled"]
)
def test_masked_completions_neither_score_nor_scale(tiny_model_path, tmp_path, settings):
    """A cut completion that is masked is not scored: not in the mean, and not in what the others are scaled by."""
    seen = {}

    def by_end(completion_ids, **_):
        eos = AutoTokenizer.from_pretrained(tiny_model_path).eos_token_id
        values = [float(len(ids)) if ids[-1] == eos else 1000.0 for ids in completion_ids]
        seen["scores"] = [value for value in values if value != 1000.0]
        seen["cut"] = len(values) - len(seen["scores"])
        return values

    # Members 0 and 3 of a group are cut.
    settings = PPO | {"num_generations": 4, "kl_coef": 0.0, "reward": by_end} | settings
    trainer = train(FixedPPO, tiny_model_path, tmp_path, mask_truncated_completions=True, **settings)
    scores = torch.tensor(seen["scores"], dtype=torch.float64)
    assert seen["cut"] == 16
    log = trainer.state.log_history[0]
    assert log["ppo/score"] == pytest.approx(0.0 if "score_scaling" in settings else float(scores.mean()), abs=1e-4)
    # The value head says 0: a return is the score of its completion, weighed here by its tokens.
    lengths = scores
    if "score_scaling" in settings:
        scores = (scores - scores.mean()) / (scores.std() + 1e-4)
    discount = [sum(0.95**t for t in range(int(n))) for n in lengths]
    expected = sum(float(s) * d for s, d in zip(scores, discount, strict=True)) / float(lengths.sum())
    assert log["ppo/returns_mean"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("critic", ["head", "branch", "value_model"])
def test_values_come_with_the_log_probabilities_that_a_correction_needs(tiny_model_path, tmp_path, critic):
    """Policy and critic are asked once. Where the correction can weigh nothing, the update is as without it."""
    settings = PPO | {"critic": critic, "num_iterations": 2, "max_steps": 2}

    def trained(trainer_class: type) -> tuple[Any, dict[str, torch.Tensor], int]:
        trainer, asked = build(trainer_class, tiny_model_path, tmp_path, **settings), []
        # No engine is started.
        trainer.use_vllm = trainer_class is SampledElsewhere
        trainer.vllm_importance_sampling_mode = "token_truncate"
        trainer.vllm_importance_sampling_clip_min = trainer.vllm_importance_sampling_clip_max = 1.0
        displace(trainer.model)
        start = weights(trainer)
        trunk = trainer.accelerator.unwrap_model(trainer.model).base_model
        trunk.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
        trainer.train()
        return trainer, start, asked.count(False)

    (corrected, start, passes), (plain, _, expected) = trained(SampledElsewhere), trained(FixedPPO)
    assert corrected.state.log_history[0]["sampling/sampling_logp_difference/mean"] > 0
    assert passes == expected
    assert_same_update(weights(corrected), weights(plain), start, 1e-5)
    for name in ("ppo/values_mean", "ppo/explained_variance", "ppo/kl", "ppo/ratio"):
        lines = [trainer.state.log_history[0][name] for trainer in (corrected, plain)]
        assert lines[0] == pytest.approx(lines[1], rel=1e-4, abs=1e-6), name
