"""What goes through a training's model in its evaluations before the first step and after the last one."""

from hpt_trl.data.row_lengths import count_tokens
from hpt_trl.evaluation.measuring import PERPLEXITY
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_settings import rows_at_once
from hpt_trl.planning.memory_sizes import Batch, Evaluated
from hpt_trl.planning.rows import describe_rows
from hpt_trl.runs.evaluating import task_of
from hpt_trl.runs.prepared import Prepared


def evaluated_of(prepared: Prepared, lengths: Lengths) -> Evaluated:
    """Returns the batches of a training's evaluations.

    Args:
        lengths: of the training rows, as long as which held-out ones are taken to be.
    """
    recipe, splits = prepared.recipe, prepared.splits
    rows = recipe.config.per_device_eval_batch_size
    held_out, answered, read = [], [], []
    if recipe.stage.measures_held_out and splits.test is not None:
        held_out.append(Batch(rows_at_once(recipe, min(rows, len(splits.test))), 0, lengths.longest))
    if prepared.answered is not None:
        items = len(prepared.answered) * recipe.arguments.eval_num_generations
        answered.append(Batch(min(rows, items), _prompt(prepared, lengths), prepared.eval_max_new_tokens))
    for evaluation in prepared.evaluations.values():
        task = task_of(evaluation)
        if task.answers:
            longest = describe_rows(evaluation)[1].longest
            items = min(task.batch_size, len(task.rows) * task.decoding.n)
            answered.append(Batch(items, longest, task.decoding.max_new_tokens))
        if PERPLEXITY in task.measures:
            read.append(Batch(min(task.batch_size, len(task.rows)), 0, task.longest))
    return Evaluated(tuple(held_out), tuple(answered), tuple(read))


def _prompt(prepared: Prepared, lengths: Lengths) -> int:
    """Tokens of the longest prompt that is answered."""
    rows, encoder = prepared.answered, prepared.encoder
    # Prompts with images, and contexts of an environment, were measured as those of the training rows.
    if rows is None or encoder.is_processor or prepared.acting is not None:
        return lengths.longest
    return max(tokens for _, tokens in count_tokens(rows, prepared.splits.source, encoder))
