"""The evaluation of a run: held-out rows are answered by the model and scored with the recipe's own rewards.

It is not `Trainer.evaluate`: that reports losses and rewards of sampled rollouts, while the question here is the share
of held-out problems that the model solves before and after training, decoded as the recipe says and with a few
completions kept for reading. The random state of the training is left untouched, so a run with an evaluation gives
the same weights as one without.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerState

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Decoding, generate
from hpt_trl.evaluation.intervals import clustered
from hpt_trl.evaluation.scoring import Judge, Scored, score
from hpt_trl.runs.verdicts import standard_error


def evaluate(
    model: torch.nn.Module,
    encoder: Encoder,
    rows: Dataset,
    rewards: list[Callable[..., Any]],
    *,
    max_new_tokens: int,
    batch_size: int,
    reward_weights: list[float] | None = None,
    success_reward: str | None = None,
    success_threshold: float = 1.0,
    trainer_state: TrainerState | None = None,
    temperature: float = 0.0,
    num_generations: int = 1,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    completions_kept: int = 8,
    description: str = "Evaluation",
) -> dict[str, Any]:
    """Answers every row and scores the completions.

    All processes must call it together. The batches are dealt to the processes and each has its own seed, so the
    number of processes changes the result by rounding only.

    Args:
        model: The model, also as wrapped by `accelerator` (DDP, FSDP, DeepSpeed) or with a PEFT adapter.
        encoder: As the trainer encodes prompts.
        rows: Columns `prompt` (text or messages), optionally `image` or `images`, and those that the rewards read.
        rewards: Functions with TRL's signature; `None` from all of them leaves a completion out of the mean.
        max_new_tokens: Length limit of a completion, in tokens.
        batch_size: Completions generated at a time by each process.
        reward_weights: One weight per reward; 1 each by default.
        success_reward: Name of the reward that decides what is solved; the first by default.
        success_threshold: A completion to which that reward alone gives at least this is solved.
        trainer_state: The trainer's, for the rewards.
        temperature: 0 decodes greedily.
        num_generations: Completions per row; above 1 the accuracy is avg@k.
        accelerator: The trainer's; without it the evaluation runs in this process alone.
        completions_kept: Rows whose first completion is returned, in the order of `rows`.

    Returns:
        `accuracy` (share of solved completions, 0 to 1), `accuracy_interval` (its 95 % bounds), `success_reward`,
        `reward` (mean weighted reward, None if nothing was scored), `reward_error` (its standard error), `rewards`
        (name -> mean of that reward where it applies), `samples` (rows), `num_generations`, `unscored` (completions
        without a finite weighted reward), `mean_length` (tokens), `truncated` (share of completions cut at the limit),
        `tokens` (read and generated), `temperature`, `max_new_tokens` and `completions`, a list of {row, prompt,
        completion, reward, rewards, length, answer}.

    Raises:
        UserError: no rows, several completions per row under greedy decoding, no reward of the name `success_reward`,
            or a reward that failed.
    """
    if len(rows) == 0:
        raise UserError("There are no held-out rows to evaluate on; set `test_split_size` or `dataset_test_split`.")
    if num_generations > 1 and temperature <= 0:
        raise UserError(
            f"`eval_num_generations` is {num_generations} with `eval_temperature` {temperature}: greedy completions of "
            "one prompt are all the same. Set `eval_temperature` above 0, e.g. 0.6, or `eval_num_generations: 1`."
        )
    judge = Judge.of(rewards, reward_weights, success_reward, success_threshold)
    decoding = Decoding(max_new_tokens, n=num_generations, temperature=temperature, seed=seed)
    scored: list[Scored] = []
    for samples in generate(
        model, encoder, rows, decoding, batch_size=batch_size, accelerator=accelerator, description=description
    ):
        scored += score(samples, rows, encoder, judge, trainer_state=trainer_state)
    if accelerator is not None:
        scored = gather_object(scored)
    scored.sort(key=lambda one: (one.sample.index, one.sample.generation))
    return _summary(scored, rows, judge.names, num_generations, completions_kept) | {
        "success_reward": judge.names[judge.success],
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }


def _summary(
    scored: list[Scored], rows: Dataset, names: list[str], num_generations: int, completions_kept: int
) -> dict[str, Any]:
    rewards = [one.reward for one in scored if one.reward is not None]
    solved = [one.solved for one in scored]
    samples = [one.sample for one in scored]
    starts = range(0, len(scored), num_generations)
    shares = [sum(solved[start : start + num_generations]) / num_generations for start in starts]
    shown = [one for one in scored if one.sample.generation == 0][:completions_kept]
    return {
        "accuracy": sum(solved) / len(scored),
        "accuracy_interval": list(clustered(shares, num_generations)),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "reward_error": _error_of_mean(scored, num_generations),
        "rewards": {name: _mean([one.values[place] for one in scored]) for place, name in enumerate(names)},
        "samples": len(rows),
        "num_generations": num_generations,
        "unscored": len(scored) - len(rewards),
        "mean_length": sum(len(sample.ids) for sample in samples) / len(samples),
        "truncated": sum(sample.truncated for sample in samples) / len(samples),
        "tokens": sum(len(sample.ids) + len(sample.prompt_ids) for sample in samples),
        "completions": [
            {
                "row": one.sample.index,
                "prompt": as_text(rows[one.sample.index]["prompt"]),
                "completion": one.text,
                "reward": one.reward,
                "rewards": dict(zip(names, one.values, strict=True)),
                "length": len(one.sample.ids),
                "answer": rows[one.sample.index].get("answer"),
            }
            for one in shown
        ],
    }


def _error_of_mean(scored: list[Scored], num_generations: int) -> float | None:
    """Standard error of the mean reward, the prompts being drawn at random; None for fewer than two prompts."""
    starts = range(0, len(scored), num_generations)
    prompts = [_mean([one.reward for one in scored[start : start + num_generations]]) for start in starts]
    return standard_error([mean for mean in prompts if mean is not None])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
