"""Completions of some of the prompts: what a method asks for that decides by the first ones whether it needs more."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers import StoppingCriteria

from hpt_trl.rollouts.trainer import RolloutTrainer


def draw(
    trainer: RolloutTrainer,
    prompt_ids: list[list[int]],
    counts: Sequence[int],
    stopping: StoppingCriteria | None = None,
) -> tuple[list[list[list[int]]], list[list[list[float]]] | None]:
    """Completions of prompts, so many of each; several calls may make up one generation.

    vLLM gets the weights once per step, however often it is asked.

    Args:
        trainer: whose model draws them, as it draws rollouts.
        prompt_ids: tokens of each prompt.
        counts: completions of each, at least 1; with vLLM or sharded weights the same in all processes.
        stopping: says after each token which rows (prompt by prompt) go on for nothing. They leave the batch; what
            there is of them is padded, and no completion to train on.

    Returns:
        Tokens of the completions of each prompt; and with vLLM its log-probabilities of them, else None.

    Raises:
        ValueError: `stopping` with vLLM, which answers a call as a whole.
    """
    if stopping is not None and trainer.use_vllm:
        raise ValueError("`stopping`: vLLM answers a call as a whole. Ask it for fewer completions, and again.")
    rows = [ids for ids, count in zip(prompt_ids, counts, strict=True) for _ in range(count)]
    trainer.stopping = stopping
    try:
        # Of equal counts vLLM is asked once for each prompt.
        each = counts[0] if len(set(counts)) == 1 else 1
        completions, logps = trainer._generate_single_turn(rows, None, {}, each)
    finally:
        trainer.stopping = None
    return _per_prompt(completions, counts), None if logps is None else _per_prompt(logps, counts)


def _per_prompt(rows: list[Any], counts: Sequence[int]) -> list[list[Any]]:
    return [rows[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]
