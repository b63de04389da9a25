"""Supervised fine-tuning on trajectories in an environment, the loss on the assistant's turns alone.

Each row is played as its rollout would be, so that the model reads the very tokens and images that it will read when it
acts; a trajectory whose pictures are folded away has several contexts.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from transformers import Trainer
from trl import SFTConfig

from hpt_trl.environments.acting import Acting
from hpt_trl.environments.faults import named
from hpt_trl.environments.fillers import fillers_of
from hpt_trl.environments.pieces import Segment
from hpt_trl.errors import Collector, UserError
from hpt_trl.methods.environments import acting_arguments
from hpt_trl.methods.held_out import ROW_LENGTHS, share_of_rows
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.sft.turns import last_alone
from hpt_trl.recipes.recipe import Recipe, StageInputs
from hpt_trl.rollouts.contexts import Contexts

# Of SFTTrainer's settings, those that are about rows of text.
_OF_TEXTS = {"packing": True, "padding_free": True, "eval_packing": True, "completion_only_loss": False}


def check_acted(recipe: Recipe) -> None:
    """Refuse settings that say something of texts.

    Raises:
        UserError: every such setting.
    """
    mistakes = Collector()
    if acting_arguments(recipe).environment is None:
        return
    for key, value in _OF_TEXTS.items():
        if getattr(recipe.config, key) is value:
            mistakes.note(recipe.error(key, f"{str(value).lower()} does not go with `environment`; drop the line."))
    if last_alone(recipe.arguments):
        said = "in an environment every turn of a trajectory is trained; drop the line."
        mistakes.note(recipe.error("train_on_turns", said))
    mistakes.settle()


class TrajectoryCollator:
    """Plays the rows of a batch and joins their contexts.

    A batch has `input_ids`, `attention_mask` and `labels` (contexts, tokens), image features, and under `ROW_LENGTHS`
    the contexts of each row.

    Args:
        acting: plays them.
        column: of the trajectories.
        pad_token_id: fills contexts up.
        multiple: the width is padded to a multiple of it.
        fillers: contexts that are passed through the model with a batch without an image.
    """

    def __init__(
        self,
        acting: Acting,
        column: str,
        pad_token_id: int,
        multiple: int | None = None,
        fillers: Sequence[Segment] = (),
    ):
        self.acting, self.column, self.fillers = acting, column, fillers
        self.pad_token_id, self.multiple = pad_token_id, multiple

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self._segments(example) for example in examples]
        shows = any(segment.images for row in rows for segment in row)
        contexts = Contexts.of(
            rows,
            self.pad_token_id,
            torch.device("cpu"),
            multiple=self.multiple,
            type_name=self.acting.encoder.type_name,
            fillers=() if shows else self.fillers,
        )
        batch = {name: value for name, value in contexts.arguments.items() if isinstance(value, torch.Tensor)}
        labels = torch.full_like(batch["input_ids"], -100)
        places = contexts.segments, contexts.places
        labels[places] = batch["input_ids"][places]
        return batch | {"labels": labels, ROW_LENGTHS: torch.tensor([len(row) for row in rows])}

    def _segments(self, example: dict[str, Any]) -> list[Segment]:
        try:
            return self.acting.demonstration(example, self.column).segments
        except UserError as error:
            raise named(error, example) from error


class TrajectorySFTTrainer(MeasuredSFTTrainer):
    """`MeasuredSFTTrainer` on batches of `TrajectoryCollator`."""

    def _held_out_count(self, inputs: dict[str, Any]) -> int:
        return len(inputs[ROW_LENGTHS])

    def _held_out_row(self, values: Mapping[str, Any], inputs: dict[str, Any], row: int) -> dict[str, Any]:
        ends = [0, *accumulate(inputs[ROW_LENGTHS].tolist())]
        return share_of_rows(values, {len(inputs["input_ids"]): list(range(ends[row], ends[row + 1]))})


def build_acted(inputs: StageInputs) -> Trainer:
    """The trainer of a recipe with an environment."""
    config: SFTConfig = inputs.config
    config.dataset_kwargs = {**cast(dict[str, Any], config.dataset_kwargs or {}), "skip_prepare_dataset": True}
    # The environment reads columns that no model does.
    config.remove_unused_columns = False
    acting = inputs.acting
    assert acting is not None
    # The rows are cut nowhere else: the context's limit is known to the environment.
    config.max_length = None
    collator = TrajectoryCollator(
        acting,
        inputs.splits.demonstration_column,
        acting.encoder.encoder.tokenizer.pad_token_id,
        config.pad_to_multiple_of if isinstance(config.pad_to_multiple_of, int) else None,
        fillers_of(acting),
    )
    return TrajectorySFTTrainer(
        train_dataset=inputs.splits.train,
        eval_dataset=inputs.splits.test,
        data_collator=collator,
        **inputs.trainer_arguments(),
    )
