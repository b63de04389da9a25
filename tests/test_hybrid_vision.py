"""HybridPostTrainer on a tiny vision-language model: images follow their rows, demonstrations share their prompt's."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from trl import GRPOConfig

from hpt_trl import HybridPostConfig
from tests.rollouts import FixedGRPO, FixedHPT, assert_same_update, parity_reward, weights
from tests.tiny import build_tokenizer

KINDS = ["fail", "mixed", "solve", "mixed", "fail", "mixed"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def vlm_path(tmp_path_factory) -> str:
    """A two-layer Idefics3 with two vision layers; 16 image tokens for an image of 32 x 32 pixels."""
    folder = str(tmp_path_factory.mktemp("models") / "tiny-idefics3")
    tokenizer = build_tokenizer()
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    special += [f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=TEMPLATE,
    )
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        vision_config={**layers, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2, **layers, **ids},
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "Which color?" + " Look." * (i % 3)}],
                "completion": [{"role": "assistant", "content": f"It is shade {i}."}],
                "image": Image.new("RGB", (32, 32), (i * 40, 255 - i * 40, 128)),
                "kind": kind,
            }
            for i, kind in enumerate(KINDS)
        ]
    )


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
