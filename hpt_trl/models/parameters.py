"""Numbers of parameters, counted on the architecture itself, built without storage."""

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig, PreTrainedModel
    from trl import ModelConfig


class Parameters(NamedTuple):
    """Numbers of parameters.

    Attributes:
        total: of the base model, tied ones once.
        linear: of the base model's linear layers without the head, which quantization and autocast apply to.
        trainable: that the optimizer updates.
        adapter: that LoRA adds; a part of `trainable`.
        adapted_inputs: width of the inputs of all layers that LoRA adapts, together.
        norms_heads: queries and keys are normalised (Qwen3).
        copied: of `adapter`, those of whole modules that PEFT trains as copies (`lora_modules_to_save`).
        embeddings: of `trainable`, those of embeddings.
        trains_head: the output embeddings are trained.
    """

    total: int
    linear: int
    trainable: int
    adapter: int
    adapted_inputs: int = 0
    norms_heads: bool = False
    copied: int = 0
    embeddings: int = 0
    trains_head: bool = False


def build_on_meta(config: "PretrainedConfig", *, scores: bool = False) -> "PreTrainedModel":
    """Returns the model that a config describes, without storage for its parameters.

    Args:
        scores: as a sequence classifier with one output.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from hpt_trl.models.sharded_weights import whole_weights

    kind: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else None
    if scores:
        config, kind = copy.deepcopy(config), AutoModelForSequenceClassification
        config.num_labels = 1
    # In a process of ZeRO-3 it would be given storage, and spread.
    with whole_weights(), torch.device("meta"):
        return (kind or AutoModelForCausalLM).from_config(config)


def count_parameters(
    config: "PretrainedConfig", model_args: "ModelConfig | None" = None, *, scores: bool = False
) -> Parameters:
    """Counts parameters on the architecture itself; with `use_peft` by putting PEFT's own adapters into it.

    Args:
        scores: of a sequence classifier with one output.
    """
    import torch
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from trl import get_peft_config

    model = build_on_meta(config, scores=scores)
    head = model.score if scores else model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    if scores and model_args is not None:
        model_args = dataclasses.replace(model_args, lora_task_type="SEQ_CLS")
    peft_config = None if model_args is None else get_peft_config(model_args)
    norms_heads = any(name.endswith(".q_norm") for name, _ in model.named_modules())
    if peft_config is None:
        return Parameters(
            total,
            linear,
            trainable=total,
            adapter=0,
            norms_heads=norms_heads,
            embeddings=_trained_embeddings(model),
            trains_head=True,
        )
    adapted = get_peft_model(model, peft_config)
    copies = [module for module in adapted.modules() if isinstance(module, ModulesToSaveWrapper)]
    return Parameters(
        total,
        linear,
        trainable=sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad),
        adapter=sum(parameter.numel() for parameter in adapted.parameters()) - total,
        adapted_inputs=sum(
            int(getattr(module, "in_features", 0)) for module in adapted.modules() if isinstance(module, BaseTunerLayer)
        ),
        norms_heads=norms_heads,
        copied=sum(
            parameter.numel() for module in copies for parameter in module.parameters() if parameter.requires_grad
        ),
        embeddings=_trained_embeddings(adapted),
        trains_head=any(module.original_module is head for module in copies),
    )


def count_copied(
    config: "PretrainedConfig", adapter: "PeftConfig | None" = None, *, layers: int | None = None
) -> tuple[int, int]:
    """Counts what a copy of a model's trunk trains of its own, and what it shares: of an adapter the base.

    Args:
        adapter: of the copy; None trains every parameter.
        layers: of its last layers and the final norm alone; None for the whole trunk.
    """
    from peft import get_peft_model

    from hpt_trl.models.decoder_parts import decoder_parts

    model = build_on_meta(config)
    if adapter is not None:
        # A classifier's adapter, whose head is not in the trunk, is put into the trunk as any other.
        adapter = copy.copy(adapter)
        adapter.task_type, adapter.inference_mode = None, False
        get_peft_model(model, adapter)
    parts: list[Any] = [model.base_model]
    if layers is not None:
        found = decoder_parts(model)
        parts = [*list(found.layers)[-layers:], found.norm]
    weights = [weight for part in parts for weight in part.parameters()]
    own = sum(weight.numel() for weight in weights if weight.requires_grad)
    return own, sum(weight.numel() for weight in weights) - own


def _trained_embeddings(model: Any) -> int:
    """Parameters of embeddings that are trained, tied ones once."""
    import torch

    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    trained = {id(module.weight): module.weight for module in embeddings if module.weight.requires_grad}
    return sum(weight.numel() for weight in trained.values())
