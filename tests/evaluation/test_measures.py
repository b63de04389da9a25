"""pass@k, maj@k, perplexity and intervals against brute force and float64."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.data.rendering import Encoded, Encoder
from hpt_trl.evaluation.intervals import bootstrap
from hpt_trl.evaluation.measures import majority_at_k, pass_at_k, vote_groups
from hpt_trl.evaluation.perplexity import measure_perplexity, pieces, scored_bytes


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_solved_one(n):
    for solved, k in product(range(n + 1), range(1, n + 1)):
        marks = [True] * solved + [False] * (n - solved)
        draws = list(combinations(marks, k))
        expected = Fraction(sum(any(draw) for draw in draws), len(draws))
        assert pass_at_k(n, solved, k) == pytest.approx(float(expected), abs=1e-12)


def test_pass_at_k_of_many():
    # 1 - C(195, 100) / C(200, 100), of whole numbers.
    expected = 1 - Fraction(math.comb(195, 100), math.comb(200, 100))
    assert pass_at_k(200, 5, 100) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_n_is_refused(k):
    with pytest.raises(ValueError, match="from 1 to 4"):
        pass_at_k(4, 2, k)
    with pytest.raises(ValueError, match="from 1 to 4"):
        majority_at_k([0] * 4, [True] * 4, k)


def test_answers_that_are_equal_vote_together():
    texts = ["So \\boxed{1/2}.", "#### 0.5", "no answer", "\\boxed{\\frac{1}{2}}", "#### 2"]
    groups = vote_groups(texts)
    assert groups[0] == groups[1] == groups[3] != groups[4]
    assert groups[2] is None


def test_majority_against_brute_force():
    groups = [0, 1, 0, 2, None, 1]
    solved = [False, True, False, True, False, True]
    for k in range(1, 7):
        shares = []
        for choice in combinations(range(6), k):
            votes = Counter(groups[place] for place in choice if groups[place] is not None)
            most = max(votes.values(), default=0)
            leading = [group for group, count in votes.items() if count == most]
            right = [any(solved[place] for place in choice if groups[place] == group) for group in leading]
            shares.append(Fraction(sum(right), len(right)) if right else Fraction(0))
        assert majority_at_k(groups, solved, k) == pytest.approx(float(sum(shares) / len(shares)), abs=1e-12)


def test_majority_over_too_many_choices_is_drawn_and_close():
    groups, solved = [0] * 12 + [1] * 10, [True] * 12 + [False] * 10
    drawn = majority_at_k(groups, solved, 5)
    exact = sum(math.comb(12, i) * math.comb(10, 5 - i) for i in range(3, 6)) / math.comb(22, 5)
    assert drawn == pytest.approx(exact, abs=0.05)
    assert drawn == majority_at_k(groups, solved, 5)


def test_the_bootstrap_covers_the_ratio():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        tokens = generator.integers(5, 50, size=40)
        losses = tokens * generator.normal(2.0, 0.5, size=40)
        low, high = bootstrap(list(zip(losses, tokens, strict=True)), draws=300)
        hits += low <= 2.0 <= high
    assert 0.88 <= hits / 200 <= 1.0


def test_pieces_score_every_token_but_the_first_once():
    for length, longest in product(range(1, 12), range(2, 7)):
        row = Encoded(list(range(length)), [1] * length)
        seen = []
        for ids, scored in pieces(row, longest):
            assert len(ids) == len(scored) <= longest and scored[0] == 0
            seen += [token for token, mark in zip(ids, scored, strict=True) if mark]
        assert seen == list(range(1, length))


def test_bytes_are_those_of_what_is_scored(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    encoder = Encoder(tokenizer)

    def size(text: str) -> int:
        return scored_bytes(text, encoder.document(text), tokenizer)

    # Nothing but the end, which is the first token then; one character and the end; three bytes that are three tokens.
    assert (size(""), size("Z"), size("Zé"), size("€"), size("€Z")) == (0, 0, 2, 3, 4)
    ids = encoder.document("Zé").ids
    assert scored_bytes("Zé", Encoded([tokenizer.eos_token_id, *ids], [1] * (len(ids) + 1)), tokenizer) == 3


@pytest.mark.parametrize("longest, batch_size", [(512, 1), (512, 4), (6, 3)])
def test_perplexity_against_float64(tiny_model_path, longest, batch_size):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    encoder = Encoder(tokenizer)
    texts = ["What is 3 + 4? 3 + 4 = 7", "0 1 2 3", "Question: how many apples are left? Answer: the total is 8."]
    rows = [encoder.document(text) for text in texts]
    sizes = [scored_bytes(text, row, tokenizer) for text, row in zip(texts, rows, strict=True)]
    # Of a tokenizer without a token that begins texts: the first token is not scored, nor are its characters.
    firsts = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0] for text in texts]
    assert sizes == [len(text) - end for text, (_, end) in zip(texts, firsts, strict=True)]
    found = measure_perplexity(model, rows, sizes, longest=longest, batch_size=batch_size, pad_token_id=0)
    exact = AutoModelForCausalLM.from_pretrained(tiny_model_path).double()
    nats, tokens = 0.0, 0
    for row in rows:
        for ids, scored in pieces(row, longest):
            with torch.no_grad():
                logits = exact(input_ids=torch.tensor([ids])).logits[0]
            for place in range(1, len(ids)):
                if scored[place]:
                    nats -= float(logits[place - 1].log_softmax(-1)[ids[place]])
                    tokens += 1
    assert found["scored_tokens"] == tokens == sum(len(row.ids) - 1 for row in rows)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(sizes), rel=1e-6)
    low, high = found["perplexity_interval"]
    assert low <= found["perplexity"] <= high
