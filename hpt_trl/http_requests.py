"""Questions to a service over HTTP, with time-outs and a bounded number of tries."""

import time
from collections.abc import Mapping
from typing import Any

from hpt_trl.errors import UserError

# Answers after which the same question may be answered.
_PASSING = (408, 429, 500, 502, 503, 504)
# Seconds that a try waits at the most, also where the service asks for more.
_LONGEST_WAIT = 30.0
_SHOWN = 200


class ServiceError(UserError):
    """A service that did not answer, or not as it should."""


class Client:
    """Asks one service; one client may be used by several threads.

    Args:
        address: Base URL.
        timeout: Seconds for a connection, and for each part of an answer.
        retries: How often a question that failed is asked again.
        headers: Sent with each question.
    """

    def __init__(self, address: str, *, timeout: float, retries: int, headers: Mapping[str, str] | None = None):
        self.address = address.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._headers = dict(headers or {})

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """Returns the JSON of the answer.

        Raises:
            ServiceError: no answer after all tries, one that is an error, or one that is no JSON.
        """
        return self._ask("GET", path, params=params)

    def post(self, path: str, json: Any) -> Any:
        """Sends JSON and returns the JSON of the answer.

        Raises:
            ServiceError: no answer after all tries, one that is an error, or one that is no JSON.
        """
        return self._ask("POST", path, json=json)

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        for tried in range(1, self._retries + 2):
            problem, wait, answer = self._try(method, f"{self.address}{path}", tried, content)
            if problem is None:
                return answer
            if wait is None or tried > self._retries:
                break
            time.sleep(min(wait, _LONGEST_WAIT))
        raise ServiceError(f"{self.address}{path} {problem} (asked {tried} times).")

    def _try(self, method: str, url: str, tried: int, content: dict[str, Any]) -> tuple[str | None, float | None, Any]:
        """What is wrong, the seconds after which to ask again (None for never), and the answer."""
        import requests

        wait = min(0.25 * 2**tried, _LONGEST_WAIT)
        try:
            response = requests.request(method, url, timeout=self._timeout, headers=self._headers, **content)
        except requests.Timeout:
            return f"did not answer within {self._timeout:g} s", wait, None
        except requests.RequestException as error:
            return f"cannot be reached ({type(error).__name__})", wait, None
        if response.status_code in _PASSING:
            asked = response.headers.get("Retry-After", "")
            return f"answered {response.status_code}", float(asked) if asked.isdigit() else wait, None
        if not response.ok:
            return f"answered {response.status_code}: {response.text[:_SHOWN]}", None, None
        try:
            return None, None, response.json()
        except ValueError:
            return f"answered something that is no JSON: {response.text[:_SHOWN]!r}", wait, None
