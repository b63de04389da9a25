"""Which turns of a conversation are trained, by the recipe's keys."""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from hpt_trl.data.rendering import WHOLE, Encoded, Encoder
from hpt_trl.recipes.recipe import Recipe


@dataclass
class TurnArguments:
    """Which turns of a conversation are trained."""

    train_on_turns: str = field(
        default="all",
        metadata={
            "help": "Turns of the assistant that have a loss: `all` (of `messages` every one, of prompt and completion "
            "those of the completion), or `last`.",
            "choices": ["all", "last"],
        },
    )


def last_alone(arguments: Any) -> bool:
    """Whether a recipe trains on the last turn only; stages without the key train on all."""
    return isinstance(arguments, TurnArguments) and arguments.train_on_turns == "last"


def trains_everything(config: SFTConfig) -> bool:
    """Whether every token has a loss, those of the prompt included."""
    return config.completion_only_loss is False and not config.assistant_only_loss


def is_whole(row: dict[str, Any], config: SFTConfig) -> bool:
    """Whether the turns of the prompt are trained as well, as those of a row that came as one conversation are."""
    return bool(row.get(WHOLE)) or (config.completion_only_loss is False and config.assistant_only_loss)


def encode(row: dict[str, Any], encoder: Encoder, config: SFTConfig, arguments: Any) -> Encoded:
    """A row, columns prompt and completion, as it is trained on.

    Args:
        config: the trainer's.
        arguments: the recipe's.

    Raises:
        UserError: the answer would be trained otherwise than it is written.
    """
    row = row | {WHOLE: is_whole(row, config)}
    encoded = encoder.answered(row, "completion", last_turn_only=last_alone(arguments))
    if not trains_everything(config):
        return encoded
    return Encoded(encoded.ids, [1] * len(encoded.ids), encoded.turns, encoded.turns)


def check_turns(recipe: Recipe) -> None:
    """Refuse keys that contradict each other on what is trained.

    Raises:
        UserError: the last turn alone is asked for, and more.
    """
    if not last_alone(recipe.arguments):
        return
    for key, value, what in (
        ("assistant_only_loss", True, "every turn of the assistant"),
        ("completion_only_loss", False, "the prompt as well"),
    ):
        if getattr(recipe.config, key) is value:
            raise recipe.error(
                "train_on_turns", f"last, but `{key}: {str(value).lower()}` trains on {what}; drop one of the two."
            )
