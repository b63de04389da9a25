"""The evaluation of a run: held-out rows are answered by the model and scored with the recipe's own rewards.

It is not `Trainer.evaluate`: that reports losses and rewards of sampled rollouts, while the question here is the share
of held-out problems that the model solves before and after training, decoded as the recipe says and with a few
completions kept for reading. The random state of the training is left untouched, so a run with an evaluation gives
the same weights as one without.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerState

from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.trajectories import FOLDER, IMAGES
from hpt_trl.errors import UserError
from hpt_trl.evaluation.acted import act
from hpt_trl.evaluation.generating import Decoding, generate
from hpt_trl.evaluation.measuring import KEPT_ROLLOUTS, keep_rollouts
from hpt_trl.evaluation.scoring import Judge, Scored, score
from hpt_trl.evaluation.summary import line_of, mean, summarised, with_interval
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
    acting: Acting | None = None,
    rollouts_kept: Path | None = None,
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
        acting: Begins rollouts in an environment; without it rows are answered in one turn.
        rollouts_kept: Folder that gets the first rollouts in the environment; None leaves them out.

    Returns:
        `accuracy` (share of solved completions, 0 to 1), `accuracy_interval` (its 95 % bounds), what
        `hpt_trl.evaluation.summary.summarised` finds, `reward_error` (the standard error of `reward`), `samples`
        (rows), `num_generations`, `temperature`, `max_new_tokens` and `completions`, lines of `line_of`.

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
    common: dict[str, Any] = {"batch_size": batch_size, "accelerator": accelerator, "description": description}
    if acting is None:
        batches = generate(model, encoder, rows, decoding, **common)
    else:
        images = None if rollouts_kept is None else rollouts_kept / FOLDER / IMAGES
        batches = act(model, acting, rows, decoding, images=images, kept=KEPT_ROLLOUTS, **common)
    for samples in batches:
        scored += score(samples, rows, encoder, judge, trainer_state=trainer_state)
    if accelerator is not None:
        scored = gather_object(scored)
    scored.sort(key=lambda one: (one.sample.index, one.sample.generation))
    if rollouts_kept is not None and (accelerator is None or accelerator.is_main_process):
        step = None if trainer_state is None else trainer_state.global_step
        mode = "_".join(["eval", *description.lower().split()[:1]])
        keep_rollouts(rollouts_kept, scored, rows, judge.names, mode=mode, step=step)
    solved = [one.solved for one in scored]
    starts = range(0, len(scored), num_generations)
    shares = [fmean(solved[start : start + num_generations]) for start in starts]
    rewards_of_rows = [mean([one.reward for one in scored[start : start + num_generations]]) for start in starts]
    shown = [one for one in scored if one.sample.generation == 0][:completions_kept]
    return {
        **with_interval("accuracy", shares, num_generations),
        **summarised(scored, judge),
        # Of the mean over rows drawn at random.
        "reward_error": standard_error([reward for reward in rewards_of_rows if reward is not None]),
        "samples": len(rows),
        "num_generations": num_generations,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "completions": [line_of(one, rows[one.sample.index], judge.names) for one in shown],
    }
