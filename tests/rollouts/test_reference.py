"""The reference of the KL term is the model that was passed, and one that moves survives a resume."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from hpt_trl import HybridPostTrainer, UserError
from hpt_trl.models.moving_reference import REFERENCE_FILE
from hpt_trl.rollouts import sampling
from hpt_trl.rollouts.trainer import RolloutTrainer
from tests.helpers.rollouts import FixedHPT, FixedMended, FixedPPO, build, train, weights

LORA = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear")


@pytest.fixture
def moved(tiny_model_path):
    """A model with other weights than those of the folder that its config names."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("trainer_class", [FixedMended, FixedHPT])
def test_the_reference_is_what_was_passed(tiny_model_path, tmp_path, trainer_class, moved):
    """At the first step policy and reference are one model: no KL, and the update is that of its folder."""
    moved.save_pretrained(tmp_path / "moved")
    before = copy.deepcopy(moved.state_dict())
    by_folder = str(tmp_path / "moved")
    settings = {"beta": 0.5, "max_steps": 2, "learning_rate": 0.1}
    passed = train(trainer_class, tiny_model_path, tmp_path, model=moved, **settings)
    assert passed.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert passed.state.log_history[1]["kl"] > 1e-6
    assert all(torch.equal(p, before[name]) for name, p in passed.ref_model.state_dict().items())
    named = train(trainer_class, tiny_model_path, tmp_path, model=by_folder, **settings)
    assert all(torch.equal(p, weights(named)[name]) for name, p in weights(passed).items())


def test_a_model_without_a_folder_has_a_reference(tiny_model_path, tmp_path, moved):
    moved.config._name_or_path = ""
    trainer = train(FixedMended, tiny_model_path, tmp_path, model=moved, beta=0.5)
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("stopped", [1, 2], ids=["inside-a-generation", "between-two"])
def test_a_moving_reference_goes_on_where_it_was(tiny_model_path, tmp_path, stopped):
    settings = {
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "generation_batch_size": 8,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": stopped,
        "beta": 0.5,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.5,
    }
    whole = train(RolloutTrainer, tiny_model_path, tmp_path, **settings)
    checkpoint = tmp_path / f"checkpoint-{stopped}"
    resumed = train(RolloutTrainer, tiny_model_path, tmp_path, **settings, resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(p, weights(resumed)[name]) for name, p in weights(whole).items())
    (checkpoint / REFERENCE_FILE).unlink()
    with pytest.raises(UserError, match="sync_ref_model"):
        train(RolloutTrainer, tiny_model_path, tmp_path, **settings, resume_from_checkpoint=str(checkpoint))


# Nothing to train, and sampling that the correction for vLLM cannot correct.


@pytest.mark.parametrize("trainer_class", [RolloutTrainer, HybridPostTrainer, FixedPPO])
@pytest.mark.parametrize("kind", ["adapter", "frozen"])
def test_a_model_with_nothing_to_train_is_refused(tiny_model_path, tmp_path, trainer_class, kind):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    if kind == "frozen":
        with pytest.raises(UserError, match="requires_grad_"):
            build(trainer_class, tiny_model_path, tmp_path, model=base.requires_grad_(False))
        return
    get_peft_model(copy.deepcopy(base), LORA).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="is_trainable=True"):
        model = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
        build(trainer_class, tiny_model_path, tmp_path, model=model)
    build(
        trainer_class,
        tiny_model_path,
        tmp_path,
        model=PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True),
    )


BIASING = [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.2}]
BIASING += [{"generation_kwargs": {"top_p": 0.9}}, {"generation_kwargs": {"no_repeat_ngram_size": 3}}]


@pytest.mark.parametrize("settings", BIASING, ids=str)
@pytest.mark.parametrize("trainer_class", [RolloutTrainer, HybridPostTrainer, FixedPPO])
def test_biased_sampling_is_refused_under_the_correction_and_told_without(
    tiny_model_path, tmp_path, caplog, trainer_class, settings
):
    sampling._tell.cache_clear()
    with pytest.raises(ValueError, match="vllm_importance_sampling_correction: false"):
        build(trainer_class, tiny_model_path, tmp_path, use_vllm=True, **settings)
    build(trainer_class, tiny_model_path, tmp_path, **settings)
    (told,) = [record.getMessage() for record in caplog.records if "another distribution" in record.getMessage()]
    name = next(iter(settings.get("generation_kwargs", settings)))
    assert f"`{name}`" in told


def test_a_temperature_that_the_loss_does_not_know_is_refused(tiny_model_path, tmp_path):
    with pytest.raises(ValueError, match=r"Set `temperature: 0\.5` instead"):
        build(RolloutTrainer, tiny_model_path, tmp_path, generation_kwargs={"temperature": 0.5})
    build(RolloutTrainer, tiny_model_path, tmp_path, temperature=0.5, generation_kwargs={"temperature": 0.5})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"foo": 1}, "sets foo, which"), ({"max_new_tokens": 2}, "write `max_completion_length: 2` instead")],
)
def test_generation_settings_that_would_be_lost_are_refused(tiny_model_path, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(RolloutTrainer, tiny_model_path, tmp_path, generation_kwargs=kwargs)
