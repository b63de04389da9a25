"""The kinds of critic through `.train()`: their step, what they share with the policy, what is kept of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3nTextConfig,
)

from hpt_trl import PPOConfig, PPOTrainer, UserError
from hpt_trl.methods.ppo.critics import making
from hpt_trl.methods.ppo.critics.branch import BranchCritic, branch_layers
from hpt_trl.models.folders import VALUE_HEAD_FILE
from hpt_trl.models.parameters import build_on_meta
from hpt_trl.models.value_model import load_value_model
from hpt_trl.rewards.reward_model import RewardModel
from tests.helpers.families import family_model
from tests.helpers.ppo_oracle import displace, oracle
from tests.helpers.processes import launch
from tests.helpers.rollouts import FixedPPO, assert_same_update, build, train, weights
from tests.helpers.value_models import save_value_model

PPO: dict[str, Any] = {"num_generations": 2, "loss_type": "dapo", "learning_rate": 0.2, "kl_coef": 0.1, "vf_coef": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "branch": {"critic": "branch", "critic_layers": 1},
    "value-model": {"critic": "value_model"},
    "branch-lora": {"critic": "branch", "critic_layers": 1, "lora": True},
    "value-model-lora": {"critic": "value_model", "lora": True},
}
LORA = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear")
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def critic_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer._critic.parameters().items()}


def policy_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights(trainer).items() if "value_head" not in name}


@pytest.fixture(scope="module")
def reward_models(tiny_model_path, tmp_path_factory) -> dict[str, str]:
    """A whole reward model and an adapter of another rank, whose scores say something."""
    folder = tmp_path_factory.mktemp("rewards")
    found = {}
    for name in ("whole", "adapter"):
        torch.manual_seed(1)
        model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
        if name == "adapter":
            config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"], lora_dropout=0.1)
            model = get_peft_model(model, config)
        displace(model)
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder / name)
        found[name] = str(folder / name)
    return found


@pytest.mark.parametrize("kind", ["branch", "value_model"])
def test_the_step_is_the_papers(tiny_model_path, tmp_path, kind):
    settings = PPO | {"critic": kind, "critic_layers": 1, "num_iterations": 2, "max_steps": 2}
    trainer = build(FixedPPO, tiny_model_path, tmp_path, **settings)
    displace(trainer.model)
    start = weights(trainer)
    trainer.train()
    assert_same_update(weights(trainer), oracle(start, tiny_model_path, trainer.args, 2), start)


@every_kind
def test_a_new_critic_reads_what_the_policy_reads(tiny_model_path, tmp_path, kind):
    """Its hidden states are those of the trunk, bit for bit; with an adapter also of one that was trained before."""
    kind = dict(kind)
    if kind.pop("lora", False):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_path), LORA)
        displace(model)
        kind["model"] = model
    trainer = build(FixedPPO, tiny_model_path, tmp_path, **PPO, **kind)
    critic, ids = trainer._critic, torch.arange(3, 40)[None]
    torch.nn.init.normal_(critic.head.linear.weight)
    with torch.no_grad(), critic.asked() as values:
        base = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
        hidden = base.model(ids).last_hidden_state
    assert torch.equal(values[0], critic.head(hidden)) and values[0].std() > 0


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "gpt_neox", "qwen3", "cohere2"])
def test_a_branch_is_put_on_many_families(family):
    model = family_model(family).eval()
    critic, ids = BranchCritic(model, 2), torch.arange(3, 30)[None]
    torch.nn.init.normal_(critic.head.linear.weight)
    with torch.no_grad(), critic.asked() as values:
        hidden = model.base_model(ids).last_hidden_state
    torch.testing.assert_close(values[0], critic.head(hidden))


@every_kind
def test_critic_and_policy_share_what_is_frozen_alone(tiny_model_path, tmp_path, kind):
    settings = PPO | kind | {"learning_rate": 0.5, "max_steps": 3}
    trainer = build(FixedPPO, tiny_model_path, tmp_path, **settings)
    with trainer._critic.detached():
        of_policy = {id(parameter) for parameter in trainer.model.parameters()}
    more = [parameter for parameter in trainer.model.value_head.parameters() if id(parameter) not in of_policy]
    assert all(parameter.requires_grad for parameter in more)
    before, policy = critic_of(trainer), policy_of(trainer)
    assert sum(parameter.numel() for parameter in more) == sum(value.numel() for value in before.values())
    trainer.train()
    first, second = (line["ppo/kl"] for line in trainer.state.log_history[:2])
    assert first == pytest.approx(0.0, abs=1e-5) and second != pytest.approx(0.0, abs=1e-3)
    moved = {name for name, value in critic_of(trainer).items() if not torch.equal(value, before[name])}
    assert moved == set(before)
    assert any(not torch.equal(value, policy[name]) for name, value in policy_of(trainer).items())
    # The model's files hold the policy, and the critic's its own weights alone.
    trainer.save_model(str(tmp_path / "saved"))
    lora = "lora" in kind
    saved = load_file(tmp_path / "saved" / ("adapter_model.safetensors" if lora else "model.safetensors"))
    assert not any("value_head" in name for name in saved)
    assert len(saved) == len(policy)
    assert set(load_file(tmp_path / "saved" / VALUE_HEAD_FILE)) == set(before)


@every_kind
def test_checkpointed_gradients_are_the_same(tiny_model_path, tmp_path, kind):
    settings = PPO | kind
    one, other = (
        build(FixedPPO, tiny_model_path, tmp_path / str(on), gradient_checkpointing=on, **settings) for on in (0, 1)
    )
    other.model.load_state_dict(one.model.state_dict())
    start = weights(one)
    seen = []
    layer = next(m for m in other._critic.module.modules() if type(m).__name__ == "LlamaDecoderLayer")
    layer.register_forward_hook(lambda module, *_: seen.append(module.gradient_checkpointing))
    for trainer in (one, other):
        trainer.train()
    assert_same_update(weights(other), weights(one), start, 1e-5)
    # Of the rollouts nothing goes back.
    assert seen[0] is False and seen[-1] is True


# A completion's score is told by its prompt: what a critic can learn.
LEARNT: dict[str, Any] = {"kinds": ["fail", "solve"] * 4, "optim": "adamw_torch", "learning_rate": 1e-4, "kl_coef": 0.0}


@pytest.mark.parametrize("kind", [{"critic": "head"}, *KINDS.values()], ids=["head", *KINDS])
def test_the_critic_learns(tiny_model_path, tmp_path, kind):
    settings = PPO | LEARNT | kind | {"max_steps": 25, "vf_coef": 1.0, "critic_learning_rate": 1e-2}
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **settings)
    explained = [line["ppo/explained_variance"] for line in trainer.state.log_history if "ppo/ratio" in line]
    assert explained[0] == 0.0
    # The new model's own states tell less of the prompt than trained ones.
    assert explained[-1] > (0.3 if kind["critic"] == "head" else 0.8)


@pytest.mark.parametrize("kind", [{"critic": "head"}, *KINDS.values()], ids=["head", *KINDS])
def test_a_learning_rate_of_its_own(tiny_model_path, tmp_path, kind):
    settings = PPO | kind | {"lr_scheduler_type": "linear", "warmup_steps": 2}
    one = build(FixedPPO, tiny_model_path, tmp_path / "1", **settings)
    ten = build(FixedPPO, tiny_model_path, tmp_path / "2", **settings, critic_learning_rate=2.0)
    ten.model.load_state_dict(one.model.state_dict())
    start = critic_of(one), policy_of(one)
    for trainer in (one, ten):
        trainer.args.max_steps = 2  # the first step of a warm-up is at 0
        trainer.train()
    steps = [sum((value - start[0][n]).double().norm() ** 2 for n, value in critic_of(t).items()) for t in (one, ten)]
    assert float(steps[1] / steps[0]) == pytest.approx(100, rel=1e-3)
    for name, value in policy_of(one).items():
        torch.testing.assert_close(policy_of(ten)[name], value)


@pytest.mark.parametrize(
    "kind", [{"critic": "head"}, KINDS["branch"], KINDS["value-model-lora"]], ids=["head", "branch", "lora"]
)
def test_the_policy_stays_as_it_is_while_the_critic_warms_up(tiny_model_path, tmp_path, kind):
    """Two generation batches of two epochs each; weight decay and moments do not touch the policy either."""
    settings = PPO | kind | {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2, "num_iterations": 2}
    settings |= {"critic_warmup_steps": 2, "kl_controller": "adaptive", "kl_horizon": 50.0}
    trainer = build(FixedPPO, tiny_model_path, tmp_path, **settings, max_steps=4)
    policy, critic = policy_of(trainer), critic_of(trainer)
    trainer.train()
    assert all(torch.equal(value, policy[name]) for name, value in policy_of(trainer).items())
    assert all(not torch.equal(value, critic[name]) for name, value in critic_of(trainer).items())
    state = trainer.optimizer.optimizer.state
    assert len(state) == len(critic)
    assert trainer._kl_controller.coefficient == 0.1
    longer = train(FixedPPO, tiny_model_path, tmp_path, **settings, max_steps=5)
    assert any(not torch.equal(value, policy[name]) for name, value in policy_of(longer).items())


RESUMED = PPO | {"optim": "adamw_torch", "learning_rate": 1e-2, "critic_learning_rate": 3e-2, "critic_warmup_steps": 2}
RESUMED |= {"critic_calibration": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
RESUMED |= {"generation_batch_size": 8, "num_iterations": 2, "max_steps": 11, "save_strategy": "steps", "save_steps": 3}


@every_kind
def test_a_resumed_run_is_one_that_never_stopped(tiny_model_path, tmp_path, kind):
    settings = RESUMED | kind
    whole = train(PPOTrainer, tiny_model_path, tmp_path / "run", **settings)
    checkpoint = str(tmp_path / "run" / "checkpoint-3")
    resumed = train(PPOTrainer, tiny_model_path, tmp_path / "run", **settings, resume_from_checkpoint=checkpoint)
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_checkpoint_brings_its_critic(tiny_model_path, tmp_path):
    settings = PPO | KINDS["value-model-lora"] | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = train(FixedPPO, tiny_model_path, tmp_path, **settings)
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    saved = load_file(tmp_path / "checkpoint-1" / VALUE_HEAD_FILE)
    assert all(torch.equal(value, saved[name]) for name, value in critic_of(trainer).items())


def test_a_later_run_goes_on_with_a_critic_of_its_kind(tiny_model_path, tmp_path, caplog):
    first = train(FixedPPO, tiny_model_path, tmp_path, **PPO, **KINDS["branch"])
    first.save_model(str(tmp_path / "saved"))
    model = str(tmp_path / "saved")
    again = build(FixedPPO, model, tmp_path, **PPO, **KINDS["branch"])
    assert all(torch.equal(value, critic_of(first)[name]) for name, value in critic_of(again).items())
    with caplog.at_level("WARNING"):
        other = build(FixedPPO, model, tmp_path, critic="head", **PPO)
    assert not other.model.value_head.linear.weight.any()
    assert "starts anew" in caplog.text and "`critic_layers`" in caplog.text


def test_an_adapter_is_not_taken_up_over_another_base(tiny_model_path, tmp_path):
    """As where a policy's adapter was merged into its base, and the critic's lies beside it."""
    first = train(FixedPPO, tiny_model_path, tmp_path, **PPO | {"max_steps": 3}, **KINDS["branch-lora"])
    first._critic.save(tmp_path)
    base = first.model.unload()
    base.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = build(FixedPPO, tiny_model_path, tmp_path, **PPO, **KINDS["branch-lora"], model=model)
    assert not again._critic.head.linear.weight.any()


@pytest.mark.parametrize("name", ["whole", "adapter"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_value_model_starts_from_the_reward_model(tiny_model_path, tmp_path, reward_models, name, lora, caplog):
    folder, weight = reward_models[name], 0.5
    settings = PPO | {"critic": "value_model", "max_steps": 3, "reward_weights": [weight]}
    with caplog.at_level("WARNING"):
        trainer = build(FixedPPO, tiny_model_path, tmp_path, reward=[folder], lora=lora, **settings)
    reward, ids = RewardModel(folder), torch.arange(3, 30)[None]
    score = reward._loaded()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    with torch.no_grad(), trainer._critic.asked() as values:
        trainer.model(input_ids=ids)
    if lora and name == "whole":
        assert not values[0].any() and "no adapter over the same base" in caplog.text
    else:
        torch.testing.assert_close(values[0][0, -1], weight * score[0, 0])
    before = critic_of(trainer)
    if lora:
        assert all("lora" in weight or "head" in weight for weight in before)
    with trainer._critic.detached():
        of_policy = {id(parameter) for parameter in trainer.model.parameters()}
    held = {id(p): p.numel() for p in trainer.model.value_head.parameters() if id(p) not in of_policy}
    assert sum(held.values()) == sum(value.numel() for value in before.values())
    trainer.train()
    assert all(not torch.equal(value, before[weight]) for weight, value in critic_of(trainer).items())


def test_the_adapter_of_a_value_model_shares_the_base(tiny_model_path, tmp_path):
    folder = save_value_model(tiny_model_path, tmp_path / "value", lora=True, scale=0.5)
    trainer = build(
        FixedPPO, tiny_model_path, tmp_path, value_model_name_or_path=folder, lora=True, **PPO | {"max_steps": 3}
    )
    ids, whole = torch.arange(3, 30)[None], load_value_model(folder, trainable=False).eval()
    with torch.no_grad(), trainer._critic.asked() as values:
        trainer.model(input_ids=ids)
        torch.testing.assert_close(values[0], whole(input_ids=ids).token_values)
    assert values[0].std() > 0
    before = critic_of(trainer)
    trunks = trainer.model.get_base_model().model, trainer._critic.module.trunk.get_base_model()
    of_policy, own = (trunk.layers[0].mlp.up_proj.base_layer.weight for trunk in trunks)
    assert own is of_policy
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in critic_of(trainer).items())


def test_a_calibrated_critic_begins_at_the_mean_of_the_returns(tiny_model_path, tmp_path, reward_models):
    settings = PPO | {"critic": "value_model", "critic_lam": 1.0, "learning_rate": 1e-30, "max_steps": 2}
    settings["reward"] = [reward_models["whole"]]
    logs = {}
    for on in (False, True):
        trainer = train(FixedPPO, tiny_model_path, tmp_path, critic_calibration=on, **settings)
        lines = [line for line in trainer.state.log_history if "ppo/values_mean" in line]
        logs[on] = [(line["ppo/values_mean"], line["ppo/returns_mean"]) for line in lines]
    assert abs(logs[False][0][0] - logs[False][0][1]) > 0.1
    assert logs[True][0][0] == pytest.approx(logs[True][0][1], abs=1e-5)
    assert logs[True][0][1] == pytest.approx(logs[False][0][1], abs=1e-5)
    # It stays in the bias, and is not done again.
    shift = logs[True][0][0] - logs[False][0][0]
    assert trainer.model.value_head.head.linear.bias.item() == pytest.approx(shift, rel=1e-5)
    assert logs[True][1][0] - logs[False][1][0] == pytest.approx(shift, rel=1e-4)


@pytest.mark.slow
@every_kind
def test_two_processes_are_one(tiny_model_path, tmp_path, kind):
    settings = PPO | {"shuffle_dataset": False, "max_steps": 2, "learning_rate": 0.5, "critic_calibration": True} | kind
    one = train(FixedPPO, tiny_model_path, tmp_path, **settings)
    two, _ = launch(
        tiny_model_path,
        tmp_path / "two",
        trainer="FixedPPO",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=one.args.gradient_accumulation_steps,
        **settings,
    )
    assert_same_update(two, weights(one), weights(build(FixedPPO, tiny_model_path, tmp_path, **settings)))


def test_the_base_in_four_bits_is_shared(tiny_model_path, tmp_path):
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, quantization_config=nf4)
    settings = PPO | {"critic": "value_model", "max_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-2}
    trainer = build(FixedPPO, tiny_model_path, tmp_path, model=model, peft_config=LORA, **settings)
    base, own = (m.layers[0].mlp.up_proj.base_layer for m in (model.model, trainer._critic.module.trunk))
    assert own.weight is base.weight and own.weight.quant_state is base.weight.quant_state
    before = critic_of(trainer)
    trainer.train()
    assert [name for name, value in critic_of(trainer).items() if torch.equal(value, before[name])] == []
    trainer.save_model(str(tmp_path / "saved"))
    assert set(load_file(tmp_path / "saved" / VALUE_HEAD_FILE)) == set(before)


def test_more_layers_than_the_model_has_are_refused(tiny_model_path, tmp_path):
    with pytest.raises(UserError, match=r"critic_layers: 3, but the model has 2 layers; allowed: 1 to 2"):
        build(FixedPPO, tiny_model_path, tmp_path, critic="branch", critic_layers=3, **PPO)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"critic": "heads"}, "value_model, branch, head"),
        ({"critic": "head", "value_model_name_or_path": "x"}, "`critic: value_model`"),
        ({"critic": "branch", "value_model_name_or_path": "x"}, "`critic: value_model`"),
        ({"critic_layers": 0}, "1 or more"),
        ({"critic_learning_rate": 0.0}, "above 0"),
        ({"critic_lam": 1.5}, "0 to 1"),
        ({"length_adaptive_alpha": 0.0}, "above 0"),
        ({"critic_warmup_steps": -1}, "0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_a_named_value_model_is_the_critic(tmp_path):
    config = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, value_model_name_or_path="x")
    assert config.critic == "value_model"
    asked = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, critic_layers=1)
    assert asked.critic == "branch"


def test_by_default_the_critic_is_a_branch_where_the_model_can_have_one(tiny_model_path, tmp_path, caplog):
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    config = AutoConfig.from_pretrained(tiny_model_path)
    assert [len(build(FixedPPO, tiny_model_path, tmp_path, **PPO)._critic.module.layers)] == [2]
    config.num_hidden_layers = 1
    assert (making.critic_of(args, build_on_meta(config)), branch_layers(build_on_meta(config), None)) == ("branch", 1)
    several = Gemma3nTextConfig(num_hidden_layers=2, num_kv_shared_layers=0, hidden_size=32, vocab_size=64)
    with caplog.at_level("INFO"):
        assert making.critic_of(args, build_on_meta(several)) == "head"
    assert "several streams of hidden states" in caplog.text
    assert making.critic_of(args, build_on_meta(config), can_copy=False) == "head"
