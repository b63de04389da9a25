"""Completions of rows by a model, in batches, on one process or many.

The batches and the seed of each follow from the rows and the settings alone: the number of processes, and what was
there before a run was stopped, change nothing but the rounding. The random state of a training is left untouched.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import (
    BatchEncoding,
    GenerationConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.data_utils import is_conversational
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from hpt_trl.data.messages import as_text, images_of
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_images import with_images
from hpt_trl.models.decoding import neutral_decoding
from hpt_trl.models.generating.leaving import finished_rows_leave
from hpt_trl.models.random_state import kept_random_state
from hpt_trl.progress import Bar
from hpt_trl.rewards.completions import text_tokenizer


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn.

    Attributes:
        max_new_tokens: Length limit of a completion, in tokens.
        n: Completions per row.
        temperature: 0 decodes greedily.
        top_p: Tokens are drawn from the most likely ones that together have this probability; 1 for all.
        top_k: Tokens are drawn from so many of the most likely ones; 0 for all.
        min_p: Tokens are drawn from those with at least this share of the most likely one's probability.
        repetition_penalty: 1 for none.
        stop: Texts that end a completion; it is cut before the first of them.
        seed: Of the draws.
    """

    max_new_tokens: int
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One completion.

    Attributes:
        index: Place of its row among the rows.
        generation: Its number among those of the row, from 0.
        prompt_ids: Tokens of the prompt, without padding.
        ids: Tokens of the completion, up to and with the one that ends it.
        truncated: Whether it was cut at the length limit.
        played: In an environment: what `hpt_trl.environments.trajectories.recorded` says of the rollout; `ids` then
            holds what was shown as well.
    """

    index: int
    generation: int
    prompt_ids: list[int]
    ids: list[int]
    truncated: bool
    played: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Tokens that the model drew."""
        return len(self.ids) if self.played is None else self.played["drawn"]


# A row's place and the number of a completion of it.
Item = tuple[int, int]


def generate(
    model: torch.nn.Module,
    encoder: Encoder,
    rows: Dataset,
    decoding: Decoding,
    *,
    batch_size: int,
    accelerator: Accelerator | None = None,
    done: Collection[Item] = (),
    description: str = "Evaluation",
) -> Iterator[list[Sample]]:
    """Answers rows; all processes must go through it together, each gets the completions of its own batches.

    Args:
        model: The model, also as wrapped by `accelerator` (DDP, FSDP, DeepSpeed) or with a PEFT adapter.
        encoder: As the trainer encodes prompts.
        rows: Column `prompt` (text or messages), optionally `image` or `images`.
        batch_size: Completions generated at a time by each process.
        accelerator: The trainer's; without it this process is alone.
        done: Completions that are there already; a batch of nothing else is left out. The same for all processes.
        description: Of the progress bar.
    """
    tokenizer = encoder.processing_class
    stopping = {}
    if decoding.stop:
        criterion = StopStringCriteria(text_tokenizer(tokenizer), list(decoding.stop))
        stopping = {"stopping_criteria": StoppingCriteriaList([criterion])}
    for own in rounds(
        model, tokenizer, rows, decoding, batch_size=batch_size, accelerator=accelerator, done=done, bar=description
    ):
        inputs = encode_prompts(encoder, [rows[index] for index, _ in own.items]).to(own.device)
        output = own.model.generate(**inputs, generation_config=own.config, **stopping)
        if own.wanted:
            yield _samples(own.items, inputs, output, own.config, encoder, decoding)


@dataclass(frozen=True)
class Round:
    """What a process has to answer while the others answer theirs.

    Attributes:
        items: The batch.
        wanted: Whether it is the process's own; sharded models need every process in every forward pass, so that those
            without a batch of their own answer the last one once more.
        model: In evaluation mode, unwrapped for `generate`.
        config: How it draws.
        device: The model's.
    """

    items: list[Item]
    wanted: bool
    model: Any
    config: GenerationConfig
    device: torch.device


def rounds(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    rows: Dataset,
    decoding: Decoding,
    *,
    batch_size: int,
    accelerator: Accelerator | None,
    done: Collection[Item],
    bar: str,
    unit: str = "completions",
) -> Iterator[Round]:
    """The batches of this process, each with its own seed set; see `generate`.

    Args:
        bar: Description of the progress bar.
        unit: What it counts.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    there = frozenset(done)
    batches = batches_of(rows, decoding.n, batch_size)
    pending = [number for number, batch in enumerate(batches) if not there.issuperset(batch)]
    total = sum(len(batches[number]) for number in pending)
    with (
        Bar(total, bar, unit, shown=rank == 0) as progress,
        _generating(model, accelerator) as (generator, device),
        neutral_decoding(generator),
        kept_random_state(device),
    ):
        config = generation_config(generator, tokenizer, decoding)
        for first in range(0, len(pending), world):
            number = pending[min(first + rank, len(pending) - 1)]
            torch.manual_seed(decoding.seed + number)
            yield Round(batches[number], first + rank < len(pending), generator, config, device)
            progress.update(sum(len(batches[number]) for number in pending[first : first + world]))


def batches_of(rows: Dataset, n: int, batch_size: int) -> list[list[Item]]:
    """Completions in batches of similar prompt length; the longest first, as it needs the most memory."""
    lengths = [len(as_text(prompt)) for prompt in rows["prompt"]]
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    items = [(index, generation) for index in order for generation in range(n)]
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """A completion's text before the first of the texts that end it."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else text


def encode_prompts(encoder: Encoder, rows: list[dict[str, Any]], *, return_tensors: str | None = "pt") -> Any:
    """Prompts as the trainers encode them: messages through the chat template, strings as they are.

    Args:
        encoder: The trainer's.
        rows: Rows with a `prompt`; conversational ones may bring `image` or `images`.
        return_tensors: `pt` for left-padded tensors (rows, longest prompt), None for lists without padding.
    """
    padding: dict[str, Any] = {"padding": True, "return_tensors": return_tensors} if return_tensors else {}
    if not is_conversational(rows[0]) or not encoder.is_processor or not any(images_of(row) for row in rows):
        encoded = BatchEncoding({"input_ids": [encoder.prompt(row) for row in rows]})
        return encoder.tokenizer.pad(encoded, padding_side="left", **padding) if padding else encoded
    if padding:
        padding = {"return_tensors": return_tensors, "processor_kwargs": {"padding": True, "padding_side": "left"}}
    return encoder.processing_class.apply_chat_template(
        conversation=[with_images(row["prompt"], images_of(row)) for row in rows],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **padding,
        **encoder.settings,
    )


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those that only the model's own generation config names.

    Args:
        model: Has a `generation_config`.
    """
    own = model.generation_config.eos_token_id
    ends = {text_tokenizer(tokenizer).eos_token_id} | set(own if isinstance(own, list) else [own])
    return sorted(token for token in ends if token is not None)


def _samples(
    items: list[Item], inputs: Any, output: torch.Tensor, config: GenerationConfig, encoder: Encoder, decoding: Decoding
) -> list[Sample]:
    padded = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    read = [ids[mask.bool()].tolist() for ids, mask in padded]
    ends = config.eos_token_id
    completions = cut_at_end(output[:, inputs["input_ids"].shape[1] :], ends)
    if decoding.stop:
        completions = [_without_padding(ids, config.pad_token_id) for ids in completions]
    return [
        Sample(index, generation, prompt, ids, _is_truncated(ids, ends, encoder, decoding))
        for (index, generation), prompt, ids in zip(items, read, completions, strict=True)
    ]


def _is_truncated(ids: list[int], ends: list[int], encoder: Encoder, decoding: Decoding) -> bool:
    if ids[-1] in ends:
        return False
    text = encoder.tokenizer.decode(ids, skip_special_tokens=True) if decoding.stop else ""
    return not any(word in text for word in decoding.stop)


@contextmanager
def _generating(model: torch.nn.Module, accelerator: Accelerator | None) -> Iterator[tuple[Any, torch.device]]:
    """The model in evaluation mode, unwrapped for `generate`, and its device; the former mode comes back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if accelerator is None:
                with finished_rows_leave(model, sharded=False):
                    yield model, next(model.parameters()).device
            else:
                # Around the whole evaluation: autocast then keeps its low-precision copy of the weights from token to
                # token, 1.5 to 2 times faster on a CPU. A sharded model's weights must not be kept.
                kind = accelerator.distributed_type
                foreign = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
                sharded = kind == DistributedType.FSDP or is_deepspeed_zero3_enabled()
                with (
                    nullcontext() if foreign else accelerator.autocast(),
                    unwrap_model_for_generation(model, accelerator) as unwrapped,
                    DistributedBackend(accelerator).summon_full_params(model, recurse=False),
                    finished_rows_leave(unwrapped, sharded=sharded),
                ):
                    yield unwrapped, accelerator.device
    finally:
        model.train(was_training)


def generation_config(
    model: Any, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, decoding: Decoding
) -> GenerationConfig:
    """How `model.generate` draws a completion: by these settings alone, and up to the model's end tokens.

    Args:
        model: Has a `config` and a `generation_config`.
    """
    text = text_tokenizer(tokenizer)
    settings: dict[str, Any] = {}
    if decoding.temperature > 0:
        settings = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
        settings |= {} if decoding.min_p is None else {"min_p": decoding.min_p}
    if decoding.repetition_penalty != 1:
        settings["repetition_penalty"] = decoding.repetition_penalty
    # A sampled image token would not match the image features.
    suppressed = {"suppress_tokens": [model.config.image_token_id]} if isinstance(tokenizer, ProcessorMixin) else {}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.temperature > 0,
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        eos_token_id=end_ids(model, tokenizer),
        disable_compile=True,
        **settings,
        **suppressed,
    )


def cut_at_end(output: torch.Tensor, ends: list[int]) -> list[list[int]]:
    """Completions up to and with their end-of-sequence token, without the padding after it."""
    completions = []
    for ids in output.tolist():
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        completions.append(ids if end is None else ids[: end + 1])
    return completions


def _without_padding(ids: list[int], pad: int | None) -> list[int]:
    """A completion that a stop text ended, without the padding that waited for the others of its batch."""
    last = next((place for place in range(len(ids), 1, -1) if ids[place - 1] != pad), 1)
    return ids[:last]
