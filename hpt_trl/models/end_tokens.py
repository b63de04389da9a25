"""The tokens at which a model stops, known before its weights are loaded."""

from typing import Any

from hpt_trl.models.built_in import BUILT_IN, is_unpacked
from hpt_trl.models.loading import load_config
from hpt_trl.models.whole_models import resolve_model


def end_token_ids(name: str, own: int, *, revision: str | None = None, **settings: Any) -> list[int]:
    """Return the ids that end a rollout, as TRL's trainers find them: the tokenizer's, and those that the model names.

    Args:
        own: the tokenizer's end-of-sequence token, which comes first where the model does not name it.
        settings: `trust_remote_code`.

    Raises:
        UserError: there is no such model.
    """
    from transformers import GenerationConfig

    if name in BUILT_IN and not is_unpacked(name):
        return [own]
    try:
        named = GenerationConfig.from_pretrained(resolve_model(name), revision=revision or "main").eos_token_id
    except OSError:
        # Without the file, a model's generation config is made of its config.
        named = GenerationConfig.from_model_config(load_config(name, revision=revision, **settings)).eos_token_id
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    return ids if own in ids else [own, *ids]
