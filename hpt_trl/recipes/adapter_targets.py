"""Which layers a recipe's LoRA adapts, seen on the architecture itself: what the trainers cannot train is refused."""

import dataclasses
import re
from typing import TYPE_CHECKING, Any, cast

from hpt_trl.models.parameters import build_on_meta
from hpt_trl.settings.values import did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from hpt_trl.recipes.recipe import Recipe


_KEYS = ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save")


def _names(arguments: Any, key: str) -> list[str] | str | None:
    """What a key names; None without names, a text where it is a pattern."""
    value = getattr(arguments, key)
    return None if value == "all-linear" else value


def _check_names(recipe: "Recipe", model: Any, key: str) -> None:
    """PEFT adapts what it finds of a list, and says nothing of the rest."""
    names = _names(recipe.model_args, key)
    if names is None or isinstance(names, str):
        return
    named = model.named_parameters() if key == "lora_target_parameters" else model.named_modules()
    paths = [path for path, _ in named if path]
    if not names:
        raise recipe.error(key, "the list is empty; name a layer, or leave the key out for its default.")
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            ends = sorted({path.rpartition(".")[2] for path in paths} - {str(number) for number in range(1000)})
            raise recipe.error(
                key,
                f"{name[:80]} is not found in the base model, whose "
                f"{'parameters' if key == 'lora_target_parameters' else 'layers'} are "
                f"{', '.join(ends)}.{did_you_mean(name, ends)}",
            )


def check_adapter_targets(recipe: "Recipe", model_config: "PretrainedConfig") -> None:
    """Check the layers that `lora_target_modules`, `lora_target_parameters` and `lora_modules_to_save` name.

    Raises:
        UserError: a layer that the model does not have, LoRA on the head, or embeddings that vLLM could not be given.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper
    from trl import get_peft_config

    arguments = recipe.model_args
    if not arguments.use_peft or not any(_names(arguments, key) is not None for key in _KEYS):
        return
    scores = recipe.stage.scores
    if scores:
        arguments = dataclasses.replace(arguments, lora_task_type="SEQ_CLS")
    model = build_on_meta(model_config, scores=scores)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    for key in _KEYS:
        _check_names(recipe, model, key)
    try:
        adapted = get_peft_model(model, cast("PeftConfig", get_peft_config(arguments)))
    except (ValueError, re.error) as error:
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
