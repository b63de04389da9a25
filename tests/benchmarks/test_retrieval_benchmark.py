"""The benchmark of retrieval on a few pages: what it prints and writes."""

import json
import sys

from benchmarks import retrieval
from tests.helpers.pages import TEXTS, write_corpus


def test_figures_of_a_few_pages(tmp_path, tiny_model_path, monkeypatch, capsys):
    pages = write_corpus(tmp_path / "pages", [*TEXTS, "Norvik Ltd revenue revenue revenue"])
    questions = [
        {"query": "weather of the coast", "reference_pages": ["sub/doc_4"]},
        {"query": "Norvik revenue", "reference_pages": ["sub/doc_1"]},
        {"query": "zebra", "reference_pages": ["sub/doc_2"]},
    ]
    (pages / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    reranker, output = f"query_likelihood:{tiny_model_path}", tmp_path / "figures.json"
    words = [
        "retrieval",
        str(pages),
        "--rerankers",
        reranker,
        "--made",
        "200",
        "--rounds",
        "2",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", words)
    retrieval.main()
    report = json.loads(output.read_text())
    plain, again = report["found"].values()
    assert list(report["found"]) == [retrieval.PLAIN, reranker]
    # The fifth page is first for the second question, and no page has the word of the third.
    assert (plain["recall@1"], plain["recall@5"]) == (0.3333, 0.6667)
    assert again["recall@5"] == 0.6667 and plain["questions_per_second"] > again["questions_per_second"] > 0
    (made,) = report["made"]
    assert made["pages"] == 200 and made["questions_per_second"] > 0 and made["build_s"] > 0
    assert "QUESTIONS_PER_SECOND" in capsys.readouterr().out and report["pages"] == 5
