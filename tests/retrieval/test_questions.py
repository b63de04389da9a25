"""Questions with reference pages: reading them, and what an engine finds of them."""

import math

import pytest

from hpt_trl.errors import UserError
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.questions import Question, measure, read_questions, refuse_unknown
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.pages import write_corpus


def test_measures_are_means_over_the_questions(tmp_path):
    texts = ["alpha alpha", "alpha beta", "gamma", "delta"]
    index = build_index(write_corpus(tmp_path / "pages", texts), tmp_path / "index", IndexSettings()).index
    questions = [
        Question("alpha", ("sub/doc_2",)),  # second
        Question("gamma", ("sub/doc_3", "sub/doc_4")),  # the first of two
        Question("omega", ("sub/doc_1",)),  # nothing
    ]
    found = measure(index, questions)
    third = 1 / math.log2(3)
    assert found == pytest.approx(
        {"recall@1": 0.5 / 3, "recall@5": 1.5 / 3, "ndcg@5": (third + 1 / (1 + third) + 0) / 3}
    )
    refuse_unknown(questions, [page.name for page in index.pages], "the index")
    with pytest.raises(UserError, match=r"lacks 1 of the questions' reference pages, e.g. `doc_9`.*`sub/doc_1`"):
        refuse_unknown([Question("x", ("doc_9",))], [page.name for page in index.pages], "the index")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is no JSON"),
        ("[]", "`query`: None"),
        ('{"query": "  ", "reference_pages": ["a"]}', "`query`"),
        ('{"query": "a"}', "`reference_pages`: None"),
        ('{"query": "a", "reference_pages": []}', "`reference_pages`"),
        ('{"query": "a", "reference_pages": [1]}', "`reference_pages`"),
        ('{"query": "a", "reference_pages": "a_1"}', "`reference_pages`"),
        ("", "holds no questions"),
    ],
)
def test_lines_that_are_no_questions(tmp_path, line, said):
    (tmp_path / "questions.jsonl").write_text(line)
    with pytest.raises(UserError, match=said):
        read_questions(tmp_path / "questions.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "missing.jsonl")
