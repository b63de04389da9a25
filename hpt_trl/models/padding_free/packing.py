"""A padded batch as one row of tokens: rows end to end, without padding, common beginnings once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hpt_trl.models.padding_free.attention import PackedRows, Span


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens.

    Attributes:
        members: indices of the rows.
        shared: tokens that they have in common; 0 for a row by itself.
    """

    members: tuple[int, ...]
    shared: int


def common_beginnings(rows: Sequence[list[int]]) -> list[Group]:
    """Group rows by what they begin with, so that as few tokens as possible are left when each group's is kept once.

    In the order of the tokens, rows of a common beginning are neighbours; a row joins the group before it where that
    saves more tokens than the group saves without it.
    """
    groups: list[Group] = []
    order = sorted((index for index, row in enumerate(rows) if row), key=lambda index: rows[index])
    for before, index in zip([None, *order], order, strict=False):
        if before is not None:
            last = groups[-1]
            pairs = zip(rows[before], rows[index], strict=False)
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            shared = min(alike, last.shared) if len(last.members) > 1 else alike
            if len(last.members) * shared > (len(last.members) - 1) * last.shared:
                groups[-1] = Group((*last.members, index), shared)
                continue
        groups.append(Group((index,), 0))
    return groups


@dataclass(frozen=True)
class Packed:
    """One row of tokens in place of a padded batch.

    Attributes:
        source: (tokens,) where each token stands in the batch, rows end to end.
        position_ids: (1, tokens) place of each token in its row.
        rows: what attention needs to know of it.
    """

    source: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, "1 tokens"]
    rows: PackedRows


def pack(
    input_ids: Int[Tensor, "rows width"],
    attention_mask: Int[Tensor, "rows width"],
    asked: Bool[Tensor, "rows width"],
    *,
    whole: bool = False,
    shared: bool = True,
) -> Packed:
    """Lay the rows of a batch end to end.

    What stands behind the last position that is asked for is left out: nothing depends on it.

    Args:
        attention_mask: 1 where there is a token.
        asked: positions whose hidden state is asked for; those without a token are not.
        whole: keep each token of each row, also those that nothing depends on and those that rows share.
        shared: keep what rows begin with once. Dropout would be the same for all of them.

    At least one position with a token has to be asked for.
    """
    device = input_ids.device
    used = attention_mask.bool()
    asked = asked & used
    if not whole:
        used = used & asked.flip(1).cumsum(1).flip(1).bool()
    width, listed = input_ids.size(1), used.cpu()
    columns = [row.nonzero().flatten().tolist() for row in listed]
    tokens = [[row[place] for place in places] for row, places in zip(input_ids.tolist(), columns, strict=True)]
    alone = [Group((index,), 0) for index, row in enumerate(tokens) if row]
    source: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    places = torch.zeros(input_ids.shape, dtype=torch.long)

    def put(index: int, begin: int, end: int) -> int:
        """Append tokens of a row; where they now begin."""
        start = len(source)
        source.extend(index * width + column for column in columns[index][begin:end])
        positions.extend(range(begin, end))
        return start

    for group in alone if whole or not shared else common_beginnings(tokens):
        prefix = (0, 0)
        if group.shared:
            start = put(group.members[0], 0, group.shared)
            prefix = (start, start + group.shared)
            spans.append(Span(*prefix))
        for index in group.members:
            start = put(index, group.shared, len(tokens[index]))
            if len(source) > start:
                spans.append(Span(start, len(source), *prefix))
            packed = [*range(*prefix), *range(start, len(source))]
            places[index, columns[index]] = torch.tensor(packed)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    rows = PackedRows(spans, places[asked.cpu()].to(device), asked, batch)
    return Packed(
        source=torch.tensor(source, device=device),
        position_ids=torch.tensor([positions], device=device),
        rows=rows,
    )


def laid_out(
    input_ids: Int[Tensor, "1 tokens"], position_ids: Int[Tensor, "1 tokens"], asked: Bool[Tensor, "1 tokens"]
) -> Packed:
    """Rows that lie end to end already, each where the positions begin anew."""
    count, device = input_ids.size(1), input_ids.device
    starts = [0, *((position_ids[0].diff() != 1).nonzero().flatten() + 1).tolist(), count]
    batch = {"input_ids": input_ids, "position_ids": position_ids}
    spans = [Span(start, end) for start, end in pairwise(starts)]
    rows = PackedRows(spans, asked[0].nonzero().flatten(), asked, batch)
    return Packed(torch.arange(count, device=device), position_ids, rows)
