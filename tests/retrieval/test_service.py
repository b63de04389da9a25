"""The client of VRAG's search service: loopback servers answer as its FastAPI application does, or worse."""

import base64
from io import BytesIO

import pytest
from PIL import Image

from hpt_trl import http_requests
from hpt_trl.errors import UserError
from hpt_trl.http_requests import ServiceError
from hpt_trl.retrieval.engine import open_engine
from hpt_trl.retrieval.service import Service
from tests.helpers.servers import send, serve


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(http_requests, "FIRST_WAIT", 0.01)


def png(color):
    content = BytesIO()
    Image.new("RGB", (30, 20), color).save(content, format="PNG")
    return content.getvalue()


def vrag(handler, asked):
    """`./search_engine/corpus/img/<file>` with `idx`, up to ten a query, as its search_engine_api.py gives them."""
    files = ["slides_1.jpg", "slides_2.jpg", "slides_10.jpg"]
    rows = [
        [
            {"idx": place, "image_file": f"./search_engine/corpus/img/{file}"}
            for place, file in enumerate(files[len(query) % 3 :] + files[: len(query) % 3])
        ]
        for query in asked.params["queries"]
    ]
    send(handler, rows)


@pytest.mark.parametrize("ending", ["", "/", "/search"])
def test_rankings_come_back_in_the_order_of_the_queries(ending):
    with serve(vrag) as server:
        engine = Service(server.address + ending, timeout=5, retries=0)
        one, two = engine.search(["a&b=c ü", "four"], 2)
        assert engine.search([], 3) == []
    assert [hit.name for hit in one] == ["slides_2", "slides_10"] if len("a&b=c ü") % 3 == 1 else True
    assert [hit.name for hit in two] == ["slides_2", "slides_10"]
    assert (one[0].score, two[0].page.document, two[1].page.number) == (None, "slides", 10)
    assert [(asked.method, asked.path) for asked in server.asked] == [("GET", "/search")]
    assert server.asked[0].params == {"queries": ["a&b=c ü", "four"]}
    assert (engine.names, engine.digest) == (None, f"service {server.address}")


def test_many_and_long_queries_are_asked_in_parts():
    queries = [f"q{'x' * (number % 7)}" for number in range(230)] + ["ü" * 900, "z" * 7000, "short"]
    with serve(vrag) as server:
        rankings = Service(server.address, timeout=10, retries=0).search(queries, 1)
    files = ["slides_1", "slides_2", "slides_10"]
    assert [row[0].name for row in rankings] == [
        files[len(query) % 3] for query in [*queries[:231], "z" * 6000, "short"]
    ]
    asked = [question.params["queries"] for question in server.asked]
    cut = [query for part in asked for query in part]
    assert cut[:231] == queries[:231] and cut[231] == "z" * 6000 and cut[232:] == ["short"]
    assert [len(part) for part in asked] == [100, 100, 31, 1, 1]


def test_images_by_path_folder_address_and_content(tmp_path, monkeypatch):
    def answer(handler, asked):
        if asked.path.endswith(".png"):
            return send(handler, png("green"))
        items = [
            {"image_file": "img/path_1.png", "score": 2, "text": "of the path"},
            {"image_file": f"{server.address}/files/remote_2.png?size=1", "score": 1.5},
            {"image_file": "inside_3.png", "image_base64": base64.b64encode(png("blue")).decode(), "score": 1},
            {"image_file": "C:\\pages\\windows_4.png"},
            {"image_file": "bad_5.png", "image_base64": "&&&"},
            {"image_file": "bad_6.png", "image_base64": base64.b64encode(b"no image").decode()},
        ]
        send(handler, [items])

    monkeypatch.chdir(tmp_path)
    for folder in ("img", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "path_1.png").write_bytes(png("red" if folder == "img" else "white"))
    with serve(answer) as server:
        engine = Service(server.address, timeout=5, retries=0)
        (hits,) = engine.search(["x"], 10)
        assert [hit.name for hit in hits] == ["path_1", "remote_2", "inside_3", "windows_4", "bad_5", "bad_6"]
        assert [hit.score for hit in hits[:4]] == [2.0, 1.5, 1.0, None] and hits[0].page.text == "of the path"
        colors = [engine.image(name).getpixel((0, 0)) for name in ("path_1", "remote_2", "inside_3")]
        assert colors == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
        for name, said in (
            ("windows_4", "windows_4.png: there is no such image"),
            ("bad_5", "no base64"),
            ("bad_6", "^page bad_6 of http.* is no image that Pillow reads"),
            ("never", "has ranked no page `never`"),
        ):
            with pytest.raises(UserError, match=said):
                engine.image(name)
        beside = open_engine(server.address, images=tmp_path / "mine")
        beside.search(["x"], 10)
        assert beside.image("path_1").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"results": []}, "where a list of 1 rankings is due"),
        ([], "where a list of 1 rankings is due"),
        ([[], []], "where a list of 1 rankings is due"),
        (["a.png"], "where a list of 1 rankings is due"),
        ([["a.png"]], "where objects like"),
        ([[{"file": "a.png"}]], "where objects like"),
        ([[{"image_file": ""}]], "where objects like"),
        ([[{"image_file": 5}]], "where objects like"),
        ([[{"image_file": "a.png", "score": "high"}]], "where a finite number as `score` is due"),
        ([[{"image_file": "a.png", "score": float("nan")}]], "where a finite number as `score` is due"),
        ([[{"image_file": "a.png", "score": float("inf")}]], "where a finite number as `score` is due"),
        ([[{"image_file": "a.png", "score": -(10**400)}]], "where a finite number as `score` is due"),
        ([[{"image_file": "a.png", "score": True}]], "where a finite number as `score` is due"),
        ([[{"image_file": "x/a.png"}, {"image_file": "y/a.png"}]], "names of their own"),
        ("text", "where a list of 1 rankings is due"),
        (None, "where a list of 1 rankings is due"),
    ],
)
def test_answers_of_another_kind_are_told(answer, said):
    with (
        serve(lambda handler, asked: send(handler, answer)) as server,
        pytest.raises(ServiceError, match=said) as raised,
    ):
        Service(server.address, timeout=5, retries=2).search(["x"], 5)
    assert server.address in str(raised.value) and len(server.asked) == 1


def test_half_characters_of_an_answer_become_question_marks():
    with serve(lambda handler, asked: send(handler, [[{"image_file": "a\ud800.png", "text": "\ud800b"}]])) as server:
        ((hit,),) = Service(server.address, timeout=5, retries=0).search(["x"], 5)
    assert (hit.name, hit.page.text) == ("a?", "?b")


def test_a_service_that_fails_and_comes_back_or_not():
    def answer(handler, asked):
        if asked.number in (1, 2, 4, 5, 6):
            return send(handler, {"detail": "CUDA out of memory"}, status=500)
        vrag(handler, asked)

    with serve(answer) as server:
        engine = open_engine(server.address, retries=2)
        assert len(engine.search(["first"], 3)[0]) == 3
        with pytest.raises(ServiceError, match=r"asked 3 times for /search .*500 .*CUDA out of memory"):
            engine.search(["second"], 3)
        # What was found before is still known, and the next question is asked anew.
        assert len(engine.search(["first"], 3)[0]) == 3
        assert len(engine.search(["second"], 3)[0]) == 3
    assert len(server.asked) == 7
