"""What is told of PPO's critic before a run: what it is, and the parameters that the run's own trainer then has."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.trainer import PPOTrainer
from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning.critics import critic_size, scoring_model_of
from hpt_trl.planning.facts import estimate_of, facts
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_held import held_of
from hpt_trl.planning.memory_settings import sizes_of
from hpt_trl.planning.memory_sizes import Sharding
from hpt_trl.planning.named_models import VALUE_MODEL, named_config
from hpt_trl.planning.timing import step_of
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.stage_runs import LORA, results

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "by-default": ({}, "own copies of the last 2 layers"),
    "head": ({"critic": "head"}, "a linear head on the policy's trunk"),
    "branch": ({"critic": "branch", "critic_layers": 1}, "own copies of the last 1 layers"),
    "value-model": ({"critic": "value_model"}, "a value model, from the policy"),
    "named": ({"value_model_name_or_path": "WHOLE"}, "a value model, from "),
    "reward-model": ({"critic": "value_model", "reward_model_name_or_path": ["WHOLE"]}, "a value model, from "),
    "branch-lora": (
        {**LORA, "critic": "branch", "critic_layers": 1},
        "own copies of the last 1 layers, as an adapter over the policy's base",
    ),
    "value-model-lora": (
        {**LORA, "critic": "value_model", "reward_model_name_or_path": ["WHOLE"]},
        "a value model, from the policy, as an adapter over the policy's base",
    ),
    "reward-adapter": (
        {**LORA, "critic": "value_model", "reward_model_name_or_path": ["ADAPTER"]},
        "/ADAPTER, as an adapter over the policy's base",
    ),
}


@pytest.fixture(scope="module")
def reward_models(tiny_model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    for name in ("WHOLE", "ADAPTER"):
        torch.manual_seed(1)
        model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
        if name == "ADAPTER":
            model = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["up_proj", "v_proj"]))
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_is_what_the_run_has(recipe, tmp_path, reward_models, monkeypatch, name):
    keys, said = CASES[name]
    places = {key: str(reward_models / key) for key in ("WHOLE", "ADAPTER")}
    keys = {
        key: [places[one] for one in value]
        if key.startswith("reward")
        else places[value]
        if value == "WHOLE"
        else value
        for key, value in keys.items()
    }
    path = recipe("ppo", max_steps=1, **keys)
    prepared = prepare(path, [])
    assert said in " ".join(facts(prepared).split())
    reward_model = scoring_model_of(prepared)
    sizes = sizes_of(prepared.recipe, prepared.model_config, Lengths(16, 16))
    named = named_config(prepared.recipe, VALUE_MODEL)
    size = critic_size(prepared.recipe, prepared.model_config, sizes, named, reward_model)
    estimate, (cost, _) = estimate_of(prepared), step_of(prepared, Lengths(16, 16))
    assert estimate.critic == (0 if size is None else size.own * 4)

    if name != "head":
        plain = {key: value for key, value in keys.items() if key != VALUE_MODEL}
        head = prepare(recipe("ppo", **plain | {"critic": "head"}), [])
        assert estimate.total > estimate_of(head).total and estimate.activations > estimate_of(head).activations
        assert cost.seconds > step_of(head, Lengths(16, 16))[0].seconds
        recipe("ppo", max_steps=1, **keys)

    made: list[PPOTrainer] = []
    build = PPOTrainer.__init__

    def kept(self, *args, **kwargs):
        build(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(PPOTrainer, "__init__", kept)
    runner.run(path, [])
    assert results(tmp_path / "ppo")["trained"] is True
    critic = made[0]._critic
    in_head = {id(parameter) for parameter in critic.head.parameters()}
    own = sum(weight.numel() for weight in critic.parameters().values() if id(weight) not in in_head)
    # A sequence classifier's score is counted as the head.
    counted = 0 if size is None else size.own - (32 if name in ("named", "reward-model") else 0)
    assert counted == own


def test_fsdp_spreads_a_shared_base_a_second_time(recipe):
    prepared = prepare(recipe("ppo", **LORA, critic="value_model"), [])
    model, sizes = prepared.model_config, sizes_of(prepared.recipe, prepared.model_config, Lengths(16, 16))
    size = critic_size(prepared.recipe, model, sizes, None)
    counts = count_parameters(model, prepared.recipe.model_args)
    # The model ties its head: the trunk is all of it.
    assert size.shared == counts.total and size.own == counts.adapter
    halves = {"weights": 2, "gradients": 2, "optimizer": 2}
    spread = {kind: replace(sizes, sharding=Sharding(gathered=kind, **halves)) for kind in ("layers", "window")}
    held = {kind: held_of(one, counts, size).critic for kind, one in spread.items()}
    assert held == {"layers": 4 * (size.own + size.shared) / 2, "window": 4 * size.own / 2}


@pytest.mark.parametrize(
    "keys,said",
    [
        ({"critic": "branch", "critic_layers": 3}, r"critic_layers.*: 3, but the model has 2 layers; allowed: 1 to 2"),
        ({"critic": "branch", "value_model_name_or_path": "x"}, r"critic.*: branch has no trunk of its own"),
        ({"critic": "heads"}, r"critic.*: heads is not allowed; allowed: value_model, branch, head. Did you mean"),
    ],
)
def test_a_critic_that_cannot_be_is_told_at_its_line(recipe, keys, said, tiny_model_path):
    keys = {key: tiny_model_path if value == "x" else value for key, value in keys.items()}
    with pytest.raises(UserError, match=said) as told:
        prepare(recipe("ppo", **keys), [])
    assert "ppo.yaml, line " in str(told.value)


def test_check_shows_it(recipe, capsys):
    assert main(["check", recipe("ppo", critic="branch", critic_layers=2)]) == 0
    printed = capsys.readouterr().out
    assert "own copies of the last 2 layers" in printed and "of its own" in printed
