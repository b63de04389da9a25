"""Rows of comparisons for TRL's trainers, read before the training or as they are trained."""

from collections.abc import Callable
from typing import Any

from hpt_trl.data.loading import columns_for
from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendered_with import all_given_to_templates, given_to_templates
from hpt_trl.errors import UserError
from hpt_trl.methods.streamed import streaming_arguments
from hpt_trl.models.loading import positions_of
from hpt_trl.recipes.recipe import StageInputs


def comparison_rows(
    inputs: StageInputs, *columns: str, check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """What a trainer on comparisons takes of a recipe's rows: training and held-out ones, and who tells of a stream's.

    Args:
        columns: that it reads of a row, where the row has them.
        check: raises a `UserError` about a row of a stream on which it cannot be trained; None where it can on any.
    """
    splits = inputs.splits
    # Of pictures that the model does not read a warning was given; DPOTrainer would refuse them.
    read = [name for name in columns if inputs.encoder.is_processor or name not in IMAGES]
    train, test = (all_given_to_templates(columns_for(rows, *read)) for rows in (splits.train, splits.test))
    taken = {"train_dataset": train, "eval_dataset": test}
    return taken if splits.stream is None else taken | _streamed(inputs, read, check)


def _streamed(
    inputs: StageInputs, columns: list[str], check: Callable[[dict[str, Any]], None] | None
) -> dict[str, Any]:
    fits = _fitting(inputs)

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        if check is not None:
            check(row)
        fits(row)
        return given_to_templates({name: row[name] for name in columns if name in row})

    return streaming_arguments(inputs, of_row)


def _fitting(inputs: StageInputs) -> Callable[[dict[str, Any]], None]:
    """Refuses a row that would be trained otherwise than it is written, or that `check_lengths` refuses of others."""
    # `datasets` takes a digest of whatever makes the rows: of these alone, not of all that a stage is built from.
    encoder, answers, longest = inputs.encoder, inputs.splits.answers, inputs.config.max_length
    positions = None if inputs.model_config is None else positions_of(inputs.model_config)
    keeps_end = getattr(inputs.config, "truncation_mode", "keep_start") == "keep_end"
    limit = positions if positions is not None and (longest is None or longest > positions) else None

    def check(row: dict[str, Any]) -> None:
        if longest is not None and not keeps_end and (tokens := len(encoder.prompt(row))) >= longest:
            raise UserError(f"the prompt has {tokens} tokens, which leaves no room in `max_length: {longest}`.")
        for answer in answers:
            tokens = len(encoder.answered(row, answer).ids)
            if limit is not None and tokens > limit:
                raise UserError(
                    f"prompt and `{answer}` have {tokens} tokens, more than the model takes (max_position_embeddings "
                    f"{positions})."
                )

    return check
