"""What a training stage is, and the table of the stages that recipes can name.

A new method adds one folder with a `stage.py` and one line to `STAGE_MODULES`; nothing else here changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.values import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, Trainer, TrainerCallback
    from trl import ModelConfig

    from hpt_trl.arguments import RecipeArguments
    from hpt_trl.data import Splits
    from hpt_trl.recipes import Recipe

# Stage name in a recipe -> module that holds it as STAGE. Imported on use: a stage brings torch and its trainer.
STAGE_MODULES = {"hpt": "hpt_trl.hybrid.stage"}


@dataclass
class StageInputs:
    """What a stage builds its trainer from; everything is loaded and checked.

    Attributes:
        model: the model itself, or a local folder or Hub id for the trainer to load.
        tokenizer: tokenizer, or processor of a vision-language model.
        config: the stage's trainer config.
        model_args: TRL's model settings (dtype, LoRA, quantization).
        arguments: the recipe's other keys.
        splits: training and held-out rows, columns mapped.
        rewards: guarded reward functions, in the recipe's order.
        callbacks: callbacks of the runner.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase | ProcessorMixin"
    config: Any
    model_args: "ModelConfig"
    arguments: "RecipeArguments"
    splits: "Splits"
    rewards: list[Callable[..., Any]] = field(default_factory=list)
    callbacks: "list[TrainerCallback]" = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One training method, as the runner sees it.

    Attributes:
        name: the recipe's value of `stage`.
        config_class: trainer config, a subclass of `transformers.TrainingArguments`; its fields are recipe keys.
        argument_class: the other recipe keys, usually `RecipeArguments`.
        check: checks of the stage's own before any weight is loaded; raises `UserError` by `recipe.error`.
        build: makes the trainer.
        needs_demonstration: of a config: whether every row must have a demonstration.
        demonstration_column: of a config: the column that holds it.
        uses_rewards: whether the recipe has to name rewards.
    """

    name: str
    config_class: type
    argument_class: "type[RecipeArguments]"
    check: "Callable[[Recipe], None]"
    build: "Callable[[StageInputs], Trainer]"
    needs_demonstration: Callable[[Any], bool]
    demonstration_column: Callable[[Any], str]
    uses_rewards: bool


def load_stage(name: str) -> Stage:
    """Imports a stage.

    Raises:
        UserError: there is no stage of that name; the message gives the nearest and all names.
    """
    if name not in STAGE_MODULES:
        meant = did_you_mean(name, STAGE_MODULES)
        raise UserError(f"there is no stage `{name}`.{meant} Stages: {', '.join(sorted(STAGE_MODULES))}.")
    return import_module(STAGE_MODULES[name]).STAGE
