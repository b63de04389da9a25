"""How far a reward model's scores drift from prompt to prompt, from the scores that its run left.

A reward model is trained on differences of two completions of one prompt, so a constant that it adds to all scores of a
prompt costs it nothing: each prompt may have a shift of its own. A policy that is trained on the scores of many prompts
at once sees that shift as reward. Here it is measured: the spread of the prompts' means beside the spread inside a
prompt, and how well completions are told apart across prompts beside inside one.

Files alone are read, no weights; matplotlib is imported on use.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import lines_of
from hpt_trl.pictures import STYLE, new_figure, write_picture
from hpt_trl.terminal import Column, flow, table

SCORES_FILE = "scores.jsonl"
PICTURE_FILE = "reward_shift.png"

# From this share of the variance on, the shift is worth a remedy.
NOTABLE_SHARE = 0.2
_KEYS = ("prompt", "chosen", "rejected", "chosen_key", "rejected_key")


@dataclass(frozen=True)
class Spread:
    """Components of variance of scores grouped by prompt (one-way, random effects; as standard deviations).

    Attributes:
        between: of the prompts' shifts, without what the sampling of so few completions adds to the means.
        means: of the prompts' means as they are, unbiased.
        within: of the completions of one prompt, unbiased and pooled.
    """

    between: float
    means: float
    within: float

    @property
    def share(self) -> float:
        """Share of the variance of a score that lies between prompts (intraclass correlation); 0 without variance."""
        total = self.between**2 + self.within**2
        return self.between**2 / total if total > 0 else 0.0


@dataclass(frozen=True)
class Shift:
    """The diagnostic of one reward model, before (`raw`) and after centring the scores of each prompt.

    `inside` is the share of comparisons whose chosen completion has the higher score; `across` the same for a chosen
    and a rejected completion of two different prompts, all pairs; equal scores count half.
    """

    prompts: int
    completions: int
    raw: Spread
    centred: Spread
    inside: float
    across: float
    across_centred: float


def spread(groups: Sequence[Sequence[float]]) -> Spread:
    """Components of variance of scores, one sequence per prompt; the sizes may differ.

    Raises:
        ValueError: fewer than two prompts, or no prompt with two completions.
    """
    count, total = len(groups), sum(len(group) for group in groups)
    if count < 2 or total - count < 1:
        raise ValueError(f"{total} scores of {count} prompts; needed: two prompts, and two completions of one of them")
    means = [sum(group) / len(group) for group in groups]
    mean = sum(map(sum, groups)) / total
    square_within = sum((x - m) ** 2 for group, m in zip(groups, means, strict=True) for x in group) / (total - count)
    square_between = sum(len(group) * (m - mean) ** 2 for group, m in zip(groups, means, strict=True)) / (count - 1)
    # What stands for the size of a group in the expectation of `square_between` when the sizes differ.
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (count - 1)
    plain = sum(means) / count
    return Spread(
        between=math.sqrt(max(0.0, (square_between - square_within) / size)),
        means=math.sqrt(sum((m - plain) ** 2 for m in means) / (count - 1)),
        within=math.sqrt(square_within),
    )


def centred(group: Sequence[float]) -> list[float]:
    """The scores of a prompt without their mean."""
    mean = sum(group) / len(group)
    return [score - mean for score in group]


def measure_shift(comparisons: Sequence[dict[str, Any]]) -> Shift:
    """The diagnostic of the lines of scores.jsonl; a completion of several comparisons counts once.

    Raises:
        ValueError: too few prompts or completions.
    """
    scores = _by_prompt(comparisons)
    middles = {prompt: sum(found.values()) / len(found) for prompt, found in scores.items()}
    groups = [list(found.values()) for found in scores.values()]
    pairs = [(line["prompt"], float(line["chosen"]), float(line["rejected"])) for line in comparisons]
    return Shift(
        prompts=len(groups),
        completions=sum(map(len, groups)),
        raw=spread(groups),
        centred=spread([centred(group) for group in groups]),
        inside=sum(_above(one, other) for _, one, other in pairs) / len(pairs),
        across=_across(pairs),
        across_centred=_across([(prompt, one - middles[prompt], two - middles[prompt]) for prompt, one, two in pairs]),
    )


def read_scores(folder: str | Path) -> list[dict[str, Any]] | None:
    """Lines of scores.jsonl that have both scores; None without the file.

    Raises:
        UserError: a line is not a scored comparison.
    """
    path = Path(folder) / SCORES_FILE
    if not path.exists():
        return None
    comparisons = []
    for number, text in enumerate(lines_of(path), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or any(key not in line for key in _KEYS):
            raise UserError(f"{path}, line {number}: not a JSON object with {', '.join(_KEYS)}; run the recipe again.")
        # What was not finite is null in JSON.
        if all(isinstance(line[key], int | float) for key in ("chosen", "rejected")):
            comparisons.append(line)
    return comparisons


def report_shift(folder: str | Path) -> list[str]:
    """Draws reward_shift.png and returns the diagnostic for reading; nothing of either without scores.jsonl.

    Raises:
        UserError: the scores are broken.
    """
    comparisons = read_scores(folder)
    if comparisons is None:
        return []
    try:
        shift = measure_shift(comparisons)
    except ValueError as error:
        return [flow([f"Reward shift: cannot be measured on {error}."])]
    path = Path(folder) / PICTURE_FILE
    write_picture(figure_of(comparisons, shift), path)
    return [*shift_lines(shift), flow([f"Reward shift: {path}"])]


def shift_lines(shift: Shift) -> list[str]:
    """The diagnostic as a table, and what follows from it."""
    raw, flat = shift.raw, shift.centred
    rows = (
        ("spread of the prompts' means", f"{raw.means:.3g}", f"{flat.means:.3g}"),
        ("spread of them without sampling noise", f"{raw.between:.3g}", f"{flat.between:.3g}"),
        ("spread inside a prompt", f"{raw.within:.3g}", f"{flat.within:.3g}"),
        ("share of variance between prompts", f"{raw.share:.0%}", f"{flat.share:.0%}"),
        ("chosen above rejected, same prompt", f"{shift.inside:.1%}", f"{shift.inside:.1%}"),
        ("chosen above rejected, other prompt", f"{shift.across:.1%}", f"{shift.across_centred:.1%}"),
    )
    head = f"Scores of {shift.completions} held-out completions of {shift.prompts} prompts"
    if raw.share < NOTABLE_SHARE:
        said = "Little shift from prompt to prompt: RL can take the scores as they are."
    else:
        said = (
            "That share of what RL would see is the prompt's, not the answer's. In PPO write `score_centering: prompt` "
            "with `num_generations: 4` or so (GRPO centres by itself), or train the reward model with a "
            "`center_rewards_coefficient`, e.g. 0.01."
        )
    columns = (head, Column("as they are", right=True), Column("centred per prompt", right=True))
    return [table(columns, rows), flow([said])]


def figure_of(comparisons: Sequence[dict[str, Any]], shift: Shift) -> Any:
    """Draws the prompts in the order of their means, each with the spread of its completions."""
    from matplotlib import rc_context

    scores = sorted(
        (list(found.values()) for found in _by_prompt(comparisons).values()), key=lambda group: sum(group) / len(group)
    )
    panels = (
        ("As they are", scores, shift.raw),
        ("Centred per prompt", [centred(group) for group in scores], shift.centred),
    )
    with rc_context(STYLE):
        figure, axes = new_figure(1, 2, (11.2, 4.0), sharey=True)
        axes = axes[0]
        places = range(1, len(scores) + 1)
        width = max(0.4, min(3.0, 300 / len(scores)))
        for axis, (title, shown, found) in zip(axes, panels, strict=True):
            low, high = [min(group) for group in shown], [max(group) for group in shown]
            means = [sum(group) / len(group) for group in shown]
            axis.vlines(places, low, high, color="#e08214", alpha=0.55, linewidth=width, label="completions, range")
            axis.plot(places, means, ".", color="#2166ac", markersize=max(2.0, 2 * width), label="mean of the prompt")
            axis.set_title(f"{title}: {found.share:.0%} of the variance between prompts")
            axis.set_xlabel("held-out prompts, by their mean")
            axis.grid(True, color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
        axes[0].set_ylabel("score")
        axes[0].legend(loc="upper left")
    return figure


def _by_prompt(comparisons: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Prompt -> completion -> score."""
    scores: dict[str, dict[str, float]] = {}
    for line in comparisons:
        for name in ("chosen", "rejected"):
            scores.setdefault(line["prompt"], {})[line[f"{name}_key"]] = float(line[name])
    return scores


def _above(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


def _across(pairs: Sequence[tuple[str, float, float]]) -> float:
    """Share of the pairs of a chosen and a rejected completion of different prompts whose chosen one is higher."""
    rejected = sorted(other for _, _, other in pairs)
    own: dict[str, list[float]] = {}
    for prompt, _, other in pairs:
        own.setdefault(prompt, []).append(other)
    wins = count = 0.0
    for prompt, one, _ in pairs:
        below, equal = _rank(rejected, one)
        same = own[prompt]
        below -= sum(other < one for other in same)
        equal -= sum(other == one for other in same)
        wins += below + 0.5 * equal
        count += len(rejected) - len(same)
    return wins / count


def _rank(ordered: list[float], value: float) -> tuple[int, int]:
    """How many are below the value, and how many equal it."""
    below = bisect_left(ordered, value)
    return below, bisect_left(ordered, math.nextafter(value, math.inf)) - below
