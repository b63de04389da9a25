"""Whether prompts and rows fit into what the model takes and what the recipe cuts at."""

import logging

from datasets import Dataset

from hpt_trl.data.layouts import Splits
from hpt_trl.data.reading.places import where
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_lengths import count_tokens, examples, validate_lengths
from hpt_trl.errors import UserError
from hpt_trl.methods.sft.turns import encode
from hpt_trl.recipes.recipe import Recipe

logger = logging.getLogger(__name__)


def check_lengths(
    recipe: Recipe, splits: Splits, encoder: Encoder, answered: Dataset | None, eval_new_tokens: int, limit: int | None
) -> None:
    """Check that every prompt leaves room for its answer, and every row fits.

    Args:
        answered: the rows that the evaluation answers.
        eval_new_tokens: the length limit of its answers, in tokens.
        limit: how many tokens the model takes, None without a limit.

    Raises:
        UserError: the longest row that does not.
    """
    if splits.layout == "documents":
        return
    if recipe.environment is not None:
        return  # its own limits bound what is read and drawn
    if encoder.is_processor:
        # How many tokens an image takes is known when it is processed: vision-language rows are not measured here.
        return
    checks = []
    if splits.layout == "prompts":
        new_tokens = recipe.stage.completion_length(recipe.config)
        checks.append((splits.train, splits.source, "max_completion_length", new_tokens))
    else:
        for rows, source in splits.named:
            _check_whole_rows(recipe, splits, encoder, rows, source, limit)
    if answered is not None:
        own = "max_completion_length" in recipe.keys and recipe.arguments.eval_max_new_tokens is None
        key = "max_completion_length" if own else "eval_max_new_tokens"
        checks.append((answered, splits.test_source, key, eval_new_tokens))
    for rows, source, key, new_tokens in checks:
        if limit is None:
            continue
        if new_tokens >= limit:
            raise recipe.error(key, f"{new_tokens} tokens leave no room for a prompt: the model takes {limit} in all.")
        validate_lengths(
            rows,
            source,
            encoder,
            longest=limit - new_tokens,
            reason=f"max_position_embeddings {limit} - {key} {new_tokens}",
            remedy=f"lower {key}",
        )


def _check_whole_rows(
    recipe: Recipe, splits: Splits, encoder: Encoder, rows: Dataset, source: str, limit: int | None
) -> None:
    """Rows of prompt and answers: TRL cuts them at `max_length` or drops them, and says nothing.

    Raises:
        UserError: a prompt leaves no room for its answer, a row is longer than the model takes, or every row would be
            dropped.
    """
    longest, packed = recipe.setting("max_length"), recipe.setting("packing", False)
    keeps_end = recipe.setting("truncation_mode", "keep_start") == "keep_end"
    if longest is not None and not packed and not keeps_end:
        validate_lengths(
            rows,
            source,
            encoder,
            longest=longest - 1,
            reason=f"max_length {longest} less one token for an answer",
            remedy="raise max_length",
        )
    for answer in splits.answers:
        counts = list(count_tokens(rows, source, encoder, ("prompt", answer)))
        if limit is not None and (longest is None or longest > limit) and not packed:
            row, most = max(counts, key=lambda pair: pair[1])
            if most > limit:
                raise UserError(
                    f"{where(source, row)}: prompt and `{answer}` have {most} tokens, more than the model takes "
                    f"(max_position_embeddings {limit}). Shorten or drop such rows, or write `max_length: {limit}`."
                )
        too_long = [row for row, tokens in counts if longest is not None and tokens > longest and not packed]
        drops = recipe.stage.scores
        if drops and len(too_long) == len(counts):
            raise recipe.error("max_length", f"every row of {source} has more than {longest} tokens and is dropped.")
        if too_long:
            logger.warning(
                "%s: prompt and `%s` have more than %d tokens (`max_length`) in %d of %d rows, which are %s.",
                where(source, too_long[0]),
                answer,
                longest,
                len(too_long),
                len(counts),
                "dropped" if drops else "cut",
            )
        if too_long and keeps_end and splits.layout == "demonstrations":
            _check_ends(recipe, encoder, rows, source, set(too_long))


def _check_ends(recipe: Recipe, encoder: Encoder, rows: Dataset, source: str, too_long: set[int]) -> None:
    """Whether what is left of rows that are cut at their beginning has a token that is trained on."""
    longest = recipe.setting("max_length")
    lost = [
        row
        for row, example in examples(rows, ("prompt", "completion"))
        # The first of the tokens that are kept follows nothing.
        if row in too_long and not any(encode(example, encoder, recipe.config, recipe.arguments).trained[1 - longest :])
    ]
    said = f"have none in their last {longest} (`max_length`), to which `truncation_mode: keep_end` cuts them"
    if len(lost) == len(rows):
        raise recipe.error("max_length", f"{source}: the tokens that are trained on are cut off: all rows {said}.")
    if lost:
        logger.warning(
            "%s: the tokens that are trained on are cut off, and the row is dropped: %d of %d rows %s.",
            where(source, lost[0]),
            len(lost),
            len(rows),
            said,
        )
