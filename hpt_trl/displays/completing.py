"""What a model writes: its completions of a few prompts, drawn as an evaluation draws them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin, Trainer

from hpt_trl.data.messages import as_text
from hpt_trl.data.rendering import Encoder
from hpt_trl.displays.console import without_bars
from hpt_trl.displays.samples import Completions
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Decoding, generate
from hpt_trl.models.loading import load_tokenizer, model_exists, parts_of
from hpt_trl.runs.evaluating import load_named
from hpt_trl.runs.quiet import quiet


def complete(
    model: str | Path | Trainer | torch.nn.Module,
    prompts: Sequence[str | list[dict[str, Any]]],
    *,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    n: int = 1,
    seed: int = 0,
    batch_size: int = 16,
) -> Completions:
    """Has a model complete prompts.

    Args:
        model: A name or folder, also of an adapter; a trainer; or a model with its `tokenizer`.
        prompts: Texts to go on with, or messages to answer.
        chat: Whether texts are asked as a user's message.
        max_new_tokens: Length limit of a completion, in tokens.
        temperature: 0 decodes greedily.
        n: Completions of each prompt.
        seed: Of the draws.
        batch_size: Completions drawn at a time.

    Returns:
        The completions, without special tokens; a notebook shows them as a table.

    Raises:
        UserError: there is no such model, a model without its tokenizer, or several greedy completions.
    """
    if n > 1 and temperature <= 0:
        raise UserError(
            f"{n} greedy completions of a prompt are all the same; write `n=1`, or a `temperature` above 0."
        )
    asked = [[{"role": "user", "content": one}] if chat and isinstance(one, str) else one for one in prompts]
    # The bars of loading and drawing say nothing of so few prompts.
    with quiet(), without_bars():
        loaded, own, name = _loaded(model)
        encoder = Encoder(own if tokenizer is None else tokenizer)
        rows = Dataset.from_list([{"prompt": prompt} for prompt in asked])
        decoding = Decoding(max_new_tokens, n=n, temperature=temperature, seed=seed)
        found = sorted(
            (sample for batch in generate(loaded, encoder, rows, decoding, batch_size=batch_size) for sample in batch),
            key=lambda sample: (sample.index, sample.generation),
        )
    texts: list[list[str]] = [[] for _ in asked]
    for sample in found:
        texts[sample.index].append(str(encoder.tokenizer.decode(sample.ids, skip_special_tokens=True)))
    return Completions(name, [as_text(prompt) for prompt in asked], texts)


def _loaded(model: Any) -> tuple[torch.nn.Module, Any, str]:
    """The model, its tokenizer (None where it has to be named), and what it is called."""
    if isinstance(model, Trainer):
        return model.accelerator.unwrap_model(model.model), model.processing_class, "the trainer's model"
    if isinstance(model, torch.nn.Module):
        return model, None, "the model"
    name = str(model)
    if parts_of(name).adapter is None:
        model_exists(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_named(name, device, dtype="auto"), load_tokenizer(name), name
