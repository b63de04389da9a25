"""The rewards tried on demonstrations and on empty completions, before any weight is loaded.

A reward that calls every demonstration wrong, or that cannot tell it from nothing, would train on noise for hours
without an error; a threshold that everything reaches, or nothing, would call everything solved, or nothing.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerState

from hpt_trl.data.layouts import Splits
from hpt_trl.data.messages import as_text
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.episode import Episode
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import encode_prompts
from hpt_trl.methods.hybrid.demonstrations import demonstration_ids
from hpt_trl.recipes.batches import planned_steps, steps_of_epoch
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.completions import score_completions, shape_completions, weighted_reward
from hpt_trl.rewards.success import check_threshold, is_solved, success_index

logger = logging.getLogger(__name__)

# Rows that the rewards are tried on.
PROBED_ROWS = 8


def success_of(recipe: Recipe, names: list[str]) -> int:
    """The place of the recipe's `success_reward` among its rewards.

    Raises:
        UserError: there is no such reward.
    """
    wanted = recipe.arguments.success_reward
    if wanted is not None and not names:
        raise recipe.error("success_reward", f"{wanted}, but the recipe names no rewards; name `reward_funcs`.")
    try:
        return success_index(names, wanted)
    except ValueError as error:
        raise recipe.error("success_reward", str(error).removeprefix("success_reward: ")) from error


def thresholds(recipe: Recipe) -> dict[str, float]:
    """The thresholds that are in use, by their keys: of the trainer and of the evaluation."""
    if not recipe.stage.counts_solved(recipe):
        return {}
    found = {key: recipe.setting(key) for key in ("success_threshold",) if key in recipe.keys}
    own = recipe.arguments.eval_success_threshold
    if recipe.arguments.eval_samples and (own is not None or not found):
        found["eval_success_threshold"] = recipe.stage.success_threshold(recipe.config) if own is None else own
    return found


def check_thresholds(recipe: Recipe, success: Callable[..., Any], name: str) -> None:
    """Checks the thresholds against the range that the success reward declares.

    Raises:
        UserError: every completion reaches one of them, or none can.
    """
    for key, threshold in thresholds(recipe).items():
        try:
            check_threshold(success, threshold, name=name, key=key)
        except UserError as error:
            raise recipe.error(key, str(error).removeprefix(f"{key}: ")) from error


class _Undecided(UserError):
    """Rewards that tell right from wrong at no row."""


@dataclass(frozen=True)
class _Attempt:
    """A completion as rewards get it, with the row that it answers."""

    row: dict[str, Any]
    completion: Any
    ids: list[int]

    @classmethod
    def of(cls, episode: Episode) -> "_Attempt":
        return cls({**episode.row, **episode.facts()}, episode.completion(), episode.flat.completion_ids)


@dataclass
class Probe:
    """The rewards of the first rows' demonstrations and of empty completions.

    Attributes:
        encoder: As the trainer encodes rows.
        rewards: Functions alone: reward models would have to be loaded.
        names: Of all rewards.
        weights: Of the functions in the evaluation.
        success: Place of the success reward among all rewards.
        acting: In an environment: what plays demonstrations, and turns that say nothing.
    """

    recipe: Recipe
    splits: Splits
    encoder: Encoder
    rewards: list[Callable[..., Any]]
    names: list[str]
    weights: list[float]
    success: int
    acting: Acting | None = None

    def check(self) -> None:
        """Tries the rewards as they are before the first step and, where they teach nothing then, after the last.

        Raises:
            UserError: a reward that fails, that is constant, or that cannot decide what is solved.
        """
        rows = [self.splits.train[index] for index in range(min(PROBED_ROWS, len(self.splits.train)))]
        stage, column = self.recipe.stage, self.splits.demonstration_column
        taught = stage.rewards == "required" and stage.needs_demonstration(self.recipe.config)
        shown_to = [row for row in rows if row.get(column)] if taught else []
        demonstrations = [self._demonstration(row, column) for row in shown_to]
        lost = self._lost(shown_to, [attempt.ids for attempt in demonstrations])
        nothing = [self._nothing(row) for row in rows]
        count = len(self.splits.train)
        steps, of_epoch = planned_steps(self.recipe, count), steps_of_epoch(self.recipe, count)

        def check_at(step: int) -> None:
            state = TrainerState(global_step=step, epoch=step / of_epoch, max_steps=steps)
            state.num_train_epochs = math.ceil(steps / of_epoch)
            empty = self._values(nothing, state)
            if shown_to:
                self._check_demonstrations(shown_to, self._values(demonstrations, state), empty, lost)
            if self.success < len(self.rewards):
                self._check_empty(rows, [values[self.success] for values in empty])

        try:
            check_at(0)
        except _Undecided as error:
            # A reward may grow along the run.
            try:
                check_at(steps)
            except UserError:
                raise error from None
            logger.warning(
                "reward_funcs: demonstrations are told from empty completions after the last step, but not before the "
                "first: the evaluations before and after the training are by different rewards."
            )

    def _check_demonstrations(
        self, rows: list[dict[str, Any]], values: list[list[Any]], empty: list[list[Any]], lost: str
    ) -> None:
        totals = [weighted_reward(row, self.weights) for row in [*values, *empty]]
        known = {total for total in totals if total is not None}
        if len(known) <= 1:
            raise self._undecided(
                "reward_funcs",
                f"{', '.join(self.names[: len(self.rewards)])} gives {f'{known.pop():g}' if known else 'no value'} to "
                f"each of the first {len(rows)} demonstrations and to an empty completion as well: nothing can be "
                f"learnt from a constant reward; {self._shown(rows[0], 'first ')}\n{lost}Name a reward that tells them "
                "apart, or look at the form of the answers and the `column_mapping`.",
            )
        if self.success >= len(self.rewards):
            return
        scores = [row[self.success] for row in values]
        for key, threshold in thresholds(self.recipe).items():
            if any(is_solved(score, threshold) for score in scores):
                continue
            best = max((score for score in scores if score is not None), default=None)
            row = rows[0 if best is None else scores.index(best)]
            raise self._undecided(
                "reward_funcs",
                f"{self.names[self.success]} gives {'no value' if best is None else f'at most {best:g}'} to the first "
                f"{len(scores)} demonstrations, below `{key}` {threshold:g}: a model that copies them solves nothing; "
                f"{self._shown(row)}\n{lost}Look at the form of the demonstrations' final answers and at the column "
                f"`answer`, write a `{key}` that they reach, or name another `success_reward`"
                f"{self._others()}.",
            )

    def _check_empty(self, rows: list[dict[str, Any]], scores: list[Any]) -> None:
        for key, threshold in thresholds(self.recipe).items():
            if not all(is_solved(score, threshold) for score in scores):
                continue
            message = (
                f"{threshold:g}, which every empty completion reaches: `{self.names[self.success]}`, the "
                f"`success_reward`, gives {scores[0]:g} to it at {self._shown(rows[0])}\nWrite a `{key}` above that, "
                f"or name the reward of right answers as `success_reward`{self._others()}."
            )
            # Where nobody asked for a threshold and nothing is trained by it, the run is worth more than the figure.
            if key in self.recipe.sources.file.lines or key in self.recipe.overrides or key == "success_threshold":
                raise self.recipe.error(key, message)
            logger.warning("%s (the default): %s", key, message)

    def _demonstration(self, row: dict[str, Any], column: str) -> "_Attempt":
        if self.acting is None:
            longest = self.recipe.setting("max_demonstration_length")
            return self._text(row, demonstration_ids(row, column, self.encoder, longest).ids)
        return _Attempt.of(self.acting.demonstration(row, column))

    def _nothing(self, row: dict[str, Any]) -> "_Attempt":
        if self.acting is None:
            return self._text(row, [self.encoder.tokenizer.eos_token_id])
        episode = self.acting.episode(row)
        episode.take([self.acting.encoder.encoder.end_ids[0]])
        return _Attempt.of(episode)

    def _text(self, row: dict[str, Any], ids: list[int]) -> "_Attempt":
        prompts = encode_prompts(self.encoder, [row], return_tensors=None)["input_ids"]
        shaped = shape_completions(self.encoder.processing_class, [row["prompt"]], prompts, [ids])
        return _Attempt(row, shaped[0], ids)

    def _values(self, attempts: "list[_Attempt]", state: TrainerState) -> list[list[Any]]:
        rows, ids = [attempt.row for attempt in attempts], [attempt.ids for attempt in attempts]
        try:
            return score_completions(rows, [attempt.completion for attempt in attempts], ids, self.rewards, state)
        except UserError as error:
            raise UserError(f"{self.splits.source}: {error}") from error

    def _lost(self, rows: list[dict[str, Any]], ids: list[list[int]]) -> str:
        """A sentence on the special tokens of the demonstrations that rewards do not see; said once, too."""
        tokenizer = self.encoder.tokenizer
        if tokenizer.response_template is not None:
            return ""
        found = {
            tokenizer.convert_ids_to_tokens(token)
            for row, tokens in zip(rows, ids, strict=True)
            for token in set(tokens) & set(tokenizer.all_special_ids)
            if tokenizer.convert_ids_to_tokens(token) in as_text(row[self.splits.demonstration_column])
        }
        if not found:
            return ""
        sentence = (
            f"{', '.join(sorted(found))} of the demonstrations are special tokens, which rewards do not see: the "
            "trainer decodes completions without them. Make them ordinary tokens of the tokenizer (special=False)."
        )
        logger.warning("%s: %s", self.splits.source, sentence)
        return sentence + "\n"

    def _undecided(self, key: str, message: str) -> UserError:
        return _Undecided(str(self.recipe.error(key, message)))

    def _others(self) -> str:
        names = [name for place, name in enumerate(self.names) if place != self.success]
        return f" ({', '.join(names)})" if names else ""

    def _shown(self, row: dict[str, Any], first: str = "") -> str:
        column = self.splits.demonstration_column
        demonstration = f"  demonstration: {_short(as_text(row[column]))}\n" if row.get(column) else ""
        return (
            f"{first}{'at ' if first else ''}{where(self.splits.source, row[ROW])}:\n"
            f"  prompt: {_short(as_text(row['prompt']))}\n{demonstration}"
            f"  answer: {row.get('answer')!r}"
        )


def _short(text: str, length: int = 300) -> str:
    return repr(text if len(text) <= length else text[: length // 2] + " […] " + text[-length // 2 :])
