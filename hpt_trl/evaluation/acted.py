"""Rows answered in an environment, in batches, on one process or many; see `hpt_trl.evaluation.generating`."""

from collections.abc import Collection, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from trl.trainer.utils import pad

from hpt_trl.environments.acting import Acting, play
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.features import join
from hpt_trl.environments.fillers import filled, image_context, text_context
from hpt_trl.environments.pieces import Context
from hpt_trl.environments.trajectories import recorded
from hpt_trl.evaluation.generating import Decoding, Item, Round, Sample, cut_at_end, rounds


def act(
    model: torch.nn.Module,
    acting: Acting,
    rows: Dataset,
    decoding: Decoding,
    *,
    batch_size: int,
    accelerator: Accelerator | None = None,
    done: Collection[Item] = (),
    description: str = "Evaluation",
    images: Path | None = None,
    kept: int = 0,
) -> Iterator[list[Sample]]:
    """Lets a model act on rows; all processes must go through it together, each gets those of its own batches.

    Args:
        model: The model, also as wrapped by `accelerator`.
        acting: Begins the rollouts.
        rows: With the columns that the environment reads.
        decoding: Its `max_new_tokens` are those of all turns together.
        batch_size: Rollouts at a time in each process.
        accelerator: The trainer's; without it this process is alone.
        done: Rollouts that are there already.
        description: Of the progress bar.
        images: Folder that gets what was shown in the first `kept` rows.
    """
    acting = acting.drawing(decoding.max_new_tokens)
    tokenizer = acting.encoder.encoder.processing_class
    for own in rounds(
        model,
        tokenizer,
        rows,
        decoding,
        batch_size=batch_size,
        accelerator=accelerator,
        done=done,
        bar=description,
        unit="rollouts",
    ):
        episodes = [acting.episode(rows[index]) for index, _ in own.items]
        _play(episodes, acting, own, accelerator)
        if own.wanted:
            yield [
                _sample(item, episode, images if item[0] < kept and item[1] == 0 else None)
                for item, episode in zip(own.items, episodes, strict=True)
            ]


def _play(episodes: list[Episode], acting: Acting, own: Round, accelerator: Accelerator | None) -> None:
    several = accelerator is not None and accelerator.num_processes > 1
    beside = (text_context(acting), image_context(acting) if several else None)

    def draw(pending: list[Episode]) -> None:
        contexts = filled([episode.context() for episode in pending], *beside)
        longest = max((episode.budget for episode in pending), default=1)
        turns = _turns(own, acting, contexts, longest)
        acting.take(pending, turns)

    def any_of(value: bool) -> bool:
        if accelerator is None:
            return value
        return bool(accelerator.gather(torch.tensor([value], device=own.device)).any())

    play(episodes, draw, any_of)


def _turns(own: Round, acting: Acting, contexts: list[Context], longest: int) -> list[list[int]]:
    """The next turn in each context, of at most so many tokens."""

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        return pad([torch.tensor(row) for row in rows], padding_value=fill, padding_side="left").to(own.device)

    inputs: dict[str, Any] = {
        "input_ids": padded([context.ids for context in contexts], own.config.pad_token_id),
        "attention_mask": padded([[1] * len(context.ids) for context in contexts], 0),
        **{name: value.to(own.device) for name, value in join([context.features for context in contexts]).items()},
    }
    name = acting.encoder.type_name
    if name is not None and any(context.images for context in contexts):
        inputs[name] = padded([context.types or [0] * len(context.ids) for context in contexts], 0)
    limited = deepcopy(own.config)
    limited.max_new_tokens = longest
    output = own.model.generate(**inputs, generation_config=limited)
    return cut_at_end(output[:, inputs["input_ids"].shape[1] :], own.config.eos_token_id)


def _sample(item: Item, episode: Episode, images: Path | None) -> Sample:
    index, generation = item
    flat = episode.flat
    cut = episode.ended in ("tokens", "context")
    return Sample(index, generation, flat.prompt_ids, flat.completion_ids, cut, recorded(episode, images))
