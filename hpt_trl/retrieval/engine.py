"""Search engines: what a rollout or a command asks, whatever answers it."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from hpt_trl.errors import UserError
from hpt_trl.retrieval.index import load_index
from hpt_trl.retrieval.pages import Hit, without_halves
from hpt_trl.retrieval.reranking import Reranker, open_reranker
from hpt_trl.retrieval.service import Service

if TYPE_CHECKING:
    from PIL import Image

# What the address of a service begins with.
SCHEMES = ("http://", "https://")
# Seconds that an answer of a service may be waited for at most: a day.
LONGEST_TIMEOUT = 86_400
# Queries whose rankings are kept.
CACHED_QUERIES = 4096


class SearchEngine(Protocol):
    """Finds pages.

    Attributes:
        digest: what rankings depend on; other contents have another one.
        names: of all pages; None where a service does not tell.
    """

    digest: str
    names: Collection[str] | None

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Ranks pages for each query, best first, at most `top_k` (1 or more); none where nothing fits."""
        ...

    def image(self, name: str) -> "Image.Image":
        """The image of a page that a ranking held, as it was stored: RGB, not resized."""
        ...


def open_engine(
    spec: str | Path,
    *,
    reranker: str | None = None,
    rerank_depth: int = 20,
    timeout: float = 10.0,
    retries: int = 3,
    images: str | Path | None = None,
) -> SearchEngine:
    """Opens a search engine.

    Args:
        spec: folder of an index, or address of a service (http:// or https://).
        reranker: see `open_reranker`; none where None.
        rerank_depth: how many pages of the first ranking it looks at.
        timeout: seconds for an answer of a service.
        retries: questions again to a service that fails.
        images: folder of a service's page images on this machine; see `Service`.

    Raises:
        UserError: a number is out of range, there is no index, it is damaged, a model cannot be loaded or an extra is
            missing.
    """
    check_ranges(rerank_depth=rerank_depth, timeout=timeout, retries=retries)
    engine: SearchEngine
    if str(spec).startswith(SCHEMES):
        engine = Service(str(spec), timeout=timeout, retries=retries, images=images)
    else:
        engine = load_index(spec)
    engine = CachedEngine(engine, CACHED_QUERIES)
    return engine if reranker is None else reranked(engine, reranker, rerank_depth)


def reranked(engine: SearchEngine, name: str, depth: int) -> SearchEngine:
    """The engine with a second look at the first pages of its rankings.

    Args:
        name: see `open_reranker`.
        depth: how many pages it looks at.

    Raises:
        UserError: the reranker cannot be loaded, or an extra is missing.
    """
    return CachedEngine(RerankedEngine(engine, open_reranker(name), depth), CACHED_QUERIES)


def check_ranges(*, rerank_depth: int, timeout: float, retries: int) -> None:
    """Looks whether numbers of `open_engine` are in their ranges.

    Raises:
        UserError: the first that is not.
    """
    for name, value, least in (("rerank_depth", rerank_depth, 1), ("retries", retries, 0)):
        if value < least:
            raise UserError(f"`{name}: {value}` is too small; allowed: {least} or more.")
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise UserError(
            f"`timeout: {timeout}`; allowed: a number of seconds above 0, and at most {LONGEST_TIMEOUT} (a day)."
        )


def refuse_unused(spec: str | Path, given: Collection[str], reranker: str | None) -> None:
    """Looks whether what is written of an engine is read.

    Args:
        spec: see `open_engine`.
        given: names of its other arguments, as far as they are written.
        reranker: None where there is none.

    Raises:
        UserError: the first that is not.
    """
    for name in ("timeout", "retries", "images"):
        if name in given and not str(spec).startswith(SCHEMES):
            raise UserError(f"`{name}` is of a search service, and `{spec}` is none; drop it.")
    if "rerank_depth" in given and reranker is None:
        raise UserError("`rerank_depth` says nothing without `reranker`; name one, or drop it.")


class RerankedEngine:
    """An engine with a second look at the first pages of its rankings.

    Pages without text cannot be looked at: they follow those that are, and the pages below `depth` follow them, both in
    the order of the first ranking and with its scores.
    """

    def __init__(self, engine: SearchEngine, reranker: Reranker, depth: int):
        self._engine, self._reranker, self._depth = engine, reranker, depth
        self.digest, self.names = f"{engine.digest} {reranker.name} {depth}", engine.names

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Ranks pages for each query; of those that were looked at, `score` is the reranker's."""
        ranked = self._engine.search(queries, max(top_k, self._depth))
        return [self._looked_at(query, hits)[:top_k] for query, hits in zip(queries, ranked, strict=True)]

    def image(self, name: str) -> "Image.Image":
        """The image of a page."""
        return self._engine.image(name)

    def _looked_at(self, query: str, hits: list[Hit]) -> list[Hit]:
        first = [hit for hit in hits[: self._depth] if hit.page.text]
        others = [hit for hit in hits[: self._depth] if not hit.page.text] + hits[self._depth :]
        if not first:
            return others
        scores = self._reranker.scores(query, [hit.page.text for hit in first])
        again = [Hit(hit.page, score) for hit, score in zip(first, scores, strict=True)]
        return sorted(again, key=lambda hit: -(hit.score or 0.0)) + others


class CachedEngine:
    """An engine that is asked each query once, while it is among the last ones asked.

    Of a ranking that is kept a shorter one is its beginning, and a longer one all of it where it ended by itself.
    Threads may share it.

    Args:
        engine: that is asked.
        size: queries whose rankings are kept.
    """

    def __init__(self, engine: SearchEngine, size: int):
        self._engine, self._capacity = engine, size
        # Query -> pages asked for, and its ranking; the last one asked at the end.
        self._kept: OrderedDict[str, tuple[int, list[Hit]]] = OrderedDict()
        self._lock = Lock()
        self.digest, self.names = engine.digest, engine.names

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Ranks pages for each query; those that are not known yet are asked together.

        Half a character in a query, as JSON that a model writes may hold it, becomes a question mark.

        Raises:
            UserError: `top_k` is below 1.
        """
        if top_k < 1:
            raise UserError(f"`top_k` is {top_k}; allowed: 1 or more.")
        queries = [without_halves(query) for query in queries]
        with self._lock:
            known = {query: self._kept[query] for query in queries if query in self._kept}
        known = {query: kept for query, kept in known.items() if top_k <= kept[0] or len(kept[1]) < kept[0]}
        asked = [query for query in dict.fromkeys(queries) if query not in known]
        if asked:
            rankings = self._engine.search(asked, top_k)
            known |= {query: (top_k, hits) for query, hits in zip(asked, rankings, strict=True)}
        with self._lock:
            for query in dict.fromkeys(queries):
                self._kept[query] = known[query]
                self._kept.move_to_end(query)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return [known[query][1][:top_k] for query in queries]

    def image(self, name: str) -> "Image.Image":
        """The image of a page."""
        return self._engine.image(name)
