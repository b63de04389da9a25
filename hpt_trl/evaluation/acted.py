"""Rows answered in an environment, in batches, on one process or many; see `hpt_trl.evaluation.generating`."""

from collections.abc import Collection, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig
from trl.trainer.utils import pad

from hpt_trl.environments.acting import Acting, play
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.features import join
from hpt_trl.environments.pieces import Context
from hpt_trl.environments.trajectories import recorded
from hpt_trl.evaluation.generating import (
    Decoding,
    Item,
    Sample,
    batches_of,
    cut_at_end,
    generating,
    generation_config,
)
from hpt_trl.models.decoding import neutral_decoding
from hpt_trl.models.random_state import kept_random_state


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
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    acting, there = acting.drawing(decoding.max_new_tokens), frozenset(done)
    encoder = acting.encoder.encoder
    batches = batches_of(rows, decoding.n, batch_size)
    pending = [number for number, batch in enumerate(batches) if not there.issuperset(batch)]
    total = sum(len(batches[number]) for number in pending)
    with (
        tqdm(total=total, desc=description, unit="rollout", disable=rank != 0) as bar,
        generating(model, accelerator) as (generator, device),
        neutral_decoding(generator),
        kept_random_state(device),
    ):
        config = generation_config(generator, encoder.processing_class, decoding)
        for first in range(0, len(pending), world):
            # Sharded models need every process in every forward pass: the last round is filled up, not cut.
            number = pending[min(first + rank, len(pending) - 1)]
            torch.manual_seed(decoding.seed + number)
            episodes = [acting.episode(rows[index]) for index, _ in batches[number]]

            def draw(pending: list[Episode]) -> None:
                contexts = [episode.context() for episode in pending] or [acting.filler()]
                longest = max((episode.budget for episode in pending), default=1)
                turns = _turns(generator, acting, contexts, config, longest, device)
                for episode, ids in zip(pending, turns, strict=False):
                    episode.take(ids)

            def any_of(value: bool) -> bool:
                if accelerator is None:
                    return value
                return bool(accelerator.gather(torch.tensor([value], device=device)).any())

            play(episodes, draw, any_of)
            if first + rank < len(pending):
                yield [
                    _sample(item, episode, images if item[0] < kept and item[1] == 0 else None)
                    for item, episode in zip(batches[number], episodes, strict=True)
                ]
            bar.update(sum(len(batches[number]) for number in pending[first : first + world]))


def _turns(
    model: Any, acting: Acting, contexts: list[Context], config: GenerationConfig, longest: int, device: torch.device
) -> list[list[int]]:
    """The next turn in each context, of at most so many tokens."""

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        return pad([torch.tensor(row) for row in rows], padding_value=fill, padding_side="left").to(device)

    inputs: dict[str, Any] = {
        "input_ids": padded([context.ids for context in contexts], config.pad_token_id),
        "attention_mask": padded([[1] * len(context.ids) for context in contexts], 0),
        **{name: value.to(device) for name, value in join([context.features for context in contexts]).items()},
    }
    name = acting.encoder.type_name
    if name is not None and any(context.images for context in contexts):
        inputs[name] = padded([context.types or [0] * len(context.ids) for context in contexts], 0)
    limited = deepcopy(config)
    limited.max_new_tokens = longest
    output = model.generate(**inputs, generation_config=limited)
    return cut_at_end(output[:, inputs["input_ids"].shape[1] :], config.eos_token_id)


def _sample(item: Item, episode: Episode, images: Path | None) -> Sample:
    index, generation = item
    flat = episode.flat
    cut = episode.ended in ("tokens", "context")
    return Sample(index, generation, flat.prompt_ids, flat.completion_ids, cut, recorded(episode, images))
