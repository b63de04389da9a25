"""TRL's client of a vLLM server, with an end to every wait.

TRL 1.16 sets no timeout on a request, retries a dead server for a minute and then fails with urllib3's traceback; and
while weights are on their way over NCCL, whose partner is gone, it waits for ever. All requests go through one session,
so one adapter mends them:

    _Adapter.send          a request ends: at once when the server is gone, after `answer_timeout` when it hangs
    Client.check_server    waits for the server as long as TRL says, and looks whether it can take weights
    Client._post           a transfer whose server fails ends, though its own process waits inside of NCCL
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from trl.generation.vllm_client import VLLMClient
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from hpt_trl.errors import UserError
from hpt_trl.http_requests import cause
from hpt_trl.rollouts.vllm_server import CONNECT_TIMEOUT, await_server, lost

# Requests that the server answers only when the trainer, at the same time, has done its part over NCCL.
_WITH_NCCL = ("/init_weight_transfer_engine", "/update_weights")
# Seconds from the failure of such a request to the end of a process that does not come back from NCCL.
GRACE = 20.0


class _Retry(Retry):
    """urllib3's, which does not ask once more what took too long: a generation would begin anew."""

    def increment(
        self,
        method: Any = None,
        url: Any = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Self:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class _Adapter(HTTPAdapter):
    """Requests with timeouts, few retries and a message.

    Args:
        client: whose requests they are.
        answer_timeout: seconds that an answer may take, in which completions are generated.
    """

    def __init__(self, client: "Client", answer_timeout: float):
        self.client, self.answer_timeout = client, answer_timeout
        # A connection that the server closed while it was idle is made anew; a server that was killed is not waited
        # for: a new one would have the weights of its start. Refused connections are tried for 6 seconds.
        retries = _Retry(total=4, connect=3, read=1, status=0, other=0, backoff_factor=1, allowed_methods=None)
        super().__init__(max_retries=retries, pool_maxsize=64)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        # A machine that vanished answers no probe: its connections end after 30 + 3 x 10 seconds.
        keepalive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if name in vars(socket):  # not on every system
                keepalive.append((socket.IPPROTO_TCP, vars(socket)[name], value))
        super().init_poolmanager(*args, socket_options=keepalive, **kwargs)

    def send(
        self,
        request: Any,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        timeout = timeout or (CONNECT_TIMEOUT, self.answer_timeout)
        path = request.path_url.partition("?")[0]
        try:
            response = super().send(request, stream, timeout, verify, cert, proxies)
            _ = response.content  # read here, where a server that dies in the middle is noticed as well
        except requests.RequestException as error:
            problem = cause(error)
            if isinstance(error, requests.ReadTimeout):
                problem = f"no answer in {self.answer_timeout:g} s, the limit that `ddp_timeout` sets"
            raise self.client.lost(f"{path}: {problem}") from error
        # 404 has a meaning to TRL: an endpoint that is not enabled.
        if response.status_code >= 500:
            raise self.client.lost(f"{path}: it answers {response.status_code}, {response.text[:300]}")
        if response.status_code >= 400 and response.status_code != 404:
            raise UserError(
                f"the vLLM server at {self.client.base_url} refuses {path} ({response.status_code}): "
                f"{response.text[:600]}"
            )
        return response


class Client(VLLMClient):
    """`trl`'s `VLLMClient`, which raises a `UserError` with address and cause instead of waiting for ever.

    Args:
        answer_timeout: seconds that the answer to a request may take.
        trained: name of the model that is trained, for the command in messages.

    Raises:
        UserError: the server is not there, cannot take weights, or fails.
    """

    def __init__(self, base_url: str, *, answer_timeout: float, trained: str, **kwargs: Any):
        self.answer_timeout, self.trained = answer_timeout, trained
        self._ending: threading.Timer | None = None
        super().__init__(base_url.rstrip("/"), **kwargs)

    def lost(self, problem: str) -> UserError:
        return lost(self.base_url, self.trained, problem)

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 1.0) -> None:
        # The base calls this first of all, when the session is there.
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Adapter(self, self.answer_timeout))
        await_server(self.base_url, total_timeout, self.trained)

    def init_communicator(self, *args: Any, **kwargs: Any) -> None:
        with self._within_nccl():
            super().init_communicator(*args, **kwargs)

    def update_named_params(self, *args: Any, **kwargs: Any) -> None:
        with self._within_nccl():
            super().update_named_params(*args, **kwargs)

    @contextmanager
    def _within_nccl(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._ending is not None:
                self._ending.cancel()

    def _post(self, url: str, **kwargs: Any) -> dict:
        try:
            return super()._post(url, **kwargs)
        except UserError as error:
            if url.endswith(_WITH_NCCL):
                # Another thread waits in NCCL for the server that is gone and cannot be woken: unless it comes back by
                # itself, in which case the error goes its usual way, the process ends here.
                self._ending = threading.Timer(GRACE, _end, [error])
                self._ending.daemon = True
                self._ending.start()
            raise


def _end(error: UserError) -> None:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(2)
