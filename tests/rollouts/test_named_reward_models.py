"""A reward model given by name gets the settings that GRPOTrainer would give to it."""

import logging

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl import HybridPostTrainer, PPOTrainer
from hpt_trl.errors import UserError
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.rollouts.trainer import RolloutTrainer
from tests.helpers.rollouts import build, rows


@pytest.fixture(scope="module")
def judge(tiny_model_path, tmp_path_factory):
    """A reward model of random weights whose config names no padding token."""
    folder = tmp_path_factory.mktemp("models") / "judge"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    return str(folder)


class Tokenized:
    """Mixin: a trainer that is given a tokenizer for its rewards."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, reward_processing_classes=self.tokenizer, **kwargs)


@pytest.mark.parametrize("base", [RolloutTrainer, HybridPostTrainer, PPOTrainer])
def test_tokenizer_and_loading_settings_are_applied(judge, tiny_model_path, tmp_path, base):
    other = AutoTokenizer.from_pretrained(tiny_model_path)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    row, answer = rows(["fail"])[0], [{"role": "assistant", "content": "1 + 1 = 2"}]
    for tokenizer in (None, other):
        trainer_class = type("Trainer", (Tokenized, base), {"tokenizer": tokenizer})
        settings = {"model_init_kwargs": {"dtype": torch.bfloat16}, "trust_remote_code": True}
        trainer = build(trainer_class, tiny_model_path, tmp_path, reward=judge, **settings)
        used = AutoTokenizer.from_pretrained(judge) if tokenizer is None else tokenizer
        ids = used.apply_chat_template([*row["prompt"], *answer], tokenize=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            expected = model.to(torch.bfloat16)(input_ids=torch.tensor([ids])).logits[0, 0].item()
        score = trainer.reward_funcs[0](prompts=[row["prompt"]], completions=[answer])
        assert score == pytest.approx([expected], abs=1e-2)
        inner = trainer.reward_funcs[0].__wrapped__
        assert inner._loaded().dtype == torch.bfloat16 and inner.settings["trust_remote_code"]
        assert inner._loaded().config.pad_token_id == used.pad_token_id


def test_settings_that_cannot_be_applied_are_refused(judge):
    with pytest.raises(TypeError, match="nonsense"):
        RewardModel(judge, model_init_kwargs={"nonsense": 1})(prompts=["a"], completions=["b"])
    pads_otherwise = AutoTokenizer.from_pretrained(judge)
    pads_otherwise.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        RewardModel(judge, tokenizer=pads_otherwise)


def test_a_reward_model_as_an_object_reads_other_texts_and_that_is_said(judge, tiny_model_path, tmp_path, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    with caplog.at_level(logging.WARNING):
        build(RolloutTrainer, tiny_model_path, tmp_path, reward=model)
    assert "without an end-of-sequence token" in caplog.text
