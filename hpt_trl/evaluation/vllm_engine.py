"""Completions by vLLM in this process, in the order of the rows; vLLM batches them itself."""

from collections.abc import Collection, Iterator
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Item, Sample, encode_prompts
from hpt_trl.evaluation.measuring import Task

# Completions after which those that are there are written down.
_AT_ONCE = 1024


def draw(
    model: str, task: Task, settings: dict[str, Any], *, adapter: str | None, done: Collection[Item]
) -> Iterator[list[Sample]]:
    """Draws the completions that are not there yet.

    Each has a seed of its own, so a stopped evaluation goes on to the same completions.

    Args:
        model: Folder or Hub id.
        settings: Of `vllm.LLM`.
        adapter: Folder of a LoRA adapter over the model.
        done: Completions that are there.

    Raises:
        UserError: the rows have images, or the adapter's rank is more than vLLM takes.
    """
    if task.encoder.is_processor:
        raise UserError("vllm: evaluations of vision-language models are drawn by transformers; drop the line.")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    there, decoding = frozenset(done), task.decoding
    if adapter is not None:
        settings = settings | {"enable_lora": True, "max_lora_rank": _rank_of(adapter)}
    engine = LLM(model=model, **settings)
    request = None if adapter is None else LoRARequest("adapter", 1, adapter)
    items = [(index, number) for index in range(len(task.rows)) for number in range(decoding.n)]
    missing = [item for item in items if item not in there]
    for start in range(0, len(missing), _AT_ONCE):
        batch = missing[start : start + _AT_ONCE]
        rows = [task.rows[index] for index, _ in batch]
        prompts = [list(ids) for ids in encode_prompts(task.encoder, rows, return_tensors=None)["input_ids"]]
        parameters = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k,
                min_p=decoding.min_p or 0.0,
                repetition_penalty=decoding.repetition_penalty,
                max_tokens=decoding.max_new_tokens,
                stop=list(decoding.stop) or None,
                stop_token_ids=list(task.end_ids),
                seed=decoding.seed + index * decoding.n + number,
            )
            for index, number in batch
        ]
        inputs: list[Any] = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = engine.generate(inputs, parameters, lora_request=request)
        yield [
            Sample(index, number, ids, list(output.outputs[0].token_ids), output.outputs[0].finish_reason == "length")
            for (index, number), ids, output in zip(batch, prompts, outputs, strict=True)
        ]


def _rank_of(adapter: str) -> int:
    """The least rank among those that vLLM has kernels for."""
    from peft import PeftConfig

    rank = int(PeftConfig.from_pretrained(adapter).r)  # type: ignore[attr-defined]
    for allowed in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= allowed:
            return allowed
    raise UserError(f"vllm: the adapter {adapter} has rank {rank}, vLLM takes at most 512; merge it (`hpt-trl merge`).")
