"""Self-speculative decoding against plain decoding, on many families with random weights.

Tests compare in float64 where the family runs in it: with rounding, a tie of two tokens can go either way.
"""

import math
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hpt_trl.models.future_heads.decoding import HeadCandidates, Speculation, generate_rows
from hpt_trl.models.future_heads.heads import COPIES, KINDS, RESIDUALS, new_heads
from hpt_trl.models.future_heads.model import attach
from hpt_trl.models.future_heads.trunk import parts_of, watched
from tests.helpers.families import FAMILIES, family_model

GREEDY = {"do_sample": False, "pad_token_id": 0}
SETTINGS = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.3},
    "ends": {"eos_token_id": [3, 7, 8, 20, 30, 40, 50, 60], "min_new_tokens": 5},
    "ends-soon": {"eos_token_id": list(range(3, 97, 3))},
}


def with_heads(family: str, kind: str = COPIES, n: int = 4, **changes):
    """A family's tiny model, whose heads are no longer what they began as."""
    model = family_model(family, **changes)
    heads = new_heads(model, n, kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    attach(model, heads)
    return model


def prompts(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(5, 90, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_plain_greedy_token_for_token(family, kind):
    model = with_heads(family, kind)
    for settings in SETTINGS.values():
        row, given = prompts(1), GREEDY | {"max_new_tokens": 14} | settings
        plain = model.generate(row, **given)
        assert torch.equal(model.generate(row, use_mtp=True, **given), plain), settings
        assert model.speculation.tokens == plain.shape[1] - row.shape[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_what_the_heads_say_of_the_whole_sequence(family, kind, monkeypatch):
    """The heads' cache, masks and positions: each draft again from one forward pass without any cache."""
    model, drafted = with_heads(family, kind), []
    logits_of = HeadCandidates._logits

    def recording(self, model_kwargs):
        logits = logits_of(self, model_kwargs)
        drafted.append((self, self.length - 1, logits[0]))
        return logits

    monkeypatch.setattr(HeadCandidates, "_logits", recording)
    ids = model.generate(prompts(1, 12), use_mtp=True, max_new_tokens=16, **GREEDY)
    assert len(drafted) >= 3
    for candidates, length, logits in drafted:
        with torch.no_grad(), watched(parts_of(model).layer) as seen:
            model(ids[:, :length], use_cache=False)
            states = model.future_heads.states(model, seen, count=4)
            expected = torch.stack([candidates._head(state[0, -1]) for state in states])
        # Some norms are float32 whatever the model is.
        assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_logits_are_scaled_and_capped_as_the_model_does_it(family):
    model = with_heads(family)
    with torch.no_grad(), watched(parts_of(model).layer) as seen:
        logits = model(prompts(1), use_cache=False).logits
        candidates = HeadCandidates(model, seen, Speculation(), model.generation_config, [], prompts(1))
        assert torch.allclose(candidates._head(parts_of(model).norm(seen.output)), logits, atol=1e-10)


def test_drafts_of_heads_that_know_the_answer_are_all_kept():
    """A model of a repeated token: copies of its last layer predict it as well."""
    model = with_heads("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert model.generate(prompts(1), use_mtp=True, max_new_tokens=17, **GREEDY).shape[1] == 9 + 17
    counts = model.speculation
    # The prompt's pass gives one token, and every later one four.
    assert counts.calls == 5 and counts.accepted == counts.drafted == {1: 4, 2: 4, 3: 4}
    assert counts.tokens_per_call == 17 / 5


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6])
def test_no_draft_goes_beyond_the_length(new):
    model = with_heads("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert model.generate(prompts(1), use_mtp=True, max_new_tokens=new, **GREEDY).shape[1] == 9 + new
    assert model.speculation.tokens == new


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_has_the_plain_distribution(kind):
    """Sequences of three tokens out of a small vocabulary, by Pearson's chi-square against exact probabilities."""
    model = with_heads("llama", kind, n=3, vocab_size=7, eos_token_id=None, initializer_range=0.6)
    prompt, draws = torch.tensor([[2, 5, 3]]), 900
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 3, "max_new_tokens": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    counts, total = Counter(), Speculation()
    for _ in range(draws):
        row = model.generate(prompt, use_mtp=True, **settings)[0, 3:]
        counts[tuple(row.tolist())] += 1
        total.include(model.speculation)
    expected = outcomes(model, prompt[0].tolist(), 3, temperature=0.9, top_k=3)
    assert math.isclose(sum(expected.values()), 1) and set(counts) <= set(expected)
    # Rare outcomes together, so that each cell expects enough draws.
    cells = [(counts[key], draws * p) for key, p in expected.items() if draws * p >= 8]
    cells.append((draws - sum(n for n, _ in cells), draws - sum(e for _, e in cells)))
    chi_square = sum((n - e) ** 2 / e for n, e in cells if e > 0)
    # Mean of the distribution is the degrees of freedom, its standard deviation sqrt(2 df); 1 in 30,000 beyond 4.
    df = len(cells) - 1
    assert df > 5 and chi_square < df + 4 * math.sqrt(2 * df)
    # Drafts were kept and thrown away.
    assert 0 < total.accepted[1] < total.drafted[1]


def outcomes(model, ids: list[int], steps: int, *, temperature: float, top_k: int) -> dict[tuple[int, ...], float]:
    """Sequence of new tokens -> its exact probability."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(steps):
        longer = {}
        for tokens, probability in found.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *tokens]]), use_cache=False).logits[0, -1] / temperature
            kept = logits.topk(top_k).indices
            for token, share in zip(kept.tolist(), logits[kept].softmax(-1).tolist(), strict=True):
                longer[*tokens, token] = probability * share
        found = longer
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_those_of_plain_generation(kind):
    model, ids = with_heads("qwen3", kind), prompts(3)
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :1] = 0, 0
    given = GREEDY | {"max_new_tokens": 14, "eos_token_id": [3, 7, 8, 20, 30, 40, 50, 60]}
    plain = model.generate(ids, attention_mask=mask, **given)
    sequences, counts = generate_rows(model, ids, mask, **given)
    assert torch.equal(sequences, plain)
    assert counts.calls > 3 and counts.tokens >= plain.shape[1] - ids.shape[1]


def test_a_prompt_may_end_with_an_end_token():
    model, row = with_heads("llama"), prompts(1)
    given = GREEDY | {"max_new_tokens": 14, "eos_token_id": [int(row[0, -1]), 1]}
    assert torch.equal(model.generate(row, use_mtp=True, **given), model.generate(row, **given))


def test_a_padded_prompt_of_one_row_is_read_without_its_padding():
    model, ids = with_heads("llama"), prompts(1)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    given = GREEDY | {"max_new_tokens": 14, "attention_mask": mask}
    assert torch.equal(model.generate(ids, use_mtp=True, **given), model.generate(ids, **given))


def test_an_adapter_around_the_model_changes_nothing():
    model = with_heads("llama")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
    row = prompts(1)
    plain = adapted.generate(input_ids=row, max_new_tokens=16, **GREEDY)
    sequences, counts = generate_rows(adapted, row, max_new_tokens=16, **GREEDY)
    assert torch.equal(sequences, plain) and counts.tokens == 16


def test_other_assisted_decoding_stays_what_it_was():
    model, row = with_heads("llama"), prompts(1)
    plain = model.generate(row, max_new_tokens=16, **GREEDY)
    assert torch.equal(model.generate(row, prompt_lookup_num_tokens=3, max_new_tokens=16, **GREEDY), plain)
    assert model.speculation is None


def test_rejected_drafts_leave_the_cache(monkeypatch):
    """The model's cache after a generation holds what a plain one holds."""
    model, row = with_heads("llama", RESIDUALS), prompts(1)
    given = GREEDY | {"max_new_tokens": 16, "return_dict_in_generate": True}
    plain, ours = model.generate(row, **given), model.generate(row, use_mtp=True, **given)
    assert sum(model.speculation.drafted.values()) > sum(model.speculation.accepted.values())
    assert plain.past_key_values.get_seq_length() == ours.past_key_values.get_seq_length()
    for mine, theirs in zip(ours.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert torch.allclose(mine.keys, theirs.keys) and torch.allclose(mine.values, theirs.values)
