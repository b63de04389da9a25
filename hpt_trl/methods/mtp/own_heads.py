"""Heads that the model has already, in its folder or on it, next to those that the settings ask for."""

from hpt_trl.errors import UserError
from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.models.future_heads.storage import has_heads, read_config


def check_own_heads(config: WeightedMTPConfig, folder: str) -> None:
    """Refuse the heads beside a model where they are others than the settings ask for; no weights are loaded.

    Args:
        folder: of the model; of a Hub id see `folder_with_heads`.

    Raises:
        UserError: what differs, or a damaged config; the message starts with the key.
    """
    if config.n_future_tokens > 1 and not config.begins_anew and has_heads(folder):
        try:
            found = read_config(folder)
        except UserError as error:
            raise UserError(f"model_name_or_path: {error}") from error
        check_same_heads(config, found["n_future_tokens"], found["kind"])


def check_same_heads(config: WeightedMTPConfig, n_future_tokens: int, kind: str) -> None:
    """Refuse heads of a model that are others than the settings ask for.

    Args:
        n_future_tokens, kind: of the model's heads.

    Raises:
        UserError: what differs; the message starts with the key.
    """
    for key, wanted, found in (
        ("n_future_tokens", config.n_future_tokens, n_future_tokens),
        ("head_init", config.head_init, kind),
    ):
        if wanted != found:
            raise UserError(
                f"{key}: {wanted}, but the model has heads of its own, with {found}. Write {key}: {found} to train "
                "them on, or `shipped_heads: drop` in a recipe, which leaves the folder `future_heads` out and begins "
                "with new ones."
            )
