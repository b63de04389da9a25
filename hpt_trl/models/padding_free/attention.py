"""Attention over rows that lie end to end in one row of tokens, some behind a beginning that they share.

It stands in transformers' list of attention functions in the place of the one by scaled dot products, which it calls:
for each row where a forward pass has packed ones, else as ever. So no model's config says anything else than it did.
The rows come with the keyword arguments of the forward pass, which gradient checkpointing keeps for its second one.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The `attn_implementation` that knows packed rows; others have kernels, or terms, of their own.
IMPLEMENTATION = "sdpa"
# The keyword under which a forward pass has its `PackedRows`.
ROWS = "packed_rows"

# What rows of one call of the kernel may waste on their unlike lengths: a share of their own work, and pairs of tokens
# that are not worth a further call.
_WASTE, _LITTLE = 0.25, 4096


class Span(NamedTuple):
    """Where a row's own tokens lie, and the beginning that it shares with others: two half-open ranges."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0

    @property
    def queries(self) -> int:
        return self.end - self.start

    @property
    def before(self) -> int:
        return self.prefix_end - self.prefix_start

    @property
    def keys(self) -> int:
        return self.before + self.queries

    @property
    def pairs(self) -> int:
        """Pairs of tokens of which attention is computed."""
        return self.queries * self.keys


class _Batch:
    """Spans of like lengths, which one call of the kernel takes together.

    Attributes:
        queries: (rows, most queries) indices of tokens; behind a row's end that of any token.
        keys: (rows, most keys) the same of its keys.
        before: (rows,) keys before a row's first query.
    """

    def __init__(self, spans: Sequence[Span]):
        self.spans = spans
        wide, high = max(span.queries for span in spans), max(span.keys for span in spans)
        self.queries = torch.zeros(len(spans), wide, dtype=torch.long)
        self.keys = torch.zeros(len(spans), high, dtype=torch.long)
        for row, span in enumerate(spans):
            own = torch.arange(span.start, span.end)
            self.queries[row, : span.queries] = own
            self.keys[row, : span.keys] = torch.cat([torch.arange(span.prefix_start, span.prefix_end), own])
        self.before = torch.tensor([span.before for span in spans])
        # Of rows that see themselves alone, causality hides what stands behind their end.
        self.causal = not bool(self.before.any())

    def to(self, device: torch.device) -> None:
        self.queries, self.keys, self.before = (x.to(device) for x in (self.queries, self.keys, self.before))

    def seen(self, window: int | None) -> Bool[Tensor, "rows 1 queries keys"] | None:
        """Which keys a query sees; None where the kernel's own causality says it.

        Args:
            window: of sliding attention: how many keys, its own among them, a query sees.
        """
        if self.causal and (window is None or window >= self.keys.size(1)):
            return None
        device = self.queries.device
        place = self.before[:, None, None] + torch.arange(self.queries.size(1), device=device)[:, None]
        key = torch.arange(self.keys.size(1), device=device)
        seen = key <= place
        if window is not None:
            seen &= key > place - window
        return seen.unsqueeze(1)


class PackedRows:
    """Rows that lie end to end in one row of tokens.

    A plain class: what trainers do with the tensors of dicts, tuples and dataclasses on their way is not done to it.

    Attributes:
        spans: of all tokens, in their order.
        kept: (asked,) index of each token whose hidden state is asked for, row after row of the batch; of tokens that
            rows share the same index several times.
        asked: (rows, width) where these stand in the batch that the rows were laid out from.
        batch: of a trunk's forward pass: that batch.
        are_tried: a mask of a layer's own, which would be lost, is an error.
    """

    are_tried = False

    def __init__(
        self,
        spans: Sequence[Span],
        kept: Int[Tensor, " asked"],
        asked: Bool[Tensor, "rows width"],
        batch: dict[str, Tensor],
    ):
        self.spans, self.kept, self.asked, self.batch = spans, kept, asked, batch
        self._batches = [_Batch(chosen) for chosen in _of_like_lengths(spans)]
        where: dict[int, int] = {}
        widths = [together.queries.numel() for together in self._batches]
        for together, first in zip(self._batches, accumulate(widths, initial=0), strict=False):
            wide = together.queries.size(1)
            for row, span in enumerate(together.spans):
                where[span.start] = first + row * wide
            together.to(kept.device)
        self._order = torch.cat([torch.arange(span.queries) + where[span.start] for span in spans]).to(kept.device)
        self._seen: dict[int | None, list[Tensor | None]] = {}

    @property
    def tokens(self) -> int:
        return self.spans[-1].end

    def spread(self, values: Float[Tensor, "1 asked *features"]) -> Float[Tensor, "rows width *features"]:
        """Values of the positions that were asked for, where these stand in the batch; 0 elsewhere."""
        asked = self.asked.view(*self.asked.shape, *(1 for _ in values.shape[2:]))
        return values.new_zeros(*self.asked.shape, *values.shape[2:]).masked_scatter(asked, values)

    def attend(
        self,
        module: torch.nn.Module,
        query: Float[Tensor, "1 heads tokens dim"],
        key: Float[Tensor, "1 groups tokens dim"],
        value: Float[Tensor, "1 groups tokens dim"],
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
        """Attention of each row to itself and what it shares.

        Args:
            attention_mask: that of the forward pass, which is not used.
            kwargs: of transformers' attention by scaled dot products.

        Raises:
            ValueError: of rows that are tried, the module has a mask of its own, or its window in the mask alone.
        """
        if self.are_tried:
            _check_mask(module, attention_mask, sliding_window)
        if sliding_window not in self._seen:
            self._seen[sliding_window] = [batch.seen(sliding_window) for batch in self._batches]
        found = []
        for batch, seen in zip(self._batches, self._seen[sliding_window], strict=True):
            taken = (_taken(query, batch.queries), _taken(key, batch.keys), _taken(value, batch.keys))
            output, _ = sdpa_attention_forward(module, *taken, seen, is_causal=seen is None, **kwargs)
            found.append(output.flatten(0, 1))
        return torch.cat(found).index_select(0, self._order).unsqueeze(0), None


def _check_mask(module: Any, attention_mask: Tensor | None, window: int | None) -> None:
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError("its attention has a mask of its own")
    if window is None and _window_of(module):
        raise ValueError("its attention has its window in the mask alone")


def _window_of(module: Any) -> int | None:
    """How many keys a query of an attention module sees, by its config; None: all before it."""
    config = getattr(module, "config", None)
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    index = getattr(module, "layer_idx", None)
    if kinds is None or index is None:
        return window if getattr(config, "use_sliding_window", True) else None
    return window if kinds[index] == "sliding_attention" else None


def _taken(
    states: Float[Tensor, "1 heads tokens dim"], places: Int[Tensor, "rows width"]
) -> Float[Tensor, "rows heads width dim"]:
    taken = states[0].index_select(1, places.flatten())
    return taken.unflatten(1, places.shape).transpose(0, 1)


def _of_like_lengths(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans for one call of the kernel each: with a beginning before them or without, and of like lengths."""
    batches: list[list[Span]] = []
    for shared in (False, True):
        wide = high = pairs = 0
        chosen = sorted((span for span in spans if bool(span.before) == shared), key=lambda span: -span.pairs)
        for number, span in enumerate(chosen):
            wider, higher = max(wide, span.queries), max(high, span.keys)
            rows = len(batches[-1]) + 1 if number else 1
            wasted = rows * wider * higher - pairs - span.pairs
            if number == 0 or wasted > max(_WASTE * (pairs + span.pairs), _LITTLE):
                batches.append([])
                wider, higher, pairs = span.queries, span.keys, 0
            batches[-1].append(span)
            wide, high, pairs = wider, higher, pairs + span.pairs
    return batches


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    rows: PackedRows | None = kwargs.pop(ROWS, None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    return rows.attend(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _attention)
