"""A reward model's adapter as the start of a critic, over the base model that the policy's adapter stands on."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification

from hpt_trl.methods.ppo.critics.head import new_head
from hpt_trl.models.folders import is_adapter
from hpt_trl.models.readable import adapter_config
from hpt_trl.models.twins import leave_dropout_out, twin
from hpt_trl.models.value_model import HeadSettings, ValueModel
from hpt_trl.models.whole_files import refuse_damaged_model
from hpt_trl.models.whole_models import resolve_model


def is_over_base(base: str | None, folder: str) -> bool:
    """Whether a folder holds an adapter over a base model of that name."""
    if not base or not is_adapter(folder):
        return False
    return _place(base) == _place(str(adapter_config(folder).base_model_name_or_path))


def value_model_of_adapter(policy: PeftModel, folder: str) -> ValueModel:
    """The base of a policy under a reward model's adapter, which is trained on, its score as the head.

    Args:
        policy: with an adapter of its own; the weights of its base are shared.
        folder: of the reward model's adapter.
    """
    refuse_damaged_model(folder)
    tuner: Any = twin(policy.base_model)
    bare = tuner.unload()
    config = copy.deepcopy(bare.config)
    config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    # All of it but its head, which comes with the adapter, is the policy's.
    setattr(classifier, classifier.base_model_prefix, bare.base_model)
    classifier.score = nn.Linear(classifier.score.in_features, 1, bias=False, device=policy.device)
    adapted: Any = PeftModel.from_pretrained(classifier, folder, is_trainable=True)
    head, score = new_head(policy), adapted.get_base_model().score
    if isinstance(score, ModulesToSaveWrapper):
        score = score.modules_to_save["default"]
    with torch.no_grad():
        head.linear.weight.copy_(score.weight)
    trunk: Any = adapted.get_base_model().base_model
    leave_dropout_out(trunk)
    return ValueModel(trunk, head, HeadSettings(head.linear.in_features))


def _place(name: str) -> str:
    """A name of a base model by which two that mean the same are equal."""
    resolved = Path(resolve_model(name)).expanduser()
    return str(resolved.resolve()) if resolved.exists() else name
