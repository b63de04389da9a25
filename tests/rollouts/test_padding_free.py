"""Updates without padding are those with it, through `.train()`: every loss, adapters, references, epochs, a critic."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl import HybridPostConfig, PPOConfig
from hpt_trl.models.padding_free.settings import pads_no_more
from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.rollouts.trainer import RolloutTrainer
from tests.helpers.rollouts import (
    MIXED,
    FixedGRPO,
    FixedHPT,
    FixedMended,
    FixedPPO,
    assert_same_update,
    build,
    start_weights,
    train,
    weights,
)

LOSSES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
SETTINGS = {
    "reference": {"beta": 0.1},
    "epochs": {"num_iterations": 2, "max_steps": 4},
    "steps": {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 8,
        "gradient_accumulation_steps": 4,
        "max_steps": 4,
    },
    "checkpointing": {"gradient_checkpointing": True},
    "entropy": {"entropy_coef": 0.01},
    "quantile": {"top_entropy_quantile": 0.5},
    "masked": {"mask_truncated_completions": True},
    "sequence": {"importance_sampling_level": "sequence", "num_iterations": 2, "max_steps": 4},
}


def both(trainer_class, model_path, folder, **settings):
    """The trainer without padding and the one with it."""
    return [train(trainer_class, model_path, folder / str(way), padding_free=way, **settings) for way in (True, False)]


def starting(trainer, model_path):
    """The weights that a training starts from: an adapter's own are drawn by the seed."""
    start = start_weights(model_path)
    return start | {name: torch.zeros_like(p) for name, p in weights(trainer).items() if name not in start}


def trunk_of(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return (model.get_base_model() if getattr(model, "peft_config", None) else model).base_model


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("trainer_class", [FixedMended, FixedHPT])
def test_every_loss(tiny_model_path, tmp_path, trainer_class, loss_type):
    ours, padded = both(trainer_class, tiny_model_path, tmp_path, loss_type=loss_type)
    assert ours.is_padding_free and trunk_of(ours).is_padding_free and not padded.is_padding_free
    assert_same_update(weights(ours), weights(padded), start_weights(tiny_model_path), 1e-5)


@pytest.mark.parametrize("offline_loss_type", ["sft", "off_policy", "srft", "chord"])
@pytest.mark.parametrize("strategy", ["switch", "soft"])
def test_every_loss_of_demonstrations(tiny_model_path, tmp_path, offline_loss_type, strategy):
    settings = {"offline_loss_type": offline_loss_type, "unify_strategy": strategy, "demonstration_reward": 1.0}
    ours, padded = both(FixedHPT, tiny_model_path, tmp_path, **settings)
    first = ours.state.log_history[0]
    assert trunk_of(ours).is_padding_free and first["hpt/sft_fraction"] + first["hpt/off_fraction"] > 0
    assert_same_update(weights(ours), weights(padded), start_weights(tiny_model_path), 1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("trainer_class", [FixedMended, FixedHPT])
def test_every_setting(tiny_model_path, tmp_path, trainer_class, name):
    settings = {"learning_rate": 0.1, **SETTINGS[name]}
    ours, padded = both(trainer_class, tiny_model_path, tmp_path, **settings)
    assert trunk_of(ours).is_padding_free
    assert_same_update(weights(ours), weights(padded), start_weights(tiny_model_path), 1e-5)
    last = [trainer.state.log_history[-2] for trainer in (ours, padded)]
    metrics = ("loss", "grad_norm", "kl", "reward", "completions/mean_length", "entropy", "clip_ratio/region_mean")
    for metric in metrics:
        if metric in last[1]:
            assert last[0][metric] == pytest.approx(last[1][metric], rel=1e-4, abs=1e-6), metric


@pytest.mark.parametrize("trainer_class", [FixedMended, FixedHPT, FixedPPO])
def test_an_adapter(tiny_model_path, tmp_path, trainer_class):
    more = {"kl_coef": 0.1} if trainer_class is FixedPPO else {"beta": 0.1}
    settings = {"lora": True, "learning_rate": 0.1, "max_steps": 3, **more}
    ours, padded = both(trainer_class, tiny_model_path, tmp_path, **settings)
    assert trunk_of(ours).is_padding_free
    assert_same_update(weights(ours), weights(padded), starting(ours, tiny_model_path), 1e-5)


@pytest.mark.parametrize("value_model", [False, True])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_ppo(tiny_model_path, reference_model_path, tmp_path, loss_type, value_model):
    settings = {"loss_type": loss_type, "num_generations": 1, "per_device_train_batch_size": 4, "learning_rate": 0.05}
    settings |= {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 2, "vf_coef": 0.5}
    settings |= {"value_model_name_or_path": reference_model_path} if value_model else {}
    ours, padded = both(FixedPPO, tiny_model_path, tmp_path, **settings)
    assert trunk_of(ours).is_padding_free
    start = starting(ours, tiny_model_path)
    if value_model:
        trunk = AutoModelForCausalLM.from_pretrained(reference_model_path).model
        start |= {f"value_head.trunk.{name}": p.detach() for name, p in trunk.named_parameters()}
        assert ours.model.value_head.trunk.is_padding_free
    assert_same_update(weights(ours), weights(padded), start, 1e-5)
    for name in ("ppo/kl", "ppo/values_mean", "ppo/value_loss", "ppo/explained_variance"):
        assert ours.state.log_history[0][name] == pytest.approx(padded.state.log_history[0][name], rel=1e-4, abs=1e-6)


def test_rows_of_a_prompt_meet_in_a_micro_batch_and_the_prompt_is_computed_once(tiny_model_path, tmp_path):
    seen: list[tuple[int, int]] = []

    class Counted(FixedMended):
        def _compute_loss(self, model, inputs):
            pairs = zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
            prompts = {tuple(ids[mask.bool()].tolist()) for ids, mask in pairs}
            rows = int((inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()).item())
            computed: list[int] = []
            layer = trunk_of(self).layers[0]
            hook = layer.register_forward_hook(lambda module, args, output: computed.append(args[0].size(1)))
            try:
                return super()._compute_loss(model, inputs)
            finally:
                hook.remove()
                seen.append((len(prompts), rows - computed[-1]))

    train(Counted, tiny_model_path, tmp_path, padding_free=True, num_generations=8, kinds=MIXED[:4])
    # Of 8 rollouts 7 prompts are saved, and the last token of each, on which nothing depends.
    assert [prompts for prompts, _ in seen] == [1, 1, 1, 1]
    assert all(saved > 7 * 10 + 8 for _, saved in seen)


def test_trls_own_config_is_trls_own_arithmetic(tiny_model_path, tmp_path):
    stock = train(FixedGRPO, tiny_model_path, tmp_path)
    from trl import GRPOConfig

    from tests.helpers.rollouts import CONFIGS, RolloutTrainer

    class Plain(FixedMended):
        pass

    CONFIGS[Plain] = GRPOConfig
    ours = train(Plain, tiny_model_path, tmp_path)
    assert not ours.is_padding_free and issubclass(Plain, RolloutTrainer)
    assert all(torch.equal(p, weights(stock)[name]) for name, p in weights(ours).items())


def test_a_reward_model_that_is_passed_computes_no_padding(tiny_model_path, tmp_path):
    found = []
    for way in (True, False):
        torch.manual_seed(0)
        judge = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1, dtype=torch.float32)
        judge.config.pad_token_id = AutoTokenizer.from_pretrained(tiny_model_path).pad_token_id
        shapes: list[tuple[int, int]] = []
        judge.model.layers[0].register_forward_hook(lambda layer, args, _, seen=shapes: seen.append(args[0].shape[:2]))
        trainer = train(FixedMended, tiny_model_path, tmp_path, reward=judge, padding_free=way, max_steps=1)
        found.append((trainer.state.log_history[0]["reward"], shapes))
    (ours, packed), (padded, batches) = found
    assert ours == pytest.approx(padded, rel=1e-5) and ours != 0
    # Rows of random tokens are tried, with padding on either side; then all rollouts lie in one row.
    (rows, columns), (one, tokens) = batches[0], packed[4]
    assert len(packed) == 5 and one == 1 and tokens < 0.8 * rows * columns


def test_a_model_that_cannot_is_told_and_trained_the_padded_way(tiny_model_path, tmp_path, caplog):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, attn_implementation="eager", dtype=torch.float32)
    with caplog.at_level("INFO", "hpt_trl"):
        ours = train(FixedMended, tiny_model_path, tmp_path, model=model, padding_free=True)
    assert "`attn_implementation` is 'eager'" in caplog.text and not ours.is_padding_free
    padded = train(FixedMended, tiny_model_path, tmp_path, padding_free=False)
    assert_same_update(weights(ours), weights(padded), start_weights(tiny_model_path), 1e-5)


def test_continuous_batching_goes_on_beside_it(tiny_model_path, tmp_path):
    settings = {"use_transformers_continuous_batching": True, "learning_rate": 1e-3, "max_steps": 2}
    # Its cache would take half of the machine's memory.
    settings |= {"transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 512}}
    ours = train(RolloutTrainer, tiny_model_path, tmp_path, **settings)
    assert trunk_of(ours).is_padding_free and ours.state.global_step == 2


def test_configs_say_so():
    of_cpu = {"use_cpu": True, "bf16": False}
    assert pads_no_more(RolloutConfig("x", **of_cpu)) and pads_no_more(HybridPostConfig("x", **of_cpu))
    assert not pads_no_more(PPOConfig("x", **of_cpu, padding_free=False))
    assert not pads_no_more(HybridPostConfig("x", **of_cpu, skip_dead_rows=False))
    for key, value in (("torch_compile", True), ("neftune_noise_alpha", 5.0)):
        assert not pads_no_more(HybridPostConfig("x", **of_cpu, **{key: value}))


def test_noise_that_goes_by_the_width_of_a_batch_is_that_of_padded_rows(tiny_model_path, tmp_path, caplog):
    with caplog.at_level("INFO", "hpt_trl"):
        noisy = train(RolloutTrainer, tiny_model_path, tmp_path, neftune_noise_alpha=5.0)
    assert "`neftune_noise_alpha` is set: padding is computed" in caplog.text and not noisy.is_padding_free
    padded = train(RolloutTrainer, tiny_model_path, tmp_path, neftune_noise_alpha=5.0, padding_free=False)
    assert all(torch.equal(p, weights(padded)[name]) for name, p in weights(noisy).items())


@pytest.mark.parametrize(
    ("trainer_class", "others"),
    [
        (FixedMended, {}),
        (FixedHPT, {}),
        # Where no rollout is left out.
        (FixedHPT, {"beta": 0.1}),
        (FixedHPT, {"loss_type": "bnpo"}),
        (FixedHPT, {"skip_dead_rows": False}),
    ],
)
def test_old_log_probabilities_of_the_first_step_are_its_own(tiny_model_path, tmp_path, trainer_class, others):
    """One step of a generation and two epochs: no pass. Two steps and two epochs: a pass for the second step's rows."""

    def trained(**settings):
        """The trainer, and how often its policy was asked without a gradient."""
        trainer = build(trainer_class, tiny_model_path, tmp_path, learning_rate=0.1, max_steps=4, **settings)
        asked: list[bool] = []
        trunk_of(trainer).register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
        trainer.train()
        return trainer, asked.count(False)

    several = {"steps_per_generation": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    for settings, left in (({}, 0), (several, 0.5)):
        (ours, passes), (padded, all_passes) = (
            trained(num_iterations=2, padding_free=way, **settings, **others) for way in (True, False)
        )
        assert passes <= left * all_passes and all_passes > 0
        assert_same_update(weights(ours), weights(padded), start_weights(tiny_model_path), 2e-5)
        for name in ("clip_ratio/region_mean", "clip_ratio/high_max", "entropy"):
            logs = [[line[name] for line in one.state.log_history if name in line] for one in (ours, padded)]
            assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("trainer_class", [FixedMended, FixedHPT, FixedPPO])
def test_a_reference_is_asked_about_as_many_micro_batches_as_fit(tiny_model_path, tmp_path, trainer_class):
    """A pass without a gradient holds one layer at a time: of a model of eight layers two micro-batches at once."""
    deep = AutoConfig.from_pretrained(tiny_model_path)
    deep.num_hidden_layers = 8
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deep).save_pretrained(tmp_path / "deep")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "deep")
    coefficient = "kl_coef" if trainer_class is FixedPPO else "beta"

    def trained(**settings):
        """The trainer, and how often its reference was asked."""
        trainer = build(trainer_class, str(tmp_path / "deep"), tmp_path, learning_rate=0.1, **settings)
        asked: list[int] = []
        trainer.ref_model.register_forward_hook(lambda *_: asked.append(1))
        trainer.train()
        return trainer, len(asked)

    (ours, asked), (padded, asked_padded) = (trained(padding_free=way, **{coefficient: 0.1}) for way in (True, False))
    # PPO's pass is its own, with padding as well.
    assert (asked, asked_padded) == (2, 2 if trainer_class is FixedPPO else 4)
    start = {name: p.detach() for name, p in AutoModelForCausalLM.from_pretrained(tmp_path / "deep").named_parameters()}
    start |= {name: torch.zeros_like(p) for name, p in weights(ours).items() if name not in start}
    assert_same_update(weights(ours), weights(padded), start, 2e-5)
