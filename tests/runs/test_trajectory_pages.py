"""The pages of trajectories: what they show, how they look in a browser, and that broken lines are named."""

import base64
import json
import re
import subprocess
from html.parser import HTMLParser

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.runs.trajectories import Turn, read_trajectories
from hpt_trl.runs.trajectory_pages import draw_trajectories, parts_of
from tests.helpers.browser import browser, near, seen
from tests.helpers.processes import ROOT
from tests.helpers.trajectories import CROP, RAW, TABLE, picture, trajectory, write_trajectories

_VOID = ("meta", "link", "img", "br", "rect")


class Page(HTMLParser):
    """Elements of a page as (tag, attributes, text inside of it), and whether its tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[list] = []
        self.open: list[int] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in _VOID:
            self.open.append(len(self.elements) - 1)
        # Self-contained: nothing but the images inside of it and the pages beside it.
        for name, value in attrs:
            if name in ("src", "href"):
                assert re.match(r"data:|pages/|\.\./index\.html$|\d{4}-[\w-]+\.html$", value), value
            assert not name.startswith("on")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for place in self.open:
            self.elements[place][2] += data

    def all(self, tag, **attributes):
        names = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element[0] == tag and all(element[1].get(name) == value for name, value in names.items())
        ]


def draw(tmp_path, *lines) -> list[Page]:
    folder = write_trajectories(tmp_path, *lines)
    assert draw_trajectories(tmp_path) == folder / "index.html"
    return [Page(path.read_text()) for path in sorted((folder / "pages").iterdir())]


def test_a_trajectory_as_a_page(tmp_path):
    (page,) = draw(tmp_path, trajectory())
    messages = [element for element in page.all("div") if (element[1].get("class") or "").startswith("message turn")]
    assert [message[1]["class"].split()[-1] for message in messages] == ["assistant", "environment"] * 2 + ["assistant"]
    assert [element[2] for element in page.all("mark")] == [
        "<search>revenue 2019 < 2020</search>",
        "<bbox>[75, 260, 350, 420]</bbox>",
        "<answer>12 million</answer>",
    ]
    assert page.all("span", class_="think")[0][2] == "<think>I need the report & its table.</think>"
    rows = {row[2] for row in page.all("tr")}
    expected = {"answer_match1", "page_ndcg0.631", "crop_overlap—", "retrieved pagesreport_1 (reference)"}
    assert expected | {"answer12 million12", "endedanswer", "cropspage report_1, box [150, 520, 700, 840]"} <= rows
    # The question lies open, what stands before it can be opened.
    assert "Search pages" in page.all("details")[0][2] and "What was the revenue" not in page.all("details")[0][2]


def test_images_are_the_files_and_crops_lie_where_they_were_cut(tmp_path):
    (page,) = draw(tmp_path, trajectory())
    for element, name in zip(page.all("img"), ["page_report_1.png", "crop_report_1.png"], strict=True):
        kind, _, content = element[1]["src"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content) == (tmp_path / "trajectories" / "images" / name).read_bytes()
    (drawing,) = page.all("svg", role="img")
    assert [float(side) for side in drawing[1]["viewbox"].split()] == [0, 0, *RAW]
    for kind, box in (("mark-crop", CROP), ("mark-reference", TABLE)):
        # The first of each is the legend's.
        rect = page.all("rect", class_=kind)[-1][1]
        x, y, width, height = (float(rect[side]) for side in ("x", "y", "width", "height"))
        assert (x, y, x + width, y + height) == box
    assert [element[2] for element in page.all("text")] == ["reference", "crop 1"]


def test_crops_are_numbered_and_drawn_on_their_own_page_alone(tmp_path):
    line = trajectory()
    second, last = (10.0, 20.0, 300.0, 400.0), (5.0, 5.0, 90.0, 90.0)
    line["turns"][1]["images"].append(picture("report_2", file="images/page_report_1.png"))
    line["turns"][3]["images"] += [picture("report_2", "crop", box=second), picture("report_1", "crop", box=last)]
    (page,) = draw(tmp_path, line)
    assert [drawing[1]["aria-label"] for drawing in page.all("svg", role="img")] == [
        "reference, crop 1, crop 3",
        "crop 2",
    ]
    captions = [element[2] for element in page.all("figcaption")]
    assert captions[3].startswith("crop 2 of report_2, box 10, 20, 300, 400; 290 \u00d7 380 pixels")


HOSTILE = "</script><img src=x onerror=alert(1)>'\"&{{ 7 * 7 }}"


def test_everything_is_escaped(tmp_path):
    line = trajectory(id=HOSTILE, mode=HOSTILE, rewards={HOSTILE: 1.0})
    line["prompt"][1]["content"] = line["turns"][1]["text"] = HOSTILE
    line["turns"][0]["text"] = f"<search>{HOSTILE}</search>{HOSTILE}"
    line["turns"][1]["images"][0]["name"] = HOSTILE
    line["facts"] |= {"final_answer": HOSTILE, "ended": HOSTILE, HOSTILE: [HOSTILE]}
    line["columns"] = {"reference_pages": [HOSTILE], "reference_boxes": [{"page": HOSTILE, "box": [0, 0, 1, 1]}]}
    (page,) = draw(tmp_path, line)
    index = Page((tmp_path / "trajectories" / "index.html").read_text())
    for shown in (page, index):
        assert not shown.all("script") and "49" not in "".join(element[2] for element in shown.all("td"))
    assert all(element[1]["src"].startswith("data:image/png;base64,") for element in page.all("img"))
    assert page.all("h1")[0][2] == HOSTILE and page.all("mark")[0][2] == f"<search>{HOSTILE}</search>"
    assert index.all("a")[0][2] == HOSTILE


def test_an_image_that_cannot_be_shown_says_why(tmp_path):
    line = trajectory()
    folder = tmp_path / "trajectories"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "text.png").write_text("no image")
    (folder / "images" / "sound.webp").write_bytes(b"RIFF0000WAVE")
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = ["images/none.png", "images/text.png", "../secret.png", str(tmp_path / "secret.png"), "images"]
    line["turns"][1]["images"] = [picture("report_1", file=file) for file in [*files, "images/sound.webp"]]
    line["turns"][1]["images"].append(picture("report_1") | {"file": None})
    (page,) = draw(tmp_path, line)
    reasons = [element[2] for element in page.all("p", class_="missing")]
    for reason, expected in zip(
        reasons,
        [
            "images/none.png is missing",
            "text.png is no PNG",
            "lies outside",
            "lies outside",
            "cannot be read",
            "is no PNG",
            "was not kept",
        ],
        strict=True,
    ):
        assert reason.startswith("No image: ") and expected in reason
    # What would be drawn on it is said in its caption.
    assert "; reference, crop 1" in page.all("figcaption")[0][2]


def test_other_kinds_of_images(tmp_path):
    from PIL import Image

    folder = write_trajectories(tmp_path)
    line = trajectory()
    line["turns"][1]["images"] = []
    for kind in ("jpeg", "webp", "gif"):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"a.{kind}")
        line["turns"][1]["images"].append(picture("report_1", file=f"images/a.{kind}"))
    (page,) = draw(tmp_path, line)
    kinds = [element[1]["src"].partition(";")[0] for element in page.all("img")]
    assert kinds == ["data:image/jpeg", "data:image/webp", "data:image/gif", "data:image/png"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a<think>b</think> <answer>c</answer>d", [("", "a"), ("think", "b"), ("", " "), ("answer", "c"), ("", "d")]),
        ("<search>a", [("", "<search>a")]),
        ("<search>a</answer>", [("", "<search>a</answer>")]),
        ("<bbox>\n[1]\n</bbox>", [("bbox", "\n[1]\n")]),
        ('<tool_call>{"name": "search"}</tool_call>', [("tool_call", '{"name": "search"}')]),
        ("", []),
    ],
)
def test_parts_of_a_text(text, parts):
    assert [(part.kind, part.text) for part in parts_of(Turn("assistant", text))] == parts
    assert "".join(part.opening + part.text + part.closing for part in parts_of(Turn("assistant", text))) == text
    # What the environment says is no action.
    assert all(not part.kind for part in parts_of(Turn("environment", text)))


def test_the_list_links_to_all_pages_and_stale_ones_go(tmp_path):
    odd = trajectory(id="train/1/…", step=None, mode="rehearsal", rewards={"other": -0.5}, facts={}, columns={})
    draw(tmp_path, trajectory(), odd, trajectory(id="…"))
    folder = tmp_path / "trajectories"
    index = Page((folder / "index.html").read_text())
    links = [element[1]["href"] for element in index.all("a")]
    assert links == ["pages/0001-eval-after-3.html", "pages/0002-train-1.html", "pages/0003-trajectory.html"]
    assert all((folder / link).is_file() for link in links)
    rows = [row[2] for row in index.all("tr")]
    assert rows[0] == "idmodeturnsendedanswer_matchaction_formatpage_ndcgcrop_overlapother"
    assert rows[1] == "eval_after/3evaluation after, step 203answer110.631——"
    assert rows[2] == "train/1/…rehearsal——————-0.5"
    middle = Page((folder / links[1]).read_text())
    assert [element[1]["href"] for element in middle.all("a")] == [
        "../index.html",
        "0001-eval-after-3.html",
        "0003-trajectory.html",
    ]
    (folder / "pages" / "notes.html").write_text("mine")
    draw_trajectories(tmp_path)
    write_trajectories(tmp_path, trajectory())
    draw_trajectories(tmp_path)
    assert sorted(path.name for path in (folder / "pages").iterdir()) == ["0001-eval-after-3.html", "notes.html"]


def test_several_files_are_read_in_the_order_of_their_names(tmp_path):
    write_trajectories(tmp_path, trajectory(id="b"), name="train.jsonl")
    write_trajectories(tmp_path, trajectory(id="a"), name="eval.jsonl")
    assert [found.id for found in read_trajectories(tmp_path)] == ["a", "b"]
    assert draw_trajectories(tmp_path / "nothing") is None


def broken(**changes):
    return json.dumps(trajectory(**changes))


def shown(image):
    return broken(turns=[{"role": "environment", "text": "", "images": [image]}])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "no JSON: Expecting value"),
        ("", "no JSON: Expecting value"),
        ("[" * 100_000, "nested too deep"),
        (broken(facts={"deep": "DEEP"}).replace('"DEEP"', "[" * 100_000), "nested too deep"),
        ('{"step": ' + "9" * 6000 + "}", "no JSON: Exceeds the limit"),
        ("[]", "it is []; write an object"),
        ("null", "it is null; write an object"),
        (json.dumps({key: value for key, value in trajectory().items() if key != "turns"}), "no `turns`"),
        (broken(turns=None), "`turns` is null; write a list"),
        (broken(turns="said"), '`turns` is "said"; write a list'),
        (broken(turns=[3]), "`turns` holds 3; write an object"),
        (broken(turns=[{"role": "tool", "text": "a"}]), "a turn of `tool`; allowed: assistant, environment"),
        (broken(turns=[{"role": "assistant"}]), "no `text`"),
        (broken(turns=[{"role": "assistant", "text": 5}]), "`text` is 5; write a text"),
        (shown(3), "`images` holds 3; write an object"),
        (shown(picture("a") | {"kind": None}), "`kind` is null; write a text"),
        (shown(picture("a") | {"raw_size": [0, 5]}), "`raw_size` is [0, 5]; write a size in pixels"),
        (shown(picture("a") | {"raw_size": [1e400, 5]}), "`raw_size` is [Infinity, 5]; write a size in pixels"),
        (shown(picture("a") | {"shown_size": None}), "`shown_size` is null; write a list"),
        (shown(picture("a") | {"box": [1, 2]}), "`box` is [1, 2]; write a box in pixels, 4 numbers"),
        (shown(picture("a") | {"box": [1, 2, 3, None]}), "`box` is [1, 2, 3, null]; write a box"),
        (broken(prompt="Which?"), '`prompt` is "Which?"; write a list'),
        (broken(prompt=[{"content": "Which?"}]), "no `role`"),
        (broken(rewards={"answer_match": "good"}), '`answer_match` is "good"; write a number, or null'),
        (broken(rewards=None), "`rewards` is null; write an object"),
        (broken(facts=[1]), "`facts` is [1]; write an object"),
        (broken(facts=None), "`facts` is null; write an object"),
        (broken(columns={"reference_boxes": [{"box": [0, 0, 1, 1]}]}), "which is no box; write a list of"),
        (broken(columns={"reference_boxes": 5}), "`reference_boxes` holds 5, which is no box"),
        (broken(columns={"reference_pages": 5}), "`reference_pages` is 5; write a list"),
        (broken(columns={"reference_pages": [[1]]}), "`reference_pages` holds [1]; write a text"),
        (broken(columns={"reference_pages": [{"a": 1}]}), '`reference_pages` holds {"a": 1}; write a text'),
        (broken(step="late"), '`step` is "late"; write a whole number, or null'),
        (broken(step="BIG").replace('"BIG"', "1e400"), "`step` is Infinity; write a whole number, or null"),
        (broken(id=None), "`id` is null; write a text"),
        (json.dumps(trajectory())[:-30], "line 2"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    write_trajectories(tmp_path, trajectory(), line)
    with pytest.raises(UserError, match=r"eval.jsonl, line 2: not a trajectory \(.*remove the line") as caught:
        draw_trajectories(tmp_path)
    assert message in str(caught.value)
    # Nothing is written by halves.
    assert not (tmp_path / "trajectories" / "index.html").exists()


def test_halves_of_characters_and_deep_facts_are_shown_as_far_as_they_go(tmp_path):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    (page,) = draw(tmp_path, trajectory(id="half \ud800", facts={"deep": deep, "word": "\ud800"}))
    assert page.all("h1")[0][2] == "half ?"
    rows = {row[2] for row in page.all("tr")}
    assert "word?" in rows and "deep" + "[" * 8 + "…" + "]" * 8 in rows


def test_images_of_kinds_of_the_environments_own(tmp_path):
    line = trajectory()
    line["turns"][1]["images"] = [picture("floor", "map")]
    (page,) = draw(tmp_path, line)
    assert page.all("figcaption")[0][2].startswith("map floor; ")


def test_what_lies_where_files_go_is_named(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    folder = write_trajectories(tmp_path, trajectory())
    for place, made in (("zz.jsonl", "folder"), ("pages", "file"), ("index.html", "folder")):
        path = folder / place
        if made == "folder":
            path.mkdir()
        else:
            path.write_text("mine")
        assert main(["report", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert f"{path} cannot be " in told and "Traceback" not in told
        assert path.is_dir() or path.read_text() == "mine"
        path.rmdir() if made == "folder" else path.unlink()


def test_the_report_writes_and_names_them(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert main(["report", str(tmp_path)]) == 0
    assert "Trajectories" not in capsys.readouterr().out and not (tmp_path / "trajectories").exists()
    write_trajectories(tmp_path, trajectory())
    assert main(["report", str(tmp_path)]) == 0
    assert f"Trajectories: {tmp_path / 'trajectories' / 'index.html'}" in capsys.readouterr().out
    write_trajectories(tmp_path, "nonsense")
    assert main(["report", str(tmp_path)]) == 2
    assert "eval.jsonl, line 1: not a trajectory" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)], ids=["phone-light", "desktop-dark"])
def test_how_it_looks(tmp_path, width, dark):
    wide = trajectory()
    wide["prompt"][1]["content"] = wide["turns"][4]["text"] = wide["facts"]["final_answer"] = "x" * 400
    draw(tmp_path, wide)
    page = (22, 24, 27) if dark else (255, 255, 255)
    (path,) = (tmp_path / "trajectories" / "pages").iterdir()
    pixels = seen(path, tmp_path / "page.png", width=width, height=2600, dark=dark)
    # Nothing runs out of the column: its sides are empty.
    assert near(pixels[:, :8], page) == pixels[:, :8, 0].size and near(pixels[:, -8:], page) == pixels[:, -8:, 0].size
    # Both kinds of rectangles lie on the page, the dashed one with gaps.
    crop, reference = near(pixels, (194, 47, 0)), near(pixels, (11, 87, 176))
    assert crop > 1000 and reference > 800
    scale = min(width * 0.94 - 60, 500) / RAW[0]
    solid = 2 * (CROP[2] - CROP[0] + CROP[3] - CROP[1]) * scale * 3
    assert 0.6 * solid < crop < 2 * solid
    listed = seen(path.parent.parent / "index.html", tmp_path / "index.png", width=width, height=300, dark=dark)
    assert near(listed[:, :8], page) == listed[:, :8, 0].size and near(listed, page) > 0.8 * listed[..., 0].size


def test_the_browser_has_nothing_to_complain_of(tmp_path):
    draw(tmp_path, trajectory())
    (path,) = (tmp_path / "trajectories" / "pages").iterdir()
    odd = tmp_path / "odd.html"
    odd.write_text("<script>nothing()</script>")
    said = {}
    for page in (path, odd):
        command = [
            browser(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--dump-dom",
        ]
        command += [f"--user-data-dir={tmp_path / 'profile'}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        said[page] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert done.returncode == 0
    assert said[path] == [] and len(said[odd]) == 1


def test_the_line_in_the_docs_is_read(tmp_path):
    text = (ROOT / "docs" / "vrag.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```\w*\n(\{\"id\".*?)```", text, re.DOTALL)
    write_trajectories(tmp_path, json.dumps(json.loads(line)))
    (found,) = read_trajectories(tmp_path)
    assert found.reference_boxes == (("report_1", TABLE),) and found.turns[1].images[0].raw_size == RAW


def test_the_report_of_an_evaluation_writes_and_names_them(tmp_path, capsys):
    measures = {"avg@1": 0.5, "rows": 2, "n": 1, "mean_length": 8.0, "truncated": 0.0}
    results = {"recipe": "eval", "stage": "evaluate", "model": "tiny", "data": "2 rows", "measures": measures}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_trajectories(tmp_path, trajectory())
    assert main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "avg@1:" in out and f"Trajectories: {tmp_path / 'trajectories' / 'index.html'}" in out
