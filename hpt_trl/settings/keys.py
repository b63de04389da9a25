"""Which keys a recipe of a stage may hold, and what to say about a key that it may not."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from hpt_trl.settings.renamed import renamed, stands_for
from hpt_trl.settings.values import members, nearest

# Fields of `dict | str` whose text is the path of a file; everywhere else text must be a mapping.
MAPPING_OR_PATH = ("deepspeed", "fsdp_config", "accelerator_config")


@dataclass(frozen=True)
class Key:
    """One recipe key: its declared type, its default, the only texts it takes where there are some, and its help."""

    name: str
    hint: Any
    default: Any
    choices: tuple[str, ...]
    help: str = ""

    @property
    def takes_text(self) -> bool:
        """Whether a text is a value of its own, and not only the way in which a mapping is written."""
        bare = {typing.get_origin(kind) or kind for kind in members(self.hint)}
        return self.name in MAPPING_OR_PATH or isinstance(self.default, str) or dict not in bare


def keys_of(*config_classes: type) -> dict[str, Key]:
    """Returns every recipe key that the dataclasses declare, by name."""
    keys: dict[str, Key] = {}
    for config_class in config_classes:
        hints = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            if field.init:
                default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                choices = tuple(field.metadata.get("choices") or ())
                said = " ".join(str(field.metadata.get("help") or "").split())
                keys[field.name] = Key(field.name, hints[field.name], default, choices, said)
    return keys


def unknown_key(name: str, known: dict[str, Key], value: Any = None) -> str:
    """Returns the message for a key that no field declares: its new name, or the nearest known one.

    Args:
        name: the key. known: those that there are.
        value: what stands there, where a new name depends on it.
    """
    if instead := renamed(name, value, known):
        return f"there is no such key: {instead}."
    head, dot, tail = name.partition(".")
    if dot and head in known:
        return f"keys are flat; where `{head}` takes a mapping, write `{head}: {{{tail[:200]}: ...}}`."
    if near := nearest(name, known):
        return f"there is no such key. Did you mean `{near}`?"
    if isinstance(value, dict):
        return "there is no such key. A recipe is flat: write the keys that stand inside of it at the start of a line."
    return "there is no such key, nor one of a similar name. Keys are the fields of the stage's config and ModelConfig."


def meant_by(name: str, known: dict[str, Key]) -> str | None:
    """Returns the known key that an unknown one is meant for, by its new name or the nearest; None for none."""
    return stands_for(name) or (None if renamed(name, None, known) else nearest(name, known))
