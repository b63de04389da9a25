"""The estimate of peak memory: exact parameter counts, and activations against what autograd really keeps."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from trl import ModelConfig

from hpt_trl.memory import Sizes, count_parameters, estimate

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def tiny(config_class=LlamaConfig, layers: int = 2, **options):
    return config_class(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        **options,
    )


def sizes(**options) -> Sizes:
    given = {
        "rows": 4,
        "generated_rows": 16,
        "prompt_length": 96,
        "completion_length": 160,
        "weight_bytes": 4,
        "linear_bytes": 4,
        "trainable_bytes": 4,
        "activation_bytes": 4,
    }
    return Sizes(**(given | options))


def test_smollm2_135m_has_134_515_008_parameters():
    assert count_parameters(SMOLLM2_135M) == (
        134515008,
        30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536),
        134515008,
        0,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_real_model(tied):
    config = tiny(tie_word_embeddings=tied)
    assert count_parameters(config).total == AutoModelForCausalLM.from_config(config).num_parameters()


def test_lora_parameters_follow_rank_and_target_modules():
    # q_proj and v_proj (PEFT's default for Llama): r * (in + out) each, in both layers.
    counts = count_parameters(tiny(), ModelConfig(use_peft=True, lora_r=8))
    assert counts.trainable == counts.adapter == 2 * 8 * ((128 + 128) + (128 + 64))
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    counts = count_parameters(tiny(), ModelConfig(use_peft=True, lora_r=8, lora_target_modules=every))
    assert counts.adapter == 2 * 8 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))


def kept_by_autograd(config, rows: int, tokens: int, dtype: torch.dtype, autocast: bool) -> int:
    """Returns the bytes of all storages that a forward of the backbone saves for the backward pass."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model.model(input_ids=torch.randint(0, 512, (rows, tokens)), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_activations_of_a_layer_are_what_autograd_keeps(config_class, dtype, autocast):
    two, four = (kept_by_autograd(tiny(config_class, layers), 4, 256, dtype, autocast) for layers in (2, 4))
    numbers = sizes(
        weight_bytes=dtype.itemsize,
        linear_bytes=dtype.itemsize,
        activation_bytes=2 if autocast else dtype.itemsize,
        gradient_checkpointing=False,
    )
    parts = [estimate(tiny(config_class, layers), numbers) for layers in (2, 4)]
    estimated = parts[1].activations - parts[0].activations
    if autocast:
        # Autocast's copies of the weights, which the estimate counts as weights.
        estimated += 2 * (count_parameters(tiny(config_class, 4)).linear - count_parameters(tiny(config_class)).linear)
    assert estimated == pytest.approx(four - two, rel=0.2)


def test_parts_of_full_training_in_float32():
    config, counts = tiny(), count_parameters(tiny())
    parts = estimate(config, sizes(gradient_checkpointing=False))
    assert parts.weights == parts.gradients == 4 * counts.total
    assert parts.optimizer == 8 * counts.total
    assert parts.reference_model == 0
    # 16 rows of 256 tokens, 2 layers, keys and values of 2 heads of 32; one position's logits.
    assert parts.kv_cache == 16 * 256 * 2 * (2 * 2 * 32) * 4 + 16 * 512 * 4
    # 4 rows of 160 scored positions: states and their gradient, a tile of logits and its copy, the head's gradient.
    assert parts.head == 640 * 128 * 8 + 640 * 512 * (4 + 4) + 512 * 128 * 4
    assert parts.total == 16 * counts.total + max(parts.activations + parts.head, parts.kv_cache - 4 * counts.total)
    checkpointed = estimate(config, sizes())
    one_layer = parts.activations // 2
    assert checkpointed.activations == one_layer + 2 * (4 * 256 * 128 * 4)


def test_what_settings_change():
    config, counts = tiny(), count_parameters(tiny())
    assert estimate(config, sizes(reference_model=True)).reference_model == 4 * counts.total
    assert estimate(config, sizes(optimizer="adamw_8bit")).optimizer == 2 * counts.total
    assert estimate(config, sizes(optimizer="sgd")).optimizer == 0
    assert estimate(config, sizes(generates=False)).kv_cache == 0
    assert estimate(config, sizes(activation_bytes=2)).weights == 4 * counts.total + 2 * counts.linear
    sharded = estimate(config, sizes(weight_shards=4, state_shards=4))
    assert sharded.weights == counts.total and sharded.optimizer == 2 * counts.total
    lora = ModelConfig(use_peft=True, lora_r=8)
    adapter = count_parameters(config, lora).adapter
    parts = estimate(config, sizes(weight_bytes=2, linear_bytes=0.5625, trainable_bytes=2, activation_bytes=2), lora)
    assert parts.gradients == 2 * adapter and parts.optimizer == 4 * adapter
    assert parts.weights == round(2 * (counts.total - counts.linear) + 0.5625 * counts.linear + 2 * adapter)


def test_a_reward_model_has_a_score_for_a_head():
    config = tiny(tie_word_embeddings=False)
    counts = count_parameters(config, scores=True)
    assert counts.total == count_parameters(config).total - 512 * 128 + 128
    assert counts.linear == count_parameters(config).linear
    # The score is trained beside the adapter: both count.
    lora = count_parameters(config, ModelConfig(use_peft=True, lora_r=8), scores=True)
    assert lora.trainable == count_parameters(config, ModelConfig(use_peft=True, lora_r=8)).trainable + 128
    assert estimate(config, sizes(scores=True, generates=False)).head == 2 * 4 * 256 * 128 * 4


def test_table_shows_every_part_and_the_peak():
    table = estimate(SMOLLM2_135M, sizes()).table()
    assert "weights              0.501 GiB" in table and "optimizer            1.002 GiB" in table
    assert table.splitlines()[-1].startswith("  peak per process ")
