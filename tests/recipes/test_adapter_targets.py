"""Layers that LoRA is to adapt: a list of one is a list, and what the model does not have is named."""

import pytest
from safetensors.torch import load_file

from hpt_trl.errors import UserError
from hpt_trl.runs.preparation import prepare
from hpt_trl.runs.runner import run
from tests.helpers.stage_runs import LORA


@pytest.mark.parametrize(
    ("key", "names", "said"),
    [
        ("lora_target_modules", ["nonesuch"], "nonesuch is not found in the base model, whose layers are .*q_proj"),
        (
            "lora_target_modules",
            ["q_proj", "v_prj"],
            r"v_prj is not found in the base model, .* Did you mean `v_proj`\?",
        ),
        ("lora_target_modules", ["q_proj", ".*v_proj"], r"\.\*v_proj is not found"),
        ("lora_target_modules", [".*nonesuch"], "Target modules .*nonesuch not found"),
        ("lora_target_modules", [], "the list is empty"),
        ("lora_target_modules", ["["], "unterminated character set"),
        ("lora_target_modules", ["lm_head"], r"the head \(`lm_head`\) cannot have LoRA"),
        ("lora_target_modules", ["q_proj", "lm_head"], r"the head \(`lm_head`\) cannot have LoRA"),
        ("lora_modules_to_save", ["lm_heads"], r"lm_heads is not found in the base model, .* Did you mean `lm_head`\?"),
        ("lora_modules_to_save", ["lm_head", "x"], "x is not found in the base model"),
        ("lora_target_parameters", ["q_proj.wait"], "q_proj.wait is not found in the base model, whose parameters are"),
    ],
)
def test_layers_that_the_model_does_not_have_are_named(recipe, key, names, said):
    with pytest.raises(UserError, match=f"`{key}`: {said}"):
        prepare(recipe("sft", **LORA | {key: names}), [])


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        ("q_proj", 2),
        (["q_proj"], 2),
        (["layers.0.self_attn.q_proj"], 1),
        ([r".*\.(q|v)_proj"], 4),
        (["q_proj", "v_proj"], 4),
        ("all-linear", 14),
    ],
)
def test_one_name_is_a_name_and_a_pattern_a_pattern(recipe, tmp_path, names, layers):
    run(recipe("sft", **LORA | {"lora_target_modules": names}, max_steps=1), [])
    # Two matrices for each layer.
    assert len(load_file(tmp_path / "sft" / "adapter_model.safetensors")) == 2 * layers
