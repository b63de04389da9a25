"""Completions scored by rewards, as the trainers score them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import TrainerState

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.faults import columns
from hpt_trl.evaluation.generating import Sample, cut_at_stop
from hpt_trl.rewards.completions import score_completions, shape_completions, text_tokenizer, weighted_reward
from hpt_trl.rewards.names import distinct_names
from hpt_trl.rewards.success import is_solved, success_index


@dataclass(frozen=True)
class Judge:
    """What completions are scored by.

    Attributes:
        rewards: Functions with TRL's signature; `None` from all of them leaves a completion without a reward.
        weights: One each.
        success: Place of the reward that alone decides what is solved.
        threshold: The value of it from which a completion is solved.
    """

    rewards: Sequence[Callable[..., Any]]
    weights: Sequence[float]
    success: int = 0
    threshold: float = 1.0

    @classmethod
    def of(
        cls,
        rewards: Sequence[Callable[..., Any]],
        weights: Sequence[float] | None = None,
        success_reward: str | None = None,
        threshold: float = 1.0,
    ) -> "Judge":
        """By the name of the reward that decides; the first one by default, and a weight of 1 each.

        Raises:
            UserError: there is no reward of that name.
        """
        weights = [1.0] * len(rewards) if weights is None else weights
        return cls(rewards, weights, success_index(distinct_names(rewards), success_reward), threshold)

    @property
    def names(self) -> list[str]:
        """Names of the rewards, each another."""
        return distinct_names(self.rewards)


@dataclass(frozen=True)
class Scored:
    """A completion and what it is worth.

    Attributes:
        sample: The completion.
        text: It as text, without special tokens.
        values: Of each reward, None where it does not apply.
        reward: The weighted sum, None where none applies or one is not finite.
        solved: Whether the reward that decides reaches its threshold.
    """

    sample: Sample
    text: str
    values: list[float | None]
    reward: float | None
    solved: bool


def score(
    samples: Sequence[Sample],
    rows: Dataset,
    encoder: Encoder,
    judge: Judge,
    *,
    trainer_state: TrainerState | None = None,
    stop: Sequence[str] = (),
) -> list[Scored]:
    """Scores completions of rows; the rewards see them in one call.

    Args:
        rows: Those that were answered, with the columns that the rewards read.
        encoder: As the prompts were encoded.
        trainer_state: The trainer's, for the rewards.
        stop: Texts before which a completion is cut.

    Raises:
        UserError: a reward failed.
    """
    if not samples:
        return []
    batch, ids = [rows[sample.index] for sample in samples], [sample.ids for sample in samples]
    prompts, read = [row["prompt"] for row in batch], [sample.prompt_ids for sample in samples]
    if samples[0].played is not None:
        played = [sample.played or {} for sample in samples]
        told = columns([one["facts"] for one in played], "facts")
        batch = [row | {name: values[place] for name, values in told.items()} for place, row in enumerate(batch)]
        shaped = [one["completion"] for one in played]
        texts = [as_text(completion) for completion in shaped]
    else:
        shaped = shape_completions(encoder.processing_class, prompts, read, ids)
        texts = text_tokenizer(encoder.processing_class).batch_decode(ids, skip_special_tokens=True)
    if stop:
        texts = [cut_at_stop(text, stop) for text in texts]
        shaped = [_cut(completion, stop) for completion in shaped]
    values = score_completions(batch, shaped, ids, judge.rewards, trainer_state)
    return [
        Scored(
            sample,
            text,
            row_values,
            weighted_reward(row_values, judge.weights),
            is_solved(row_values[judge.success], judge.threshold),
        )
        for sample, text, row_values in zip(samples, texts, values, strict=True)
    ]


def _cut(completion: Any, stop: Sequence[str]) -> Any:
    if isinstance(completion, str):
        return cut_at_stop(completion, stop)
    return [{**message, "content": cut_at_stop(message.get("content") or "", stop)} for message in completion]
