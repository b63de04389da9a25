"""The evaluation of a run: held-out rows are answered by the model and scored with the recipe's own rewards.

It is not `Trainer.evaluate`: that reports losses and rewards of sampled rollouts, while the question here is the share
of held-out problems that the model solves before and after training, decoded as the recipe says and with a few
completions kept for reading. The random state of the training is left untouched, so a run with an evaluation gives
the same weights as one without.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import BatchEncoding, GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin, TrainerState
from trl.data_utils import is_conversational
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from hpt_trl.data.messages import as_text, images_of
from hpt_trl.data.rendering import Encoder, with_images
from hpt_trl.errors import UserError
from hpt_trl.models.decoding import neutral_decoding
from hpt_trl.models.random_state import kept_random_state
from hpt_trl.rewards.completions import (
    score_completions,
    shape_completions,
    text_tokenizer,
    weighted_reward,
)
from hpt_trl.rewards.names import distinct_names
from hpt_trl.rewards.success import is_solved, success_index
from hpt_trl.runs.intervals import clustered
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
    tokenizer = encoder.processing_class
    names = distinct_names(rewards)
    success = success_index(names, success_reward)
    weights = [1.0] * len(rewards) if reward_weights is None else list(reward_weights)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    batches = _batches(rows, num_generations, batch_size)
    records: list[dict[str, Any]] = []
    with (
        tqdm(total=len(rows) * num_generations, desc=description, unit="completion", disable=rank != 0) as bar,
        _generating(model, accelerator) as (generator, device),
        neutral_decoding(generator),
        kept_random_state(device),
    ):
        config = _generation_config(generator, tokenizer, max_new_tokens, temperature)
        for first in range(0, len(batches), world):
            # Sharded models need every process in every forward pass: the last round is filled up, not cut.
            number = min(first + rank, len(batches) - 1)
            batch = [rows[index] for index, _ in batches[number]]
            torch.manual_seed(seed + number)
            inputs = encode_prompts(encoder, batch).to(device)
            output = generator.generate(**inputs, generation_config=config)
            if first + rank < len(batches):
                padded = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
                read = [ids[mask.bool()].tolist() for ids, mask in padded]
                ids = _cut_at_end(output[:, inputs["input_ids"].shape[1] :], config.eos_token_id)
                shaped = shape_completions(tokenizer, [row["prompt"] for row in batch], read, ids)
                values = score_completions(batch, shaped, ids, rewards, trainer_state)
                texts = text_tokenizer(tokenizer).batch_decode(ids, skip_special_tokens=True)
                records += [
                    {
                        "index": index,
                        "generation": generation,
                        "completion": text,
                        "values": row_values,
                        "solved": is_solved(row_values[success], success_threshold),
                        "reward": weighted_reward(row_values, weights),
                        "length": len(completion),
                        "prompt_length": len(prompt),
                        "truncated": completion[-1] not in config.eos_token_id,
                    }
                    for (index, generation), text, row_values, prompt, completion in zip(
                        batches[number], texts, values, read, ids, strict=True
                    )
                ]
            bar.update(sum(len(batch) for batch in batches[first : first + world]))
    if accelerator is not None:
        records = gather_object(records)
    records.sort(key=lambda record: (record["index"], record["generation"]))
    return _summary(records, rows, names, num_generations, completions_kept) | {
        "success_reward": names[success],
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }


def encode_prompts(encoder: Encoder, rows: list[dict[str, Any]], *, return_tensors: str | None = "pt") -> Any:
    """Prompts as the trainers encode them: messages through the chat template, strings as they are.

    Args:
        encoder: The trainer's.
        rows: Rows with a `prompt`; conversational ones may bring `image` or `images`.
        return_tensors: `pt` for left-padded tensors (rows, longest prompt), None for lists without padding.
    """
    tokenizer = encoder.processing_class
    padding: dict[str, Any] = {"padding": True, "return_tensors": return_tensors} if return_tensors else {}
    prompts = [row["prompt"] for row in rows]
    if not is_conversational({"prompt": prompts[0]}):
        if padding:
            padding["padding_side"] = "left"
        encoded = tokenizer(text=prompts, **padding)
        encoded.pop("token_type_ids", None)
        return encoded
    if not encoder.is_processor or not any(images_of(row) for row in rows):
        encoded = BatchEncoding({"input_ids": [encoder.prompt(row) for row in rows]})
        return encoder.tokenizer.pad(encoded, padding_side="left", **padding) if padding else encoded
    if padding:
        padding = {"return_tensors": return_tensors, "processor_kwargs": {"padding": True, "padding_side": "left"}}
    return tokenizer.apply_chat_template(
        conversation=[with_images(prompt, images_of(row)) for prompt, row in zip(prompts, rows, strict=True)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **padding,
        **encoder.settings,
    )


def _batches(rows: Dataset, num_generations: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """(row index, generation) in batches of similar prompt length; the longest first, as it needs the most memory."""
    lengths = [len(as_text(prompt)) for prompt in rows["prompt"]]
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    items = [(index, generation) for index in order for generation in range(num_generations)]
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


@contextmanager
def _generating(model: torch.nn.Module, accelerator: Accelerator | None) -> Iterator[tuple[Any, torch.device]]:
    """The model in evaluation mode, unwrapped for `generate`, and its device; the former mode comes back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if accelerator is None:
                yield model, next(model.parameters()).device
            else:
                # Around the whole evaluation: autocast then keeps its low-precision copy of the weights from token to
                # token, 1.5 to 2 times faster on a CPU. A sharded model's weights must not be kept.
                sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
                with (
                    nullcontext() if sharded else accelerator.autocast(),
                    unwrap_model_for_generation(model, accelerator) as unwrapped,
                    DistributedBackend(accelerator).summon_full_params(model, recurse=False),
                ):
                    yield unwrapped, accelerator.device
    finally:
        model.train(was_training)


def _generation_config(
    model: Any, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    text = text_tokenizer(tokenizer)
    # An end-of-turn token that only the model's own generation config names ends a completion as well.
    own = model.generation_config.eos_token_id
    ends = {text.eos_token_id} | set(own if isinstance(own, list) else [own])
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature > 0 else {}
    # A sampled image token would not match the image features.
    suppressed = {"suppress_tokens": [model.config.image_token_id]} if isinstance(tokenizer, ProcessorMixin) else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        eos_token_id=sorted(token for token in ends if token is not None),
        disable_compile=True,
        **sampling,
        **suppressed,
    )


def _cut_at_end(output: torch.Tensor, ends: list[int]) -> list[list[int]]:
    """Completions up to and with their end-of-sequence token, without the padding after it."""
    completions = []
    for ids in output.tolist():
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        completions.append(ids if end is None else ids[: end + 1])
    return completions


def _summary(
    records: list[dict[str, Any]], rows: Dataset, names: list[str], num_generations: int, completions_kept: int
) -> dict[str, Any]:
    scored = [record["reward"] for record in records if record["reward"] is not None]
    solved = [record["solved"] for record in records]
    shares = [
        sum(solved[start : start + num_generations]) / num_generations
        for start in range(0, len(solved), num_generations)
    ]
    shown = [record for record in records if record["generation"] == 0][:completions_kept]
    return {
        "accuracy": sum(solved) / len(records),
        "accuracy_interval": list(clustered(shares, num_generations)),
        "reward": sum(scored) / len(scored) if scored else None,
        "reward_error": _error_of_mean(records, num_generations),
        "rewards": {name: _mean([record["values"][place] for record in records]) for place, name in enumerate(names)},
        "samples": len(rows),
        "num_generations": num_generations,
        "unscored": len(records) - len(scored),
        "mean_length": sum(record["length"] for record in records) / len(records),
        "truncated": sum(record["truncated"] for record in records) / len(records),
        "tokens": sum(record["length"] + record["prompt_length"] for record in records),
        "completions": [
            {
                "row": record["index"],
                "prompt": as_text(rows[record["index"]]["prompt"]),
                "completion": record["completion"],
                "reward": record["reward"],
                "rewards": dict(zip(names, record["values"], strict=True)),
                "length": record["length"],
                "answer": rows[record["index"]].get("answer"),
            }
            for record in shown
        ],
    }


def _error_of_mean(records: list[dict[str, Any]], num_generations: int) -> float | None:
    """Standard error of the mean reward, the prompts being drawn at random; None for fewer than two prompts."""
    starts = range(0, len(records), num_generations)
    prompts = [_mean([record["reward"] for record in records[start : start + num_generations]]) for start in starts]
    return standard_error([mean for mean in prompts if mean is not None])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
