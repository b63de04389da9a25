"""A judge's service on this machine, which answers as it is told and keeps what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the service does with a question.

    Attributes:
        body: Text that is sent; anything else goes out as JSON.
        wait: Seconds before it answers.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0


def reply(text: Any) -> Answer:
    """An answer as OpenAI's interface has it."""
    return Answer({"choices": [{"message": {"role": "assistant", "content": text}}]})


@dataclass
class Service:
    """What the service was asked, and how many questions were open at once."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    open: int = 0

    @property
    def prompts(self) -> list[str]:
        return [question["messages"][0]["content"] for question in self.asked]


@contextmanager
def judge_service(behave: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Service]:
    """Runs a service while the block lasts.

    Args:
        behave: What it does with a question, by the number of the question (from 1) and its JSON.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                service.asked.append(question)
                service.paths.append(self.path)
                service.authorization.append(self.headers["Authorization"])
                service.times.append(time.monotonic())
                number = len(service.asked)
                service.open += 1
                service.most_at_once = max(service.most_at_once, service.open)
            try:
                answer = behave(number, question)
                time.sleep(answer.wait)
            finally:
                with lock:
                    service.open -= 1
            body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                # Whoever asked has given up.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # The default of 5 resets what waits beyond it.
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    service = Service(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
