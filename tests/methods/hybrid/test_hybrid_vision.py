"""HybridPostTrainer on a tiny vision-language model: images follow their rows, demonstrations share their prompt's."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
)
from trl import GRPOConfig

from hpt_trl import HybridPostConfig
from tests.helpers.images import image_rows
from tests.helpers.rollouts import FixedGRPO, FixedHPT, assert_same_update, parity_reward, weights


@pytest.fixture
def run(vlm_path, tmp_path):
    def run(trainer_class=FixedHPT, **settings):
        config_class = HybridPostConfig if issubclass(trainer_class, FixedHPT) else GRPOConfig
        config = config_class(
            **{
                "output_dir": str(tmp_path),
                "num_generations": 4,
                "max_completion_length": 8,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 3,
                "max_steps": 1,
                "learning_rate": 1.0,
                "optim": "sgd",
                "max_grad_norm": 0.0,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "bf16": False,
                "use_cpu": True,
                "loss_type": "grpo",
            }
            | settings
        )
        trainer = trainer_class(
            AutoModelForImageTextToText.from_pretrained(vlm_path, dtype=torch.float32),
            parity_reward,
            config,
            image_rows(),
            processing_class=AutoProcessor.from_pretrained(vlm_path),
        )
        trainer.train()
        return trainer

    return run


@pytest.fixture(scope="module")
def start(vlm_path):
    return {n: p.detach() for n, p in AutoModelForImageTextToText.from_pretrained(vlm_path).named_parameters()}


def test_dropping_rows_keeps_the_images_with_their_rows(run, start):
    stock = weights(run(FixedGRPO))
    ours = run(switch_gate=-1)
    assert ours.state.log_history[0]["hpt/rows_kept"] <= 0.5
    assert_same_update(weights(ours), stock, start)
    assert any((stock[n] != start[n]).any() for n in stock if "vision" in n)


def test_demonstrations_come_with_the_image_of_their_prompt(run, start):
    """The same gradient whether demonstrations share a forward pass with all rollouts, with some or with none."""
    references = run(switch_gate=0, skip_dead_rows=False)
    assert_same_update(weights(run(switch_gate=0)), weights(references), start)
    gated = run(switch_gate=4, skip_dead_rows=False)
    assert_same_update(weights(run(switch_gate=4)), weights(gated), start)
    assert_same_update(
        weights(run(switch_gate=4, per_device_train_batch_size=24, gradient_accumulation_steps=1)),
        weights(gated),
        start,
    )


def test_demonstration_likelihood_is_the_models_own(run, vlm_path):
    """`hpt/demo_nll` against a plain forward pass of the model, one row at a time."""
    model = AutoModelForImageTextToText.from_pretrained(vlm_path, dtype=torch.float64)
    processor = AutoProcessor.from_pretrained(vlm_path)
    nll, count = 0.0, 0
    for row in image_rows():
        messages = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}],
            }
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        text += row["completion"][0]["content"] + "<|im_end|>"
        inputs = processor(images=[row["image"]], text=text, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].double()
        length = len(processor.tokenizer(row["completion"][0]["content"] + "<|im_end|>")["input_ids"])
        with torch.no_grad():
            logp = torch.log_softmax(model(**inputs).logits[0, :-1], -1)
        targets = inputs["input_ids"][0, 1:]
        nll -= logp[torch.arange(len(targets)), targets][-length:].sum().item()
        count += length
    assert run(switch_gate=4).state.log_history[0]["hpt/demo_nll"] == pytest.approx(nll / count, rel=1e-5)
