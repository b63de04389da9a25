"""Rerankers: a causal model's likelihood of the query against transformers' own loss, and a cross-encoder."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_trl.errors import UserError
from hpt_trl.retrieval.reranking import open_reranker
from tests.helpers.embedders import save_cross_encoder, save_text_embedder

TEXTS = ["The sum of 12 and 7 is 19.", "apples", "Norvik Ltd\nRevenue 7 percent " * 4]


def test_likelihoods_are_those_of_the_loss(tiny_model_path):
    reranker = open_reranker(f"query_likelihood:{tiny_model_path}")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    query = "What is 12 + 7?"
    found = reranker.scores(query, TEXTS)
    for text, score in zip(TEXTS, found, strict=True):
        lead = tokenizer(text)["input_ids"] + tokenizer("\n\nA question that this page answers:")["input_ids"]
        asked = tokenizer(f" {query}")["input_ids"]
        labels = torch.tensor([[-100] * len(lead) + asked])
        with torch.no_grad():
            loss = model(torch.tensor([lead + asked]), labels=labels).loss
        assert score == pytest.approx(-loss.item(), abs=1e-4)
    # In batches of other widths, and by itself.
    assert reranker.scores(query, TEXTS * 4) == pytest.approx(found * 4, abs=1e-4)
    assert reranker.scores(query, TEXTS[1:2]) == pytest.approx(found[1:2], abs=1e-4)


def test_long_pages_and_long_queries_fit_the_model(tiny_model_path):
    reranker = open_reranker(f"query_likelihood:{tiny_model_path}")
    scores = reranker.scores("a question " * 400, ["", "a page " * 2000])
    assert all(math.isfinite(score) for score in scores)
    # Cut at the end: what stands behind the cut says nothing.
    first, second = reranker.scores("short", ["a page " * 2000, "a page " * 3000])
    assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("query_likelihood:", "names no model"),
        ("query_likelihood:no/such-model-anywhere", "no/such-model-anywhere"),
        ("query_likelihood:./nowhere", "nowhere"),
    ],
)
def test_models_that_are_not_there(name, said):
    with pytest.raises(UserError, match=said):
        open_reranker(name)


def test_a_cross_encoder_scores_pairs(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = save_cross_encoder(tmp_path / "model")
    found = open_reranker(path).scores("What is 7?", TEXTS)
    model = sentence_transformers.CrossEncoder(path)
    assert found == pytest.approx([float(model.predict([("What is 7?", text)])[0]) for text in TEXTS], abs=1e-5)
    assert len(set(found)) == 3


def test_a_model_without_a_layer_for_pairs_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match="is a base model"):
        open_reranker(save_text_embedder(tmp_path / "base"))
    with pytest.raises(UserError, match="cannot be loaded as a CrossEncoder"):
        open_reranker(str(tmp_path / "nowhere"))
