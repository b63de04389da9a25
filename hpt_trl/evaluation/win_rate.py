"""How often a model's completions are worth more than others: those of another evaluation, or the rows' own answers."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from trl.data_utils import is_conversational

from hpt_trl.data.messages import text_of
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.evaluation.intervals import clustered
from hpt_trl.evaluation.samples import SampleStore
from hpt_trl.evaluation.scoring import Judge
from hpt_trl.rewards.completions import score_completions, weighted_reward

Rewards = list[float | None]


def measure_win_rate(
    rows: Dataset,
    encoder: Encoder,
    judge: Judge,
    own: Sequence[Rewards],
    *,
    against: Path | None,
    demonstration_column: str = "completion",
) -> dict[str, Any]:
    """Compares weighted rewards, each completion of a row with each of the other side; a tie counts half.

    Args:
        own: Of each row the rewards of its completions.
        against: Folder of an evaluation over the same rows; None for the rows' own answers.

    Returns:
        `win_rate` with its 95 % interval (Wilson's, over rows), `ties` (share of comparisons), and `unpaired` (rows of
        which one side has no reward, which are left out).

    Raises:
        UserError: the other evaluation is of other rows, or no row can be compared.
    """
    if against is None:
        texts = [[text_of(row[demonstration_column])] for row in rows]
    else:
        texts = _completions_of(against, len(rows))
    others = _rewards_of(texts, rows, encoder, judge)
    shares, ties, size = [], [], 1
    for mine, theirs in zip(own, others, strict=True):
        pairs = [(a, b) for a in mine if a is not None for b in theirs if b is not None]
        if pairs:
            shares.append(fmean(0.5 if a == b else float(a > b) for a, b in pairs))
            ties.append(fmean(a == b for a, b in pairs))
            size = max(size, min(len(mine), len(theirs)))
    if not shares:
        raise UserError("win_rate: no row has a reward on both sides; see `reward_funcs` and what they return.")
    return {
        "win_rate": fmean(shares),
        "win_rate_interval": list(clustered(shares, size)),
        "ties": fmean(ties),
        "unpaired": len(rows) - len(shares),
        "against": "demonstrations" if against is None else str(against),
    }


def _completions_of(folder: Path, rows: int) -> list[list[str]]:
    found = SampleStore(folder).texts()
    if not found:
        raise UserError(
            f"against: {folder} holds no finished evaluation (samples.jsonl); name the `output_dir` of one, or write "
            "`demonstrations`."
        )
    texts: list[list[str]] = [[] for _ in range(rows)]
    for (index, _), text in found.items():
        if index >= rows:
            raise UserError(f"against: {folder} has completions of {index + 1} rows and more, here are {rows}.")
        texts[index].append(text)
    return texts


def _rewards_of(texts: Sequence[Sequence[str]], rows: Dataset, encoder: Encoder, judge: Judge) -> list[Rewards]:
    items = [(index, text) for index, some in enumerate(texts) for text in some]
    chat = is_conversational({"prompt": rows[0]["prompt"]})
    shaped: list[Any] = [[{"role": "assistant", "content": text}] if chat else text for _, text in items]
    ids = [encoder.tokenizer(text=text, add_special_tokens=False)["input_ids"] for _, text in items]
    values = score_completions([rows[index] for index, _ in items], shaped, ids, judge.rewards)
    found: list[Rewards] = [[] for _ in texts]
    for (index, _), row in zip(items, values, strict=True):
        found[index].append(weighted_reward(row, judge.weights))
    return found
