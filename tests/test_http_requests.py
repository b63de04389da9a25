"""Questions over HTTP, asked of real servers on the loopback address that fail in every way there is."""

import gzip
import json
import socket
import threading
import time

import pytest

from hpt_trl import http_requests
from hpt_trl.errors import UserError
from hpt_trl.http_requests import Client, ServiceError
from tests.helpers.servers import send, serve


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(http_requests, "FIRST_WAIT", 0.01)


def test_json_comes_back_with_parameters_and_headers():
    with serve(lambda handler, asked: send(handler, {"said": asked.params, "body": asked.body.decode()})) as server:
        client = Client(server.address + "/", timeout=5, retries=0, headers={"Authorization": "Bearer key"})
        assert client.get("/search", [("q", "a b"), ("q", "c&d=é")]) == {"said": {"q": ["a b", "c&d=é"]}, "body": ""}
        assert client.post("judge", {"x": 1})["body"] == '{"x": 1}'
    assert [asked.path for asked in server.asked] == ["/search", "/judge"]
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer key"}


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_failures_that_may_pass_are_asked_again(status):
    def answer(handler, asked):
        send(handler, {"fine": asked.number}, status=200 if asked.number == 3 else status)

    with serve(answer) as server:
        assert Client(server.address, timeout=5, retries=2).get("x") == {"fine": 3}
    with (
        serve(answer) as server,
        pytest.raises(ServiceError, match=f"asked 2 times for /x in .*answers {status}") as raised,
    ):
        Client(server.address, timeout=5, retries=1).get("x")
    assert raised.value.status == status and len(server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_other_statuses_are_final(status):
    with (
        serve(lambda handler, asked: send(handler, {"detail": "wrong key"}, status=status)) as server,
        pytest.raises(ServiceError, match=f"answers {status} .*wrong key") as raised,
    ):
        Client(server.address, timeout=5, retries=5).get("x")
    assert raised.value.status == status and len(server.asked) == 1


def test_the_wait_that_a_service_asks_for_is_kept_up_to_a_bound(monkeypatch):
    def answer(handler, asked):
        send(handler, {}, status=200 if asked.number == 2 else 503, Retry_After="1")

    with serve(answer) as server:
        started = time.monotonic()
        Client(server.address, timeout=5, retries=1).get("x")
        assert time.monotonic() - started >= 1.0
    monkeypatch.setattr(http_requests, "LONGEST_WAIT", 0.05)
    with serve(answer) as server:
        started = time.monotonic()
        Client(server.address, timeout=5, retries=1).get("x")
        assert time.monotonic() - started < 0.9


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServiceError, match=r"does not answer: asked 2 times .*Connection refused") as raised:
        Client(address, timeout=1, retries=1).get("search")
    assert raised.value.status is None and isinstance(raised.value, UserError)


def silent(handler, asked):
    time.sleep(1.0)


def trickling(handler, asked):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(10):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize("slow", [silent, trickling])
def test_a_slow_service_is_given_up(slow):
    with serve(slow) as server:
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"asked 2 times .*(timed out|too slowly).*time-out 0\.3 s"):
            Client(server.address, timeout=0.3, retries=1).get("x")
        assert time.monotonic() - started < 2.0


def test_an_answer_that_breaks_off_is_asked_again():
    def answer(handler, asked):
        if asked.number == 2:
            return send(handler, [1])
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"[1, 2")

    with serve(answer) as server:
        assert Client(server.address, timeout=5, retries=1).get("x") == [1]


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"\xff\xfe\x00", b'{"open": '])
def test_what_is_no_json_is_said(body):
    with serve(lambda handler, asked: send(handler, body)) as server, pytest.raises(ServiceError, match="with no JSON"):
        Client(server.address, timeout=5, retries=3).get("x")
    assert len(server.asked) == 1


def test_an_answer_that_is_nested_too_deep():
    with (
        serve(lambda handler, asked: send(handler, b"[" * 100_000)) as server,
        pytest.raises(ServiceError, match="no JSON \\(it is nested too deep\\)"),
    ):
        Client(server.address, timeout=5, retries=0).get("x")


def test_an_endless_answer_is_refused(monkeypatch):
    monkeypatch.setattr(http_requests, "LARGEST_ANSWER", 2**20)
    with (
        serve(lambda handler, asked: send(handler, b" " * 2**21)) as server,
        pytest.raises(ServiceError, match="more than 1 MiB"),
    ):
        Client(server.address, timeout=5, retries=0).get("x")


@pytest.mark.parametrize("address", ["", "localhost:8002", "ftp://host/x", "http://", "/search", "file:///etc/passwd"])
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match="no address of a service"):
        Client(address, timeout=1, retries=0)


def test_messages_hold_neither_password_nor_key():
    with serve(lambda handler, asked: send(handler, {}, status=404)) as server:
        address = server.address.replace("http://", "http://user:secret@")
        with pytest.raises(ServiceError) as raised:
            Client(address, timeout=1, retries=0, headers={"X-Key": "hidden"}).get("x")
    assert "secret" not in str(raised.value) and "hidden" not in str(raised.value)


def test_a_download_from_another_host_gets_no_key():
    def answer(handler, asked):
        send(handler, b"bytes")

    with serve(answer) as own, serve(answer) as other:
        client = Client(own.address, timeout=5, retries=0, headers={"X-Key": "hidden"})
        assert client.download("img/a.png") == client.download(f"{other.address}/a.png") == b"bytes"
    assert own.asked[0].path == "/img/a.png" and own.asked[0].headers["X-Key"] == "hidden"
    assert "X-Key" not in other.asked[0].headers


def test_threads_share_a_client():
    with serve(lambda handler, asked: send(handler, asked.params["n"])) as server:
        client, found = Client(server.address, timeout=10, retries=2), {}

        def ask(number: int) -> None:
            found[number] = client.get("x", {"n": number})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [str(number)] for number in range(16)}


def test_chunked_and_compressed_answers():
    def answer(handler, asked):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Content-Encoding", "gzip")
        # Else the second question may meet the end of the connection of the first.
        handler.send_header("Connection", "close")
        handler.end_headers()
        body = gzip.compress(json.dumps(["x" * 1000] * 300).encode())
        for start in range(0, len(body), 100):
            piece = body[start : start + 100]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    with serve(answer) as server:
        client = Client(server.address, timeout=5, retries=0)
        assert client.get("x") == client.get("x") == ["x" * 1000] * 300
