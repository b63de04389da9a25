"""The likelihood of the rows' own texts under a model: nats per token, and what follows from it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import selective_log_softmax

from hpt_trl.data.rendering import Encoded
from hpt_trl.evaluation.intervals import bootstrap
from hpt_trl.progress import Bar

# Tokens that are read at once where a model takes any number of them, or very many.
LONGEST = 2048


def pieces(encoded: Encoded, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a row into pieces of at most `longest` tokens: ids, and which of them are scored.

    Each piece begins with the last token of the one before, so that every token but the row's first is scored once; a
    token near the beginning of a piece has little before it, which makes a long text look less likely than it is.
    """
    ids = encoded.ids
    for start in range(0, max(len(ids) - 1, 1), longest - 1):
        stop = min(start + longest, len(ids))
        scored = [0, *encoded.trained[start + 1 : stop]]
        if any(scored):
            yield ids[start:stop], scored


def scored_bytes(text: str, row: Encoded, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes (UTF-8) of a document's text that its scored tokens write.

    A row's first token is not scored: of tokenizers that begin texts with a token of their own the whole text is, of
    others all that comes after the characters that the first token writes whole.

    Args:
        row: The text as `Encoder.document` encodes it.
    """
    if not any(row.trained[1:]):
        return 0
    # A part of a character is decoded to U+FFFD.
    first = str(tokenizer.decode(row.ids[:1], skip_special_tokens=True)).rstrip("\ufffd")
    return len(text[len(first) :].encode())


def measure_perplexity(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    sizes: Sequence[int] | None,
    *,
    longest: int,
    batch_size: int,
    pad_token_id: int,
    accelerator: Accelerator | None = None,
    description: str = "Perplexity",
) -> dict[str, Any]:
    """Scores rows; all processes must call it together.

    Args:
        model: The model, also as wrapped by `accelerator`.
        rows: Encoded rows; the tokens that have a loss are scored.
        sizes: Bytes of what is scored of each, from `scored_bytes`, for bits per byte.
        longest: Tokens that are read at once.
        batch_size: Pieces read at a time by each process.

    Returns:
        `perplexity` (exp of the mean loss) and `loss` (nats per token, over all tokens alike), each with the 95 %
        bootstrap interval over rows, `scored_tokens`, and with `sizes` `bits_per_byte`.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    parts = [(number, *piece) for number, row in enumerate(rows) for piece in pieces(row, longest)]
    # The longest first: what does not fit into memory fails at once.
    parts.sort(key=lambda part: (-len(part[1]), part[0]))
    batches = [parts[start : start + batch_size] for start in range(0, len(parts), batch_size)]
    found: list[tuple[int, float, int]] = []
    was_training = model.training
    model.eval()
    with (
        torch.no_grad(),
        _autocast(accelerator),
        Bar(len(parts), description, "pieces", shown=rank == 0) as bar,
    ):
        device = accelerator.device if accelerator else next(model.parameters()).device
        for first in range(0, len(batches), world):
            # Sharded models need every process in every forward pass.
            batch = batches[min(first + rank, len(batches) - 1)]
            losses = _losses(model, batch, pad_token_id, device)
            if first + rank < len(batches):
                found += [(number, loss, sum(scored)) for (number, _, scored), loss in zip(batch, losses, strict=True)]
            bar.update(sum(len(one) for one in batches[first : first + world]))
    model.train(was_training)
    if accelerator is not None:
        found = gather_object(found)
    totals = [(0.0, 0)] * len(rows)
    for number, loss, count in sorted(found):
        totals[number] = totals[number][0] + loss, totals[number][1] + count
    return _summary(totals, sizes)


def _summary(totals: list[tuple[float, int]], sizes: Sequence[int] | None) -> dict[str, Any]:
    scored = [total for total in totals if total[1]]
    nats, tokens = math.fsum(loss for loss, _ in scored), sum(count for _, count in scored)
    low, high = bootstrap(scored)
    result: dict[str, Any] = {
        "perplexity": math.exp(nats / tokens),
        "perplexity_interval": [math.exp(low), math.exp(high)],
        "loss": nats / tokens,
        "loss_interval": [low, high],
        "scored_tokens": tokens,
    }
    if written := sum(sizes or []):
        result["bits_per_byte"] = nats / math.log(2) / written
    return result


def _losses(
    model: torch.nn.Module, batch: list[tuple[int, list[int], list[int]]], pad_token_id: int, device: torch.device
) -> list[float]:
    """Of each piece the sum of its scored tokens' losses, in nats."""
    longest = max(len(ids) for _, ids, _ in batch)
    ids = torch.full((len(batch), longest), pad_token_id)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, (_, piece, marks) in enumerate(batch):
        ids[place, : len(piece)] = torch.tensor(piece)
        mask[place, : len(piece)] = 1
        scored[place, : len(piece)] = torch.tensor(marks)
    ids, mask, scored = ids.to(device), mask.to(device), scored.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = -selective_log_softmax(logits[:, :-1].float(), ids[:, 1:]).double()
    return (losses * scored[:, 1:]).sum(-1).tolist()


def _autocast(accelerator: Accelerator | None) -> Any:
    sharded = accelerator is not None and accelerator.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
    )
    return nullcontext() if accelerator is None or sharded else accelerator.autocast()
