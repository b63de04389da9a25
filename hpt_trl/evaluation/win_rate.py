"""How often a model's completions are worth more than others: those of another evaluation, or the rows' own answers."""

from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from trl.data_utils import is_conversational

from hpt_trl.data.messages import text_of
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.evaluation.conditions import rows_digest
from hpt_trl.evaluation.intervals import clustered
from hpt_trl.evaluation.samples import CONDITIONS_FILE, SAMPLES_FILE, SampleStore
from hpt_trl.evaluation.scoring import Judge, score
from hpt_trl.rewards.completions import score_completions, weighted_reward

# Of each row the rewards of its completions.
Rewards = list[list[float | None]]


def win_rate(own: Rewards, others: Rewards) -> dict[str, Any]:
    """Compares rewards, each completion of a row with each of the other side; a tie counts half.

    Returns:
        `win_rate` with its 95 % interval (Wilson's, over rows), `ties` (share of comparisons), and `unpaired` (rows of
        which one side has no reward, which are left out).

    Raises:
        UserError: no row can be compared.
    """
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
        "unpaired": len(own) - len(shares),
    }


def check_against(folder: str | Path, rows: Dataset) -> None:
    """Refuses another evaluation whose completions cannot be compared with those of rows.

    Raises:
        UserError: the folder holds no evaluation, one that came to no end, or one of other rows.
    """
    store = SampleStore(folder)
    conditions, texts = store.conditions(), store.texts()
    if conditions is None or not texts:
        raise UserError(
            f"against: {folder} holds no finished evaluation ({CONDITIONS_FILE}, {SAMPLES_FILE}); write "
            "`demonstrations`, or the `output_dir` of one."
        )
    if conditions.get("rows") != rows_digest(rows["prompt"]):
        raise UserError(
            f"against: {folder} is an evaluation of other rows; evaluate both models on the same `dataset_name`."
        )
    wanted = len(rows) * int(conditions.get("n", 1))
    if len(texts) < wanted:
        raise UserError(
            f"against: {folder} holds {len(texts):,} of {wanted:,} completions; let that evaluation come to its end."
        )


def rewards_of_evaluation(folder: Path, rows: Dataset, encoder: Encoder, judge: Judge, prompts: str | None) -> Rewards:
    """Rewards of another evaluation's completions.

    Of a model with the same tokens they are scored as they were drawn, cut at the texts that ended them there; else
    their texts are encoded anew.

    Args:
        prompts: Digest of the prompts' tokens here, by which the other's are told from them.

    Raises:
        UserError: the evaluation came to no end, or is of other rows.
    """
    check_against(folder, rows)
    store = SampleStore(folder)
    samples, texts, conditions = store.read(), store.texts(), store.conditions() or {}
    found: Rewards = [[] for _ in range(len(rows))]
    if prompts is not None and conditions.get("prompts") == prompts:
        for one in score(samples, rows, encoder, judge, stop=conditions.get("stop") or ()):
            found[one.sample.index].append(one.reward)
        return found
    items = [(sample.index, texts[sample.index, sample.generation], sample.truncated) for sample in samples]
    return _rewards(items, rows, encoder, judge)


def rewards_of_demonstrations(rows: Dataset, column: str, encoder: Encoder, judge: Judge) -> Rewards:
    """Rewards of the rows' own answers."""
    return _rewards([(index, text_of(row[column]), False) for index, row in enumerate(rows)], rows, encoder, judge)


def _rewards(items: list[tuple[int, str, bool]], rows: Dataset, encoder: Encoder, judge: Judge) -> Rewards:
    """Rewards of texts: place of the row, text, and whether its end is missing."""
    chat = is_conversational({"prompt": rows[0]["prompt"]})
    shaped: list[Any] = [[{"role": "assistant", "content": text}] if chat else text for _, text, _ in items]
    end = [encoder.tokenizer.eos_token_id]
    ids = [
        encoder.tokenizer(text=text, add_special_tokens=False)["input_ids"] + ([] if cut else end)
        for _, text, cut in items
    ]
    values = score_completions([rows[index] for index, *_ in items], shaped, ids, judge.rewards)
    found: Rewards = [[] for _ in range(len(rows))]
    for (index, *_), row in zip(items, values, strict=True):
        found[index].append(weighted_reward(row, judge.weights))
    return found
