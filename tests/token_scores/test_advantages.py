"""Temporal differences, advantages and returns against loops in plain float64, and what they must come to by theory."""

import random
from itertools import pairwise

import pytest
import torch

from hpt_trl.token_scores.advantages import advantages, document_starts, lambda_returns, reverse_scan, td_errors

# Two documents of a padding-free row: position ids, and whether a token is valid. The first token of a document never
# is; inside of the second one a tool's output is not trained on.
POSITIONS = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 7]
VALID = [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0]


def drawn(count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.uniform(-2, 2) for _ in range(count)]


def documents(positions: list[int]) -> list[range]:
    starts = [place for place, position in enumerate(positions) if position == 0]
    return [range(start, stop) for start, stop in pairwise([*starts, len(positions)])]


def plain_td(values, positions, valid, gamma, terminal, baseline):
    errors = [0.0] * len(values)
    for document in documents(positions):
        own = [place for place in document if valid[place]]
        for place in own:
            before = values[place - 1]
            if place == own[0] and baseline is not None:
                before = baseline
            errors[place] = gamma * values[place] - before
            if place == own[-1] and terminal == "reward":
                errors[place] = 1.0 - values[place]
    return errors


def plain_advantages(errors, positions, valid, gamma, lam):
    """The sum itself, eq. 16: each token's errors ahead of it, discounted by how many of its own lie between."""
    found = [0.0] * len(errors)
    for document in documents(positions):
        own = [place for place in document if valid[place]]
        for number, place in enumerate(own):
            found[place] = sum((gamma * lam) ** ahead * errors[later] for ahead, later in enumerate(own[number:]))
    return found


def tensors(values, positions=POSITIONS, valid=VALID):
    row = torch.tensor([values], dtype=torch.float64)
    return row, torch.tensor([valid]).bool(), document_starts(row, torch.tensor([positions]))


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 100])
def test_the_scan_is_the_recurrence(tokens):
    terms, factors = drawn(tokens), drawn(tokens, 1)
    expected, y = [], 0.0
    for term, factor in zip(reversed(terms), reversed(factors), strict=True):
        y = term + factor * y
        expected.append(y)
    found = reverse_scan(torch.tensor([terms], dtype=torch.float64), torch.tensor([factors], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(expected[::-1], rel=1e-12)


@pytest.mark.parametrize("terminal", ["value", "reward"])
@pytest.mark.parametrize("baseline", [None, 0.5])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0)])
def test_differences_and_advantages_are_those_of_a_loop(terminal, baseline, gamma, lam):
    values = drawn(len(POSITIONS))
    row, valid, starts = tensors(values)
    errors = td_errors(row, valid, starts, gamma=gamma, terminal=terminal, first_baseline=baseline)
    expected = plain_td(values, POSITIONS, VALID, gamma, terminal, baseline)
    assert errors[0].tolist() == pytest.approx(expected, abs=1e-12)
    found = advantages(errors, valid, starts, gamma=gamma, lam=lam)
    assert found[0].tolist() == pytest.approx(plain_advantages(expected, POSITIONS, VALID, gamma, lam), abs=1e-12)


def test_padded_rows_are_as_each_by_itself():
    lengths, prompts = [9, 5, 7], [3, 1, 2]
    rows = [drawn(length, seed) for seed, length in enumerate(lengths)]
    values, valid = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.bool)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        values[number, : len(row)] = torch.tensor(row, dtype=torch.float64)
        values[number, len(row) :] = 77.0
        valid[number, prompt : len(row)] = True
    starts = document_starts(values, None)
    errors = td_errors(values, valid, starts, first_baseline=0.5)
    found = advantages(errors, valid, starts)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        mask = [0] * prompt + [1] * (len(row) - prompt)
        alone = plain_td(row, list(range(len(row))), mask, 1.0, "value", 0.5)
        alone = plain_advantages(alone, list(range(len(row))), mask, 1.0, 0.95)
        assert found[number, : len(row)].tolist() == pytest.approx(alone, abs=1e-12)
        assert not found[number, len(row) :].any()


def test_at_lambda_1_the_advantage_telescopes():
    values = drawn(10)
    valid = [0] * 4 + [1] * 6
    row, mask, starts = tensors(values, list(range(10)), valid)
    found = advantages(td_errors(row, mask, starts), mask, starts, lam=1.0)[0]
    # What is left to gain: the last value less the one before the token.
    assert found[4:].tolist() == pytest.approx([values[-1] - values[place - 1] for place in range(4, 10)], abs=1e-12)
    errors = td_errors(row, mask, starts)
    assert torch.equal(advantages(errors, mask, starts, lam=0.0), errors)


def test_constant_values_change_nothing():
    row, valid, starts = tensors([0.3] * len(POSITIONS))
    assert not advantages(td_errors(row, valid, starts), valid, starts).any()
    none = torch.zeros_like(valid)
    assert not advantages(td_errors(row, none, starts), none, starts).any()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_returns_are_those_of_a_loop(gamma, lam):
    values, valid = [drawn(8), drawn(8, 1)], [[0, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0, 0]]
    rewards = [1.0, 0.0]
    tensor = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found = lambda_returns(tensor, torch.tensor(valid).bool(), torch.tensor(rewards), gamma=gamma, lam=lam)
    for row in range(2):
        expected, own = [0.0] * 8, [place for place in range(8) if valid[row][place]]
        expected[own[-1]] = rewards[row]
        for place, after in reversed(list(pairwise(own))):
            expected[place] = (1 - lam) * gamma * values[row][after] + lam * gamma * expected[after]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)
    assert not found.requires_grad


def test_at_lambda_1_every_return_is_the_outcome():
    valid = torch.tensor([[0, 1, 1, 1, 1, 0]]).bool()
    values = torch.tensor([drawn(6)])
    found = lambda_returns(values, valid, torch.tensor([1.0]), lam=1.0)
    assert found.tolist() == [[0, 1, 1, 1, 1, 0]]
    found = lambda_returns(values, valid, torch.tensor([1.0]), lam=0.0)[0]
    torch.testing.assert_close(found[1:5], torch.tensor([*values[0, 2:5].tolist(), 1.0]))
