"""An adapter merged into its base model."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError
from hpt_trl.models.folders import check_model_folder, is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_adapter(folder: str | Path, destination: str | Path) -> None:
    """Merge a LoRA adapter into its base model and write the whole model with its tokenizer.

    Args:
        folder: holds the adapter of a language model or of a reward model, as a run with `use_peft` writes it.
        destination: new or empty folder; it is complete or not there.

    Raises:
        UserError: no adapter, a destination that is not empty, or a base model that cannot be loaded.
    """
    from transformers import AutoTokenizer

    source, target = Path(folder), Path(destination)
    if not is_adapter(str(source)):
        raise UserError(f"{source} holds no adapter (adapter_config.json); name the folder of a run with `use_peft`.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty, and nothing is written over; name a folder that is new or empty.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    merged = load_merged(str(source), pad_token_id=tokenizer.pad_token_id, dtype="auto", trust_remote_code=False)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # PPO's critic reads the trunk's hidden states, which merging leaves as they are.
    if (source / "value_head").is_dir():
        shutil.copytree(source / "value_head", partial / "value_head")
    os.replace(partial, target)


def load_merged(folder: str, *, pad_token_id: int, dtype: str, trust_remote_code: bool) -> "PreTrainedModel":
    """The base model of an adapter with the adapter in its weights."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    adapter = PeftConfig.from_pretrained(folder)
    base = str(adapter.base_model_name_or_path)
    try:
        check_model_folder(base)
        settings = {"dtype": dtype, "trust_remote_code": trust_remote_code, "revision": adapter.revision}
        if adapter.task_type == "SEQ_CLS":
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **settings)
            model.config.get_text_config().pad_token_id = pad_token_id
        else:
            model = AutoModelForCausalLM.from_pretrained(base, **settings)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the base model of the adapter, {base}, cannot be loaded: {str(error).splitlines()[0]} Put it "
            "back, or write its new place into adapter_config.json (`base_model_name_or_path`)."
        ) from error
    # One rounding for all of it: the sum of weight and adapter is formed in float32.
    stored = model.dtype
    # A checkpoint that is itself quantized: the adapter goes into the weights that it stands for.
    if getattr(model.config, "quantization_config", None) is not None:
        model = model.dequantize(torch.float32)
        # Saving would write the weights in the form of that checkpoint.
        model._weight_conversions = None
    merged = PeftModel.from_pretrained(model.float(), folder).merge_and_unload()
    return merged.to(stored)
