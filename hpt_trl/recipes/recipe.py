"""A recipe whose keys and values are checked, and what a training stage is: each is told by the other."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpt_trl.data.entries import named_layout
from hpt_trl.data.layout_names import layouts_of
from hpt_trl.errors import UserError
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.file import Sources, shown

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        Trainer,
        TrainerCallback,
    )
    from trl import ModelConfig

    from hpt_trl.data.layout_names import Layout
    from hpt_trl.data.layouts import Splits
    from hpt_trl.data.rendering import Encoder
    from hpt_trl.data.row_lengths import Asked, Length
    from hpt_trl.environments.acting import Acting
    from hpt_trl.recipes.arguments import RecipeArguments
    from hpt_trl.settings.keys import Key
    from hpt_trl.settings.ranges import Rule

# Completions of the evaluation in stages whose config has no `max_completion_length`, in tokens.
EVAL_NEW_TOKENS = 256


@dataclass
class Recipe:
    """A recipe whose keys and values are checked.

    Attributes:
        path: the YAML file.
        stage: the training stage.
        arguments: data, rewards and evaluation.
        config: the stage's trainer config.
        model_args: TRL's model settings.
        lines: key -> line in the file, counted from 1.
        overrides: keys set on the command line.
        raw: key -> value as the file and the command line give it, types settled; written as YAML it is the resolved
            recipe.
        world_size: processes of the run.
        profile: what the processes share out: of the accelerate config that started them, or is asked about.
        sources: where each value comes from.
        keys: every key that the stage knows.
    """

    path: Path
    stage: "Stage"
    arguments: "RecipeArguments"
    config: Any
    model_args: "ModelConfig"
    lines: dict[str, int]
    overrides: set[str]
    raw: dict[str, Any]
    world_size: int
    profile: Profile
    sources: Sources = field(repr=False)
    keys: "dict[str, Key]" = field(repr=False)

    def error(self, key: str, message: str) -> UserError:
        """Returns (does not raise) the error about a key, with the place that set it in front of the message."""
        return self.sources.error(key, message)

    @property
    def layout(self) -> "Layout":
        """The layout of its rows, as far as it shows before they are read."""
        named = named_layout(self.arguments.dataset_layout, self.arguments.datasets)
        return layouts_of(named, self.stage.layouts)[0]

    @property
    def environment(self) -> str | None:
        """The environment that its model acts in; None without one."""
        return self.stage.environment(self.arguments)

    def setting(self, key: str, default: Any = None) -> Any:
        """Returns the trainer config's value of a key, or the default where the stage has no such key."""
        return getattr(self.config, key) if key in self.keys else default

    def place(self, error: Exception) -> UserError:
        """Returns another's complaint about the settings with the place of the key that it names, if it names one."""
        return place_of(error, self.keys, self.sources)


@dataclass
class StageInputs:
    """What a stage builds its trainer from; everything is loaded and checked.

    Attributes:
        model: a local folder or Hub id for the trainer to load; None where the stage makes its own model.
        tokenizer: tokenizer, or processor of a vision-language model.
        encoder: how the trainer encodes rows.
        config: the stage's trainer config.
        model_args: TRL's model settings (dtype, LoRA, quantization).
        arguments: the recipe's other keys.
        splits: training and held-out rows, columns mapped.
        rewards: guarded reward functions in the recipe's order, then its reward models.
        callbacks: callbacks of the runner.
        model_config: config of the model; where the stage makes its own model, what `make_config` returned.
        acting: how rollouts are begun in the recipe's environment; None without one.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase | ProcessorMixin"
    encoder: "Encoder"
    config: Any
    model_args: "ModelConfig"
    arguments: "RecipeArguments"
    splits: "Splits"
    rewards: list[Callable[..., Any]] = field(default_factory=list)
    callbacks: "list[TrainerCallback]" = field(default_factory=list)
    model_config: "PretrainedConfig | None" = None
    acting: "Acting | None" = None

    @property
    def eval_rows(self) -> "Dataset | None":
        """The held-out rows, where the recipe asks the trainer to evaluate during the training (`eval_strategy`)."""
        return None if self.config.eval_strategy == "no" else self.splits.test

    def trainer_arguments(self) -> dict[str, Any]:
        """What every trainer takes: model, config, tokenizer, callbacks, adapter and quantization."""
        from trl import get_peft_config, get_quantization_config

        return {
            "model": self.model,
            "args": self.config,
            "processing_class": self.tokenizer,
            "callbacks": self.callbacks,
            "peft_config": get_peft_config(self.model_args),
            "quantization_config": get_quantization_config(self.model_args),
        }

    def rollout_arguments(self) -> dict[str, Any]:
        """The same for trainers on rollouts, with rewards and rows."""
        rows = {"train_dataset": self.splits.train, "eval_dataset": self.eval_rows}
        environment = {} if self.acting is None else {"environment": self.acting.environments}
        return self.trainer_arguments() | {"reward_funcs": self.rewards} | rows | environment


def _recipe_arguments() -> "type[RecipeArguments]":
    from hpt_trl.recipes.arguments import RecipeArguments

    return RecipeArguments


@dataclass(frozen=True)
class Stage:
    """One training method, as the runner sees it. A stage states what differs from the defaults.

    Attributes:
        name: the recipe's value of `stage`.
        config_class: trainer config, a subclass of `transformers.TrainingArguments`; its fields are recipe keys.
        build: makes the trainer; None for a stage that trains nothing.
        work: does what a stage is for that has neither model nor rows, in the first process, and returns what was
            measured; None for all others.
        left_out: names of keys that the stage does not know, though its classes declare them.
        reference: of the trainer: the model that its policy is compared with, where that is one of its own.
        finish: of the trainer: leaves what the stage has beside the model, once the model is saved and evaluated;
            called by every process. What it returns in the first one stands in results.json under the stage's name.
        argument_class: the other recipe keys, usually `RecipeArguments`.
        check: checks of the stage's own before any weight is loaded; raises `UserError` by `recipe.error`.
        check_tokenizer: the same for what depends on the tokenizer.
        check_rows: of the recipe, its rows, how the trainer encodes them, and how many tokens the model takes: the
            same for every row.
        try_row: of the recipe, a row, how the trainer encodes it and the demonstrations' column: its lengths. It
            raises `UserError` where the row would be trained otherwise than it is written. None where the encoder is
            asked for the prompt and each answer.
        environment: of the recipe's other keys: the environment that the model acts in; None without one.
        most_rows: of the same: how many rows are read at most; None for all.
        rules: allowed ranges of the stage's own keys; they stand above those of `hpt_trl.recipes.ranges`.
        layouts: of the rows that it reads; rows that fit several are of the first.
        sample: of a recipe and its rows: the rows that it trains on, where these are drawn or made from what it reads.
        fit: of a recipe, its rows and how the trainer encodes them: the rows without those that it leaves out.
        needs_demonstration: of a config: whether every row of layout `prompts` must have a demonstration.
        uses_demonstrations: of a config: whether rows of layout `prompts` may be trained on their demonstration.
        demonstration_column: of a config: the column that holds it.
        rewards: whether a recipe has to name rewards (functions or reward models), may name some, for the evaluation
            by generation alone, or none.
        scores: whether the model gives numbers instead of text, and is trained on pairs of answers.
        measures_held_out: whether `trainer.evaluate()` measures the held-out rows before and after the training.
        completion_length: of a config: length limit of the evaluation's completions, in tokens.
        counts_solved: of a recipe: whether completions are counted as solved or not.
        success_threshold: of a config: the reward from which the evaluation counts a completion as solved.
        make_tokenizer: of a recipe and its rows: the tokenizer, where it is not the one of `model_name_or_path`.
        make_config: of a recipe and the tokenizer: the config of a new model; the recipe then names no model.
    """

    name: str
    config_class: type
    build: "Callable[[StageInputs], Trainer] | None" = None
    work: "Callable[[Recipe], dict[str, Any]] | None" = None
    left_out: frozenset[str] = frozenset()
    argument_class: "type[RecipeArguments]" = field(default_factory=_recipe_arguments)
    reference: "Callable[[Any], PreTrainedModel | None]" = lambda trainer: None
    finish: "Callable[[Trainer], dict[str, Any] | None]" = lambda trainer: None
    check: "Callable[[Recipe], None]" = lambda recipe: None
    check_tokenizer: "Callable[[Recipe, PreTrainedTokenizerBase], None]" = lambda recipe, tokenizer: None
    check_rows: "Callable[[Recipe, Splits, Encoder, int | None], None]" = lambda *arguments: None
    try_row: "Callable[[Recipe, dict[str, Any], Encoder, str], dict[Asked, Length]] | None" = None
    environment: Callable[[Any], str | None] = lambda arguments: None
    most_rows: Callable[[Any], int | None] = lambda arguments: None
    rules: "tuple[Rule, ...]" = ()
    layouts: "tuple[Layout, ...]" = ("prompts",)
    sample: "Callable[[Recipe, Splits], Splits] | None" = None
    fit: "Callable[[Recipe, Splits, Encoder], Splits]" = lambda recipe, splits, encoder: splits
    needs_demonstration: Callable[[Any], bool] = lambda config: False
    uses_demonstrations: Callable[[Any], bool] = lambda config: False
    demonstration_column: Callable[[Any], str] = lambda config: "completion"
    rewards: Literal["required", "optional", "none"] = "none"
    scores: bool = False
    measures_held_out: bool = False
    completion_length: Callable[[Any], int] = lambda config: EVAL_NEW_TOKENS
    counts_solved: "Callable[[Recipe], bool]" = lambda recipe: True
    success_threshold: Callable[[Any], float] = lambda config: 1.0
    make_tokenizer: "Callable[[Recipe, Splits], PreTrainedTokenizerBase] | None" = None
    make_config: "Callable[[Recipe, PreTrainedTokenizerBase], PretrainedConfig] | None" = None

    @property
    def trains(self) -> bool:
        """Whether the stage trains a model, or only measures one."""
        return self.build is not None


def place_of(error: Exception, known: "dict[str, Key]", sources: Sources) -> UserError:
    """Returns a config's own complaint with the place of the key that it is about, where it names one."""
    text = str(error).strip()
    # Classes are called after the keys whose values they are: `AcceleratorConfig`, DeepSpeed.
    classes = {key.replace("_", ""): key for key in known}
    words = re.findall(r"[A-Za-z_0-9]+", text)
    named = [word if word in known else classes.get(word.lower(), "") for word in words]
    given = [word for word in named if word in sources.file.lines or word in sources.overrides]
    # A single ordinary word (`seed`, `debug`) may stand in any sentence: without a source it proves nothing.
    quoted = [word for word in re.findall(r"`([A-Za-z_0-9]+)`", text) if word in known]
    key = next(iter([word for word in quoted if word in given] + given + quoted), None)
    if key is None:
        return UserError(f"{shown(sources.file.path)}: {text}")
    return sources.error(key, text.removeprefix(f"`{key}` is "))
