"""Which layers a recipe's LoRA adapts, seen on the architecture itself: what the trainers cannot train is refused."""

import dataclasses
from typing import TYPE_CHECKING, cast

from hpt_trl.models.parameters import build_on_meta

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe


def check_adapter_targets(recipe: "Recipe", model_config: "PretrainedConfig") -> None:
    """Check the layers that `lora_target_modules` and `lora_modules_to_save` name.

    Raises:
        UserError: a layer that the model does not have, LoRA on the head, or embeddings that vLLM could not be given.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper
    from trl import get_peft_config

    arguments = recipe.model_args
    named = arguments.lora_target_modules not in (None, "all-linear") or arguments.lora_modules_to_save
    if not arguments.use_peft or not named:
        return
    scores = recipe.stage.scores
    if scores:
        arguments = dataclasses.replace(arguments, lora_task_type="SEQ_CLS")
    model = build_on_meta(model_config, scores=scores)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    try:
        adapted = get_peft_model(model, cast("PeftConfig", get_peft_config(arguments)))
    except ValueError as error:
        raise recipe.error("lora_target_modules", str(error).splitlines()[0]) from error
    embeddings, head = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise recipe.error(
            "lora_target_modules",
            "the head (`lm_head`) cannot have LoRA: the trainers multiply with its weight themselves, and an adapter "
            "beside it would never be trained. Drop it, or train the head whole: `lora_modules_to_save: [lm_head]`.",
        )
    changed = any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in (embeddings, head))
    if tied and changed and recipe.setting("use_vllm"):
        raise recipe.error(
            "lora_target_modules" if isinstance(embeddings, BaseTunerLayer) else "lora_modules_to_save",
            "the model ties its input and output embeddings, and vLLM, which has one matrix for both, would generate "
            "with another model than the one that is trained. Leave the embeddings out, or write `vllm: null`.",
        )
