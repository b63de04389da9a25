"""Where a run's model comes from: its name, its tokenizer and its config, found without its weights."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from hpt_trl.data.layouts import Splits
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.end_tokens import end_token_ids
from hpt_trl.models.folders import is_value_model
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.loading import ModelParts, check_architecture, load_config, load_tokenizer, model_exists, parts_of
from hpt_trl.models.whole_files import refuse_torn_weights
from hpt_trl.recipes.adapter_targets import check_adapter_targets
from hpt_trl.recipes.model_settings import check_model_settings
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.runs.model_files import shipped_by
from hpt_trl.runs.tokenizer import settle_tokenizer


@dataclass(frozen=True)
class Trained:
    """The model that a training is about to train, for the evaluations that it names.

    Attributes:
        end_ids: Token ids at which it stops; None for all special ones.
    """

    tokenizer: Any
    model_config: PretrainedConfig
    end_ids: list[int] | None


class ModelSource:
    """The model that a recipe names, that its stage makes anew, or that a training is about to train.

    Args:
        trained: The latter.

    Raises:
        UserError: it is not there.
    """

    def __init__(self, recipe: Recipe, trained: Trained | None):
        self._recipe, self._trained = recipe, trained
        self._settings: dict[str, Any] = {
            "revision": recipe.model_args.model_revision,
            "trust_remote_code": recipe.setting("trust_remote_code", False),
        }
        named = recipe.stage.make_config is None and trained is None
        # As the recipe names it.
        self.name = str(recipe.model_args.model_name_or_path) if named else None
        # What an adapter lies over has the config and, where the adapter brings none, the tokenizer.
        self._parts = None if self.name is None else _parts(recipe, self.name)
        if self._parts is not None:
            model_exists(self._parts.base, **self._of_base)

    @property
    def _of_base(self) -> dict[str, Any]:
        """With what the base's files are loaded."""
        return self._settings if self._parts is None else self._settings | {"revision": self._parts.revision}

    def tokenizer(self, splits: Splits) -> Any:
        """Returns its tokenizer, or processor.

        Args:
            splits: The rows, of which a stage may make one.
        """
        recipe = self._recipe
        if self._trained is not None:
            return self._trained.tokenizer
        if recipe.stage.make_tokenizer is not None:
            return recipe.stage.make_tokenizer(recipe, splits)
        tokenizer = load_tokenizer(str(self.name), **self._settings)
        settle_tokenizer(recipe, tokenizer)
        return tokenizer

    def config(self, tokenizer: Any) -> PretrainedConfig:
        """Returns its config, which fits the recipe's keys.

        Raises:
            UserError: it does not.
        """
        recipe = self._recipe
        if self._trained is not None:
            return self._trained.model_config
        if recipe.stage.make_config is not None:
            return recipe.stage.make_config(recipe, tokenizer)
        assert self._parts is not None
        model_config = load_config(self._parts.base, **self._of_base)
        _refuse_reward_model(recipe, model_config, self._parts)
        shipped_by(recipe, model_config)
        check_model_settings(recipe, model_config)
        check_adapter_targets(recipe, model_config)
        return model_config

    def end_ids(self, tokenizer: Any) -> list[int] | None:
        """Returns the token ids at which it stops; None for all special ones."""
        if self._trained is not None:
            return self._trained.end_ids
        end = text_tokenizer(tokenizer).eos_token_id
        return None if self._parts is None else end_token_ids(self._parts.base, end, **self._of_base)

    def refuse_torn(self) -> None:
        """Refuses a model whose weights are not there as they were written.

        Raises:
            UserError: which, and what to do.
        """
        if self._parts is None:
            return
        for name in (self._parts.base, self._parts.adapter):
            if name is not None and name not in BUILT_IN:
                with self._recipe.sources.placing("model_name_or_path"):
                    refuse_torn_weights(name)


def _parts(recipe: Recipe, model: str) -> ModelParts:
    """What the model of a recipe consists of; of one that is trained, it has to be whole."""
    revision = recipe.model_args.model_revision
    return ModelParts(model, revision) if recipe.stage.trains else parts_of(model, revision=revision)


def _refuse_reward_model(recipe: Recipe, model_config: PretrainedConfig, parts: ModelParts) -> None:
    """Loaded as a language model, a reward model or a value model would get a head of random weights."""
    kinds = model_config.architectures or []
    name = parts.adapter or parts.base
    if not recipe.stage.scores:
        check_architecture(parts.base, model_config)
    # A trunk without a head is the only kind of model that a value model's config may name.
    if not any("For" in kind for kind in kinds):
        name = value_model_folder(name, revision=recipe.model_args.model_revision)
    if is_value_model(name):
        raise recipe.error(
            "model_name_or_path",
            f"{recipe.model_args.model_name_or_path} is a value model, which writes no text; name it as "
            "`value_model_name_or_path`, where a stage has that key.",
        )
    if not recipe.stage.scores and any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise recipe.error(
            "model_name_or_path",
            f"{recipe.model_args.model_name_or_path} is a reward model ({kinds[0]}), which writes no text; name it as "
            "`reward_model_name_or_path`.",
        )
