"""Another adapter as the start of a critic, over the base model that the policy's adapter stands on."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification

from hpt_trl.models.built_in import BUILT_IN, is_unpacked, unpacked
from hpt_trl.models.dropout import leave_dropout_out
from hpt_trl.models.folders import is_adapter, is_value_model
from hpt_trl.models.readable import adapter_config
from hpt_trl.models.twins import twin
from hpt_trl.models.value_model import HeadSettings, LinearValueHead, ValueModel, new_head, read_head_settings
from hpt_trl.models.whole_files import refuse_damaged_model


def is_over_base(base: str | None, folder: str) -> bool:
    """Whether a folder holds an adapter over a base model of that name."""
    if not base or not is_adapter(folder):
        return False
    return _place(base) == _place(str(adapter_config(folder).base_model_name_or_path))


def value_model_of_adapter(policy: PeftModel, folder: str) -> ValueModel:
    """The base of a policy under another adapter, which is trained on; its weights are shared.

    Args:
        policy: with an adapter of its own.
        folder: of a reward model's adapter, whose score becomes the head, or of a value model's.
    """
    refuse_damaged_model(folder)
    tuner: Any = twin(policy.base_model)
    bare = tuner.unload()
    model = _of_value_model(bare, folder) if is_value_model(folder) else _of_reward_model(bare, folder)
    leave_dropout_out(model)
    model.head.to(policy.device)
    return model


def _of_value_model(bare: Any, folder: str) -> ValueModel:
    trunk: Any = PeftModel.from_pretrained(bare.base_model, folder, is_trainable=True)
    settings = read_head_settings(folder)
    model = ValueModel(trunk, new_head(settings), settings)
    model.load_head(folder)
    return model


def _of_reward_model(bare: Any, folder: str) -> ValueModel:
    config = copy.deepcopy(bare.config)
    config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    # All of it but its head, which comes with the adapter, is the policy's.
    setattr(classifier, classifier.base_model_prefix, bare.base_model)
    classifier.score = nn.Linear(classifier.score.in_features, 1, bias=False, device=bare.device)
    adapted: Any = PeftModel.from_pretrained(classifier, folder, is_trainable=True)
    score = adapted.get_base_model().score
    if isinstance(score, ModulesToSaveWrapper):
        score = score.modules_to_save["default"]
    settings = HeadSettings(score.in_features)
    head = LinearValueHead(settings.hidden_size)
    with torch.no_grad():
        head.linear.weight.copy_(score.weight)
    return ValueModel(adapted.get_base_model().base_model, head, settings)


def _place(name: str) -> str:
    """A name of a base model by which two that mean the same are equal."""
    if name in BUILT_IN:
        # Over one that was never unpacked there is no adapter.
        return str(unpacked(name).resolve()) if is_unpacked(name) else name
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.exists() else name
