"""Rows laid end to end: what is left of a batch, where it goes, and what attention sees."""

import random

import pytest
import torch
from torch import nn

from hpt_trl.models.padding_free.attention import PackedRows, Span, _of_like_lengths
from hpt_trl.models.padding_free.packing import Group, common_beginnings, laid_out, pack


def groups_of(*rows: str) -> list[Group]:
    return common_beginnings([[ord(letter) for letter in row] for row in rows])


def test_rows_that_begin_alike_are_one_group():
    assert groups_of("abcx", "abcy", "zz") == [Group((0, 1), 3), Group((2,), 0)]
    assert groups_of("ab", "ab") == [Group((0, 1), 2)]
    assert groups_of("ab", "abc", "") == [Group((0, 1), 2)]
    # Two pairs of long prompts save more than all four with a short beginning.
    assert groups_of("aaaaax", "abbbbx", "aaaaay", "abbbby") == [Group((0, 2), 5), Group((1, 3), 5)]
    # A third row that shares one letter would cost the four that two share.
    assert groups_of("aaaaax", "aaaaay", "az") == [Group((0, 1), 5), Group((2,), 0)]


def test_groups_never_cost_more_tokens_than_rows_apart():
    draw = random.Random(0)
    for _ in range(200):
        rows = [[draw.randrange(2) for _ in range(draw.randrange(6))] for _ in range(draw.randrange(1, 7))]
        groups = common_beginnings(rows)
        assert sorted(i for group in groups for i in group.members) == [i for i, row in enumerate(rows) if row]
        for group in groups:
            first = rows[group.members[0]][: group.shared]
            assert all(rows[i][: group.shared] == first for i in group.members) and len(first) == group.shared


def unpacked(packed, ids):
    """The tokens before each position that is asked for, itself among them, by what attention sees."""
    flat, found = ids.flatten()[packed.source].tolist(), []
    place = {}
    for span in packed.rows.spans:
        before = flat[span.prefix_start : span.prefix_end]
        for index in range(span.start, span.end):
            place[index] = before + flat[span.start : index + 1]
    positions = packed.position_ids[0].tolist()
    assert all(len(seen) == positions[index] + 1 for index, seen in place.items())
    assert sorted(place) == list(range(packed.rows.tokens)) == list(range(len(flat)))
    for index in packed.rows.kept.tolist():
        found.append(place[index])
    return found


@pytest.mark.parametrize("whole", [False, True])
def test_each_token_that_is_asked_for_sees_what_stands_before_it_in_its_row(whole):
    torch.manual_seed(0)
    for _ in range(100):
        ids, mask = torch.randint(0, 2, (5, 9)), torch.randint(0, 4, (5, 9)) > 0
        asked = torch.randint(0, 3, (5, 9)) == 0
        if not (asked & mask).any():
            continue
        packed = pack(ids, mask.int(), asked, whole=whole)
        expected = [
            [int(ids[r, c]) for c in range(column + 1) if mask[r, c]] for r, column in (asked & mask).nonzero().tolist()
        ]
        assert unpacked(packed, ids) == expected
        if whole:
            assert packed.rows.tokens == mask.sum()
        else:
            last = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in asked & mask]
            assert packed.rows.tokens <= sum(int(mask[r, :end].sum()) for r, end in enumerate(last))


def test_values_go_back_to_where_they_were_asked_for():
    ids, mask = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    asked = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]]).bool()
    packed = pack(ids, mask, asked)
    assert packed.rows.tokens == 4  # 5 and 6 once; 9 is asked for nothing
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert packed.rows.spread(values).tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]
    wide = packed.rows.spread(values.unsqueeze(-1).expand(-1, -1, 3))
    assert wide.shape == (2, 4, 3) and wide[1, 2].tolist() == [4, 4, 4]


def test_rows_that_lie_end_to_end_already():
    ids, positions = torch.arange(7)[None], torch.tensor([[0, 1, 2, 0, 0, 1, 2]])
    asked = torch.tensor([[1, 1, 0, 0, 1, 1, 0]]).bool()
    packed = laid_out(ids, positions, asked)
    assert [tuple(span) for span in packed.rows.spans] == [(0, 3, 0, 0), (3, 4, 0, 0), (4, 7, 0, 0)]
    assert packed.rows.kept.tolist() == [0, 1, 4, 5]


SPANS = [Span(0, 5), Span(5, 8, 0, 5), Span(8, 9, 0, 5), Span(9, 40), Span(40, 43), Span(43, 50, 9, 40), Span(50, 51)]


@pytest.mark.parametrize("window", [None, 100, 3, 1])
def test_attention_of_packed_rows_is_that_of_a_mask_in_float64(window):
    torch.manual_seed(0)
    count = SPANS[-1].end
    query = torch.randn(1, 4, count, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 2, count, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    seen = torch.zeros(count, count, dtype=torch.bool)
    for span in SPANS:
        keys = [*range(span.prefix_start, span.prefix_end), *range(span.start, span.end)]
        for number, place in enumerate(range(span.start, span.end)):
            visible = keys[: span.before + number + 1]
            seen[place, visible[-window:] if window else visible] = True
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    module = nn.Module()
    module.num_key_value_groups = 2
    rows = PackedRows(SPANS, torch.zeros(0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool), {})
    found, _ = rows.attend(module, query, key, value, None, sliding_window=window, scaling=0.3, dropout=0.0)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((found.transpose(1, 2) * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_rows_of_unlike_lengths_do_not_make_each_other_wider():
    spans, start = [], 0
    for length in [1000, *[60] * 20, 55]:
        spans.append(Span(start, start + length))
        start += length
    batches = _of_like_lengths(spans)
    assert [len(batch) for batch in batches] == [1, 21]
    area = sum(len(b) * max(s.queries for s in b) * max(s.keys for s in b) for b in batches)
    assert area <= 1.3 * sum(span.pairs for span in spans)
