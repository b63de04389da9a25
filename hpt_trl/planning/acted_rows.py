"""What `hpt-trl check` shows of rows in an environment: prompts as they are told, trajectories as they are played."""

import re
from itertools import groupby
from typing import TYPE_CHECKING

from hpt_trl.data.rendering import Encoded
from hpt_trl.methods.acted_rows import PROBED
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.showing import cut, marked
from hpt_trl.runs.acting import trains_on_answers
from hpt_trl.runs.prepared import Prepared

if TYPE_CHECKING:
    from hpt_trl.environments.acting import Acting
    from hpt_trl.environments.episode import Episode


def environment_line(acting: "Acting", name: str) -> str:
    """The environment with its limits."""
    limits = acting.limits
    context = "" if limits.context is None else f", a context of {limits.context:,} tokens"
    images = "" if limits.images is None else f", {limits.images} images at a time"
    return f"{name}, {limits.turns} turns of up to {limits.turn:,} tokens, {limits.drawn:,} in all{context}{images}"


def acted_rows(prepared: Prepared, acting: "Acting") -> tuple[list[tuple[str, str]], Lengths]:
    """The lines about the rows, and how long these are: the tokens of a context.

    Prompts and trajectories of the first rows are encoded; more would be searched for. Of rollouts the tokens are those
    of a context but for the ones that may be drawn in it: how much an environment shows is known by the trajectories,
    or by the limit of the context alone.
    """
    splits, encoder = prepared.splits, acting.encoder.encoder
    rows = [splits.train[place] for place in range(min(PROBED, len(splits.train)))]
    prompts = [acting.episode(row).prompt for row in rows]
    longest, seen = max(len(prompt.ids) for prompt in prompts), None
    lines = [
        ("data", f"{splits.counted}, first prompts of up to {longest} tokens"),
        ("first prompt", cut(_short(encoder.tokenizer.decode(prompts[0].ids)), 1200).rstrip()),
    ]
    column = splits.demonstration_column
    if trains_on_answers(prepared.recipe, splits):
        played = [acting.demonstration(row, column) for row in rows if row.get(column)]
        if played:
            seen = max(len(segment) for episode in played for segment in episode.segments)
            flat = played[0].flat
            shown = _short(marked(Encoded(flat.completion_ids, flat.drawn), encoder, long=2400))
            lines += [("trajectories", _trajectories(played)), ("first one", shown.rstrip())]
    if rows[0].get("answer") is not None:
        lines.append(("answer", cut(str(rows[0]["answer"]))))
    if splits.layout != "prompts":
        longest = max(longest, seen or 0)
        return lines, Lengths(longest, longest)
    bounds = [acting.limits.context, None if seen is None else seen + acting.limits.drawn]
    bound = min((bound for bound in bounds if bound is not None), default=0)
    longest = max(longest, bound - acting.limits.drawn)
    return lines, Lengths(longest, longest)


def _trajectories(played: "list[Episode]") -> str:
    segments = [segment for episode in played for segment in episode.segments]
    ends = ", ".join(
        f"{name} {len(list(same))}" for name, same in groupby(sorted(episode.ended or "nothing" for episode in played))
    )
    return (
        f"the first {len(played)}: up to {max(episode.turns for episode in played)} turns, "
        f"{max(len(segment) for segment in segments)} tokens and {max(segment.images for segment in segments)} images "
        f"in a context; ended by {ends}"
    )


def _short(text: str) -> str:
    """A text with runs of a special token counted."""
    return re.sub(r"(<[^<>\s]+>)\1{2,}", lambda run: f"{run[1]} x {len(run[0]) // len(run[1])}", text)
