"""Secrets in a recipe: refused where the trainer's own files would hold them, and where they have been left out."""

from collections.abc import Mapping
from typing import Any

from hpt_trl.errors import Collector
from hpt_trl.settings.file import Sources
from hpt_trl.settings.masking import MASK, holds_mask, masked_text

# What goes into `training_args.bin` and to trackers as it is written.
_SHOWN = ("vllm_server_base_url", "run_name", "project")


def note_secrets(values: Mapping[str, Any], sources: Sources, mistakes: Collector) -> None:
    """Notes the secrets that a recipe must not hold, and those that a stored recipe no longer does.

    Args:
        values: key -> value, without the variables of the block `env`.
    """
    for key, value in values.items():
        if holds_mask(value):
            said = f"{MASK} stands for a secret that was left out when the recipe was stored; write it anew."
            mistakes.note(sources.error(key, said))
        elif key in _SHOWN and isinstance(value, str) and masked_text(value) != value:
            said = "it holds a login or a token, which checkpoints and trackers would show; write it without."
            mistakes.note(sources.error(key, said))
