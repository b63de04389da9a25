"""Which recipes can take their rows as a stream (`dataset_streaming`), and what goes with one."""

from collections.abc import Mapping
from typing import Any

from hpt_trl.errors import Collector
from hpt_trl.recipes.declared import Declared
from hpt_trl.settings.file import Sources

# Stages whose trainers take rows one after the other; all others draw, count or score theirs beforehand.
STREAMING = ("pretrain", "sft", "dpo", "reward")
_KEY = "dataset_streaming"


def note_streaming_mistakes(
    taken: Mapping[str, Any], declared: Declared, sources: Sources, mistakes: Collector
) -> None:
    """Notes what does not go with a stream.

    Args:
        taken: key -> value of the recipe's keys.
    """
    if not taken.get(_KEY):
        return
    if declared.stage and declared.stage not in STREAMING:
        mistakes.note(
            sources.error(
                _KEY,
                f"the stage `{declared.stage}` needs all its rows before the training; those that stream are "
                f"{', '.join(STREAMING)}. Drop the line.",
            )
        )
        return
    if taken.get("max_steps", -1) <= 0:
        said = "a stream does not say how many rows it has; write how many steps are trained, e.g. 1000."
        mistakes.note(sources.error("max_steps", said))
    strategy = taken.get("train_sampling_strategy", "random")
    if strategy not in ("random", "sequential"):
        said = "sorts all rows, which a stream has not read; allowed: random (within `shuffle_buffer`), sequential."
        mistakes.note(sources.error("train_sampling_strategy", f"{strategy}: it {said}"))
    if taken.get("precompute_ref_log_probs"):
        said = "what the reference says of a stream cannot be computed beforehand; drop one of the two."
        mistakes.note(sources.error("precompute_ref_log_probs", f"true: {said}"))
    if taken.get("dataloader_num_workers"):
        said = "a stream is read by the process that trains, which counts its faulty rows; drop the line."
        mistakes.note(sources.error("dataloader_num_workers", f"{taken['dataloader_num_workers']}: {said}"))
    held_out = taken.get("test_split_size")
    if held_out is not None and 0 < held_out < 1:
        said = "a share of what a stream holds is not known; write a count: the first rows are held out."
        mistakes.note(sources.error("test_split_size", f"{held_out:g}: {said}"))
    for key in ("datasets", "environment"):
        if taken.get(key):
            mistakes.note(sources.error(_KEY, f"true does not go with `{key}`, whose rows are read before; drop one."))
