"""Which keys a recipe of a stage may hold, and what to say about a key that it may not."""

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from typing import Any

# Keys of older Transformers and TRL releases that recipes found in the wild still carry -> what to write instead.
# All 29 recipes of alignment-handbook and open-r1 hold at least one of them.
RENAMED = {
    "torch_dtype": "it is now `dtype`",
    "warmup_ratio": "write `warmup_steps`; a value below 1 is a share of all steps",
    "overwrite_output_dir": "it was removed; write `overwrite: true`, or name another `output_dir`",
    "max_prompt_length": "it was removed: prompts are not cut; drop the line",
    "max_seq_length": "it is now `max_length` (SFT) or `max_completion_length` (RL)",
    "max_new_tokens": "write `max_completion_length`",
    "evaluation_strategy": "it is now `eval_strategy`",
    "no_cuda": "write `use_cpu`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "logging_dir": "it was removed; drop the line",
    "save_safetensors": "it was removed: models are always saved as safetensors; drop the line",
    "dataset_mixer": "write `dataset_name`",
    "dataset_splits": "write `dataset_train_split` and `dataset_test_split`",
    "per_gpu_train_batch_size": "it is now `per_device_train_batch_size`",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "tokenizer_name_or_path": "the tokenizer is the model's own; drop the line",
    "kl_coef": "write `beta`",
    "group_size": "write `num_generations`",
    "push_to_hub_model_id": "it is now `hub_model_id`",
    "hub_model_revision": "it is now `hub_revision`",
}


@dataclass(frozen=True)
class Key:
    """One recipe key: its declared type, its default and, where the field has some, the only texts it takes."""

    name: str
    hint: Any
    default: Any
    choices: tuple[str, ...]


def keys_of(*config_classes: type) -> dict[str, Key]:
    """Returns every recipe key that the dataclasses declare, by name."""
    keys: dict[str, Key] = {}
    for config_class in config_classes:
        hints = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            if field.init:
                default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                choices = tuple(field.metadata.get("choices") or ())
                keys[field.name] = Key(field.name, hints[field.name], default, choices)
    return keys


def unknown_key(name: str, known: dict[str, Key]) -> str:
    """Returns the message for a key that no field declares: its new name, or the nearest known one."""
    if name in RENAMED:
        return f"there is no such key: {RENAMED[name]}."
    head, dot, tail = name.partition(".")
    if dot and head in known:
        return f"keys are flat; where `{head}` takes a mapping, write `{head}: {{{tail}: ...}}`."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"there is no such key. Did you mean `{near[0]}`?"
    return "there is no such key, nor one of a similar name. Keys are the fields of the stage's config and ModelConfig."
