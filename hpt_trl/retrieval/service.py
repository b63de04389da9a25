"""The client of a search service as VRAG has it: GET /search?queries=a&queries=b.

The answer is a list with one ranking a query, each a list of objects with `image_file`, a path as the service sees it,
and in other services a `score`, `text`, or the image itself as `image_base64`. VRAG's own tells neither score nor text,
and at most ten pages a query.
"""

import base64
import binascii
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from hpt_trl.http_requests import Client, ServiceError
from hpt_trl.retrieval.pages import Hit, Page, open_image, without_halves

if TYPE_CHECKING:
    from PIL import Image

SEARCH_PATH = "/search"
# Of one question: VRAG's trainer sends 100 queries, servers take a line of 8 KiB.
_QUERIES, _CHARACTERS = 100, 6000
_NUMBERED = re.compile(r"(.+)_(\d{1,9})")


class Service:
    """A search service; see `SearchEngine` of `engine.py`.

    Attributes:
        digest: its address, as nothing else is known of what it holds.
        names: None, as it does not tell.

    Args:
        address: base URL, with or without /search.
        timeout: seconds for an answer.
        retries: questions again after a failure.
        images: folder where page images lie on this machine, found by their file name; by default a page's image is
            opened by the path that the service gives, or fetched where that is a URL.
    """

    def __init__(self, address: str, *, timeout: float, retries: int, images: str | Path | None = None):
        self._client = Client(address.rstrip("/").removesuffix(SEARCH_PATH), timeout=timeout, retries=retries)
        self._images = None if images is None else Path(images)
        self._found: dict[str, dict[str, Any]] = {}
        self.digest = f"service {self._client.shown}"
        self.names: Collection[str] | None = None

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Ranks pages for each query, best first, no more than the service gives.

        A query that is too long for the line of a request is cut at its end.

        Raises:
            ServiceError: it does not answer after all retries, or answers something else.
        """
        found: list[list[Hit]] = []
        for batch in _batches([_cut(query) for query in queries]):
            answer = self._client.get(SEARCH_PATH, [("queries", query) for query in batch])
            if (
                not isinstance(answer, list)
                or len(answer) != len(batch)
                or not all(isinstance(row, list) for row in answer)
            ):
                raise self._unlike(f"a list of {len(batch)} rankings", answer)
            found += [[self._hit(item) for item in row[:top_k]] for row in answer]
        return found

    def image(self, name: str) -> "Image.Image":
        """The image of a page that a ranking held.

        Raises:
            ServiceError: no ranking held it, or the service does not give its image.
            UserError: the image is missing or broken.
        """
        if name not in self._found:
            raise ServiceError(f"{self._client.shown} has ranked no page `{name}`.")
        item = self._found[name]
        called = f"page {name} of {self._client.shown}"
        if item.get("image_base64"):
            try:
                content = base64.b64decode(item["image_base64"], validate=True)
            except (binascii.Error, ValueError, TypeError) as error:
                raise ServiceError(f"{called} has no base64 in `image_base64`: {error}.") from error
            return open_image(content, name=called)
        file: str = item["image_file"]
        if self._images is not None:
            return open_image(self._images / PurePosixPath(_path_of(file)).name)
        if urlsplit(file).scheme in ("http", "https"):
            return open_image(self._client.download(file), name=called)
        return open_image(file, name=f"{called}, {file}")

    def _hit(self, item: Any) -> Hit:
        file = item.get("image_file") if isinstance(item, dict) else None
        if not isinstance(file, str) or not PurePosixPath(_path_of(file)).stem:
            raise self._unlike('objects like {"image_file": "img/norvik_3.jpg"}', item)
        score, text = item.get("score"), item.get("text")
        # A whole number may be larger than any other.
        if score is not None and not (_is_number(score) and abs(score) <= sys.float_info.max):
            raise self._unlike("a finite number as `score`", score)
        # As VRAG's reward names pages.
        name = without_halves(PurePosixPath(_path_of(file)).stem)
        known = self._found.setdefault(name, item)
        if known["image_file"] != file:
            raise self._unlike("page images with names of their own", [known["image_file"], file])
        numbered = _NUMBERED.fullmatch(name)
        document, number = (numbered[1], int(numbered[2])) if numbered else (name, 1)
        page = Page(name, file, without_halves(text) if isinstance(text, str) else "", document, number)
        return Hit(page, None if score is None else float(score))

    def _unlike(self, wanted: str, given: Any) -> ServiceError:
        text = repr(given)
        shown = text if len(text) <= 100 else text[:97] + "..."
        return ServiceError(f"{self._client.shown} answers {SEARCH_PATH} with {shown}, where {wanted} is due.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path_of(file: str) -> str:
    return urlsplit(file).path if urlsplit(file).scheme in ("http", "https") else file.replace("\\", "/")


def _cut(query: str) -> str:
    """The beginning of a query that fits the line of a request, where a character may take twelve."""
    while (length := len(quote(query))) > _CHARACTERS:
        query = query[: len(query) * _CHARACTERS // length]
    return query


def _batches(queries: Sequence[str]) -> Iterator[list[str]]:
    """Queries that fit one line of a request together."""
    batch, length = list[str](), 0
    for query in queries:
        size = len(quote(query)) + len("queries=&")
        if batch and (len(batch) == _QUERIES or length + size > _CHARACTERS):
            yield batch
            batch, length = [], 0
        batch.append(query)
        length += size
    if batch:
        yield batch
