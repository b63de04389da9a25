"""What every engine does: reranking of the first pages, and rankings that are kept."""

import pytest

from hpt_trl.errors import UserError
from hpt_trl.retrieval.engine import CachedEngine, RerankedEngine, open_engine, refuse_unused
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.pages import Hit, Page
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.pages import write_corpus
from tests.helpers.servers import send, serve


class Listed:
    """An engine whose rankings are the pages 0, 1, 2, ... and that counts what it is asked."""

    digest, names = "listed", [str(number) for number in range(30)]

    def __init__(self, without_text=()):
        self.asked, self.without_text = [], without_text

    def search(self, queries, top_k):
        self.asked.append((list(queries), top_k))
        return [
            [
                Hit(Page(str(n), "", "" if n in self.without_text else f"{query} {n}", "d", n), 1 / (n + 1))
                for n in range(min(top_k, len(self.names)))
            ]
            for query in queries
        ]

    def image(self, name):
        raise UserError(name)


class Backwards:
    """Scores a page by its number."""

    name = "backwards"

    def scores(self, query, texts):
        assert all(text.startswith(query) for text in texts)
        return [float(text.split()[-1]) for text in texts]


def found(engine, top_k, query="q"):
    return [int(hit.name) for hit in engine.search([query], top_k)[0]]


def test_the_first_pages_are_put_in_a_new_order_and_the_others_follow():
    engine = RerankedEngine(Listed(), Backwards(), 4)
    assert found(engine, 6) == [3, 2, 1, 0, 4, 5]
    assert found(engine, 2) == [3, 2]
    assert engine.digest == "listed backwards 4" and len(engine.names) == 30


def test_pages_without_text_keep_their_order_behind():
    assert found(RerankedEngine(Listed({0, 2}), Backwards(), 4), 6) == [3, 1, 0, 2, 4, 5]
    assert found(RerankedEngine(Listed(range(30)), Backwards(), 4), 3) == [0, 1, 2]


def test_equal_scores_keep_the_first_order():
    class Same:
        name = "same"

        def scores(self, query, texts):
            return [0.5] * len(texts)

    assert found(RerankedEngine(Listed(), Same(), 20), 5) == [0, 1, 2, 3, 4]


def test_a_query_is_asked_once_and_the_oldest_is_forgotten():
    inner = Listed()
    engine = CachedEngine(inner, 2)
    rows = engine.search(["a", "b", "a"], 2)
    assert [row[0].page.text for row in rows] == ["a 0", "b 0", "a 0"]
    assert inner.asked == [(["a", "b"], 2)]
    rows[0].clear()
    assert len(engine.search(["a"], 2)[0]) == 2 and len(inner.asked) == 1
    engine.search(["a"], 3)
    assert inner.asked[1:] == [(["a"], 3)]
    # The beginning of what is known.
    assert found(engine, 1, "a") == [0] and len(inner.asked) == 2
    engine.search(["b", "c"], 2)
    assert inner.asked[2:] == [(["c"], 2)]
    engine.search(["a"], 2)
    assert inner.asked[3:] == [(["a"], 2)]
    assert engine.search(["x", "y", "z"], 1)[2][0].page.text == "z 0"


def test_a_ranking_that_ended_is_not_asked_for_again():
    inner = Listed()
    engine = CachedEngine(inner, 5)
    assert len(engine.search(["a"], 40)[0]) == len(engine.search(["a"], 50)[0]) == 30
    assert len(inner.asked) == 1


def test_half_characters_of_a_query_are_no_error(tmp_path):
    build_index(write_corpus(tmp_path / "pages"), tmp_path / "index", IndexSettings())
    engine = open_engine(tmp_path / "index")
    assert [hit.name for hit in engine.search(["weather \ud800 \x00"], 3)[0]] == ["sub/doc_4"]


def test_an_index_is_opened_by_its_folder(tmp_path):
    build_index(write_corpus(tmp_path / "pages"), tmp_path / "index", IndexSettings())
    engine = open_engine(tmp_path / "index")
    assert [hit.name for hit in engine.search(["weather"], 3)[0]] == ["sub/doc_4"]
    assert engine.image("sub/doc_4").size == (60, 40) and len(engine.names) == 4
    with pytest.raises(UserError, match="holds no index"):
        open_engine("nowhere")
    with pytest.raises(UserError, match="no address"):
        open_engine("http://")


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_engine_is_asked_for_no_pages(tmp_path, top_k):
    build_index(write_corpus(tmp_path / "pages"), tmp_path / "index", IndexSettings())
    with serve(lambda handler, asked: send(handler, [[{"image_file": "a.png"}]])) as server:
        for spec in (tmp_path / "index", server.address):
            engine = open_engine(spec)
            assert len(engine.search(["weather"], 1)[0]) == 1
            with pytest.raises(UserError, match=f"`top_k` is {top_k}; allowed: 1 or more"):
                engine.search(["weather"], top_k)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timeout": 0}, "`timeout: 0`; allowed: a number of seconds above 0"),
        ({"timeout": -1.5}, "`timeout: -1.5`"),
        ({"timeout": float("nan")}, "`timeout: nan`"),
        ({"timeout": float("inf")}, "`timeout: inf`"),
        ({"timeout": 1e300}, "`timeout: 1e.300`; .* at most 86400"),
        ({"retries": -1}, "`retries: -1` is too small; allowed: 0 or more"),
        ({"rerank_depth": 0}, "`rerank_depth: 0` is too small; allowed: 1 or more"),
    ],
)
@pytest.mark.parametrize("spec", ["nowhere", "http://127.0.0.1:9"])
def test_numbers_out_of_their_range_are_refused_whatever_is_opened(spec, settings, said):
    with pytest.raises(UserError, match=said):
        open_engine(spec, **settings)


def test_what_an_engine_does_not_read_is_refused():
    for name in ("timeout", "retries", "images"):
        with pytest.raises(UserError, match=f"`{name}` is of a search service, and `my/index` is none"):
            refuse_unused("my/index", {name: 1}, None)
        refuse_unused("https://host", {name: 1}, None)
    with pytest.raises(UserError, match="`rerank_depth` says nothing without `reranker`"):
        refuse_unused("https://host", {"rerank_depth": 3}, None)
    refuse_unused("my/index", {"rerank_depth": 3}, "a/model")
