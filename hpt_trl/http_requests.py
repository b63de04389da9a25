"""Questions to a service over HTTP: time-outs, bounded retries, and an error that says in a few words what failed.

urllib3 retries until the head of an answer is there, and its time-out is that of one read. Here the whole answer
counts: a body that breaks off, or trickles in for longer than the time-out, is asked for again.
"""

import random
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from hpt_trl.errors import UserError
from hpt_trl.files import parsed_json

if TYPE_CHECKING:
    import requests

# Seconds: of a connection, before the first retry, and the most that a service may have a retry wait.
CONNECT_TIMEOUT, FIRST_WAIT, LONGEST_WAIT = 5.0, 0.5, 30.0
# An answer above is no ranking, verdict or page: bytes.
LARGEST_ANSWER = 256 * 2**20
_TOO_MANY_REQUESTS = 429
_CHUNK = 2**16


class ServiceError(UserError):
    """A service that does not answer, or answers what it should not.

    Attributes:
        status: its HTTP status; None where no whole answer came.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Client:
    """Asks one service.

    Threads may share it: each has a session, so connections of its own.

    Args:
        address: base URL; paths of questions are appended to it.
        timeout: seconds for a whole answer.
        retries: questions again after a failure of the connection, a time-out, status 429 or 5xx; other statuses are
            final.
        headers: sent with each question, e.g. an API key; they stand in no message.

    Raises:
        UserError: the address is none of http or https.
    """

    def __init__(self, address: str, *, timeout: float, retries: int, headers: dict[str, str] | None = None):
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise UserError(f"{_without_password(address)} is no address of a service; write e.g. http://host:8002.")
        self.address = address.rstrip("/")
        self.shown = _without_password(self.address)
        self.timeout, self.retries = timeout, retries
        self._headers = headers or {}
        self._own = _Own(self._headers)

    def get(self, path: str, params: Any = None) -> Any:
        """The JSON of an answer to GET.

        Args:
            path: below the address.
            params: a mapping, or pairs where a name stands more than once.

        Raises:
            ServiceError: no answer after all retries, a status of failure, or an answer that is no JSON.
        """
        return self._json("GET", path, params=params)

    def post(self, path: str, json: Any) -> Any:
        """The JSON of an answer to POST; see `get`."""
        return self._json("POST", path, json=json)

    def download(self, url: str) -> bytes:
        """The bytes behind a URL, which may be relative to the address; see `get`.

        The headers go to the service's own host alone.
        """
        target = urljoin(f"{self.address}/", url)
        own = urlsplit(target).netloc == urlsplit(self.address).netloc
        return self._ask("GET", target, headers=None if own else dict.fromkeys(self._headers))

    def _json(self, method: str, path: str, **question: Any) -> Any:
        body = self._ask(method, f"{self.address}/{path.lstrip('/')}", **question)
        try:
            return parsed_json(body)
        except ValueError as error:
            start = body[:80].decode("utf-8", errors="replace")
            raise ServiceError(
                f"{self.shown} answers /{path.lstrip('/')} with no JSON ({error}): {start!r}."
            ) from error

    def _ask(self, method: str, url: str, **question: Any) -> bytes:
        import requests
        import urllib3

        started, problem, status, asked_wait = time.monotonic(), "", None, 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                own_wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
                time.sleep(max(own_wait, asked_wait))
            try:
                answer, body = self._once(method, url, question)
            except (requests.RequestException, urllib3.exceptions.HTTPError, TimeoutError) as error:
                if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
                    raise ServiceError(f"{_without_password(url)} is no address of a service: {error}.") from error
                problem, status, asked_wait = cause(error), None, 0.0
                continue
            status = answer.status_code
            if answer.ok:
                return body
            problem = f"it answers {status} {_said(body)}".rstrip()
            if status != _TOO_MANY_REQUESTS and status < 500:
                raise ServiceError(f"{_without_password(url)}: {problem}.", status)
            asked_wait = min(_retry_after(answer), LONGEST_WAIT)
        seconds = time.monotonic() - started
        raise ServiceError(
            f"the service at {self.shown} does not answer: asked {self.retries + 1} times for "
            f"{urlsplit(url).path or '/'} in {seconds:.0f} s, {problem} (time-out {self.timeout:g} s).",
            status,
        )

    def _once(self, method: str, url: str, question: dict[str, Any]) -> "tuple[requests.Response, bytes]":
        deadline = time.monotonic() + self.timeout
        timeouts = (min(CONNECT_TIMEOUT, self.timeout), self.timeout)
        with self._own.session.request(method, url, timeout=timeouts, stream=True, **question) as answer:
            body = bytearray()
            # What has arrived, where `iter_content` would wait for a whole chunk.
            while piece := answer.raw.read1(_CHUNK, decode_content=True):
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer came too slowly")
                if len(body) > LARGEST_ANSWER:
                    raise ServiceError(f"{_without_password(url)} answers more than {LARGEST_ANSWER >> 20} MiB.")
            return answer, bytes(body)


class _Own(threading.local):
    """A session for each thread, made when the thread first asks: `requests` does not share them."""

    def __init__(self, headers: dict[str, str]):
        import requests

        self.session = requests.Session()
        self.session.headers.update(headers)


def cause(error: BaseException) -> str:
    """Returns the innermost reason of a failed request in a few words, e.g. "Connection refused"."""
    while (inner := error.__cause__ or error.__context__ or _reason(error)) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip() or type(error).__name__


def _reason(error: BaseException) -> BaseException | None:
    """urllib3 keeps the reason of its last retry in an attribute, requests keeps urllib3's error as an argument."""
    held = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return held if isinstance(held, BaseException) else None


def _retry_after(answer: "requests.Response") -> float:
    """Seconds that an answer asks to wait; 0 where it says none, or a date."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.strip().isdigit() else 0.0


def _said(body: bytes) -> str:
    text = " ".join(body[:2000].decode("utf-8", errors="replace").split())
    return text if len(text) <= 200 else text[:197] + "..."


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
