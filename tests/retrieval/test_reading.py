"""Folders of pages: images, PDFs, listed texts, OCR, and everything in them that cannot be read."""

import json
import os
import re

import pytest
from PIL import Image, ImageDraw, ImageFont

from hpt_trl.errors import UserError
from hpt_trl.retrieval.reading import read_pages
from tests.helpers.pages import pdf_of, with_password, write_corpus


@pytest.fixture
def read(tmp_path):
    def call(**settings):
        images = tmp_path / "index" / f"images{len([*tmp_path.glob('index/*')])}"
        return read_pages(tmp_path / "pages", images, **settings)

    (tmp_path / "pages").mkdir()
    return call


def draw(path, color="white", size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_images_of_all_kinds_in_their_natural_order(read, tmp_path):
    pages = tmp_path / "pages"
    names = ["a_10.png", "a_2.jpg", "b/c.WEBP", "b/c_1.jpeg", "d.tif", "e_0003.tiff", "_7.png"]
    for name in [*names, ".hidden.png", ".hidden/x.png"]:
        draw(pages / name)
    (pages / "notes.txt").write_text("left alone")
    found = read()
    assert [(page.name, page.document, page.number) for page in found.pages] == [
        ("_7", "_7", 1),
        ("a_2", "a", 2),
        ("a_10", "a", 10),
        ("b/c", "b/c", 1),
        ("b/c_1", "b/c", 1),
        ("d", "d", 1),
        ("e_0003", "e", 3),
    ]
    assert found.without_text == 7 and not found.skipped
    assert all((tmp_path / "index" / page.image).is_file() for page in found.pages)


def test_copies_are_the_same_bytes_and_references_absolute_paths(read, tmp_path):
    draw(tmp_path / "pages" / "a.jpg")
    (copied,), (referred,) = read().pages, read(copy_images=False).pages
    assert (tmp_path / "index" / copied.image).read_bytes() == (tmp_path / "pages" / "a.jpg").read_bytes()
    assert referred.image == str((tmp_path / "pages" / "a.jpg").resolve())
    assert copied.image_digest == referred.image_digest != ""


def test_a_pdf_gives_pages_with_text_and_pixels(read, tmp_path):
    (tmp_path / "pages" / "report.PDF").write_bytes(pdf_of(["First page of Norvik", "", "Third (7 percent)"[:5]]))
    first, second, third = read(pdf_dpi=72).pages
    assert [page.name for page in (first, second, third)] == ["report_1", "report_2", "report_3"]
    assert (first.text, second.text, third.document, third.number) == ("First page of Norvik", "", "report", 3)
    with Image.open(tmp_path / "index" / first.image) as image:
        assert image.size == (200, 100) and len(image.convert("L").getcolors()) > 2
    with Image.open(tmp_path / "index" / second.image) as image:
        assert image.convert("L").getcolors() == [(20_000, 255)]
    assert [Image.open(tmp_path / "index" / page.image).size for page in read(pdf_dpi=144).pages] == [(400, 200)] * 3


def test_listed_pages_have_texts_numbers_and_names_of_their_own(read, tmp_path):
    pages = tmp_path / "pages"
    for name in ("deep/a_1.png", "deep/b.png", "c.png"):
        draw(pages / name)
    draw(tmp_path / "elsewhere" / "d.png")
    lines = [
        {"image": "a_1.png", "text": "  line\u2028one ", "document": "A", "number": 7},
        {"image": "b.png", "name": "special", "text": None},
        {"image": "../../elsewhere/d.png", "name": "outside", "text": "out"},
    ]
    listed = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    (pages / "deep" / "pages.jsonl").write_text(listed, encoding="utf-8")
    result = read()
    found = {page.name: page for page in result.pages}
    assert not result.left_alone and set(found) == {"deep/a_1", "special", "outside", "c"}
    assert (found["deep/a_1"].text, found["deep/a_1"].document, found["deep/a_1"].number) == ("line\u2028one", "A", 7)
    assert found["outside"].text == "out" and found["c"].text == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 holds list"),
        ('"a.png"', "line 2 holds str"),
        ("{}", "line 2: `image` is missing"),
        ('{"image": ""}', "line 2: `image` is missing"),
        ('{"image": 3}', "`image`: 3 is not allowed; allowed: text"),
        ('{"image": "a.png", "text": 5}', "`text`: 5 is not allowed; allowed: text"),
        ('{"image": "a.png", "number": "1"}', "`number`: '1' is not allowed; allowed: a whole number"),
        ('{"image": "a.png", "number": true}', "`number`: True is not allowed"),
        ('{"image": "a.png", "name": ""}', "`name` is empty"),
        ('{"image": "b.png", "text": "again"}', "stands in .*line 1 already"),
        ('{"image": "a.png", "txt": "x"}', "`txt`: unknown. Did you mean `text`"),
        ('{"image": ".", "text": "x"}', "line 2, `image`: .*pages is no file"),
        ('{"image": "nowhere/..", "text": "x"}', "line 2, `image`: .*pages is no file"),
        ("[" * 100_000, "line 2 is no JSON: it is nested too deep"),
        ('{"image": "a.png", "number": ' + "9" * 5000 + "}", "line 2 is no JSON"),
        ('{"image": "../a.png"}', "lies outside"),
        ('{"image": "r.pdf"}', "names a PDF"),
    ],
)
@pytest.mark.parametrize("on_bad_page", ["error", "skip"])
def test_a_wrong_line_is_an_error_with_its_place(read, tmp_path, line, said, on_bad_page):
    pages = tmp_path / "pages"
    draw(pages / "a.png")
    draw(pages / "b.png")
    draw(tmp_path / "a.png")
    (pages / "r.pdf").write_bytes(pdf_of(["x"]))
    (pages / "pages.jsonl").write_text('{"image": "b.png", "text": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=said) as raised:
        read(on_bad_page=on_bad_page)
    assert "pages.jsonl" in str(raised.value)


def test_a_list_that_is_no_text(read, tmp_path):
    (tmp_path / "pages" / "pages.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"pages\.jsonl cannot be read"):
        read()


def test_a_list_with_the_mark_of_some_editors(read, tmp_path):
    draw(tmp_path / "pages" / "a.png")
    (tmp_path / "pages" / "pages.jsonl").write_text('{"image": "a.png", "text": "x"}\n', encoding="utf-8-sig")
    assert [page.text for page in read().pages] == ["x"]


def test_what_is_left_alone_is_counted_by_its_ending(read, tmp_path):
    draw(tmp_path / "pages" / "a.png")
    draw(tmp_path / "pages" / "sub" / "listed.gif")
    for name in ("b.gif", "sub/c.GIF", "notes.txt", "README", ".hidden.gif"):
        (tmp_path / "pages" / name).write_text("x")
    (tmp_path / "pages" / "sub" / "pages.jsonl").write_text('{"image": "listed.gif"}\n')
    (tmp_path / "pages" / "link").symlink_to(tmp_path / "pages" / "sub", target_is_directory=True)
    found = read()
    assert [page.name for page in found.pages] == ["a", "sub/listed"]
    assert found.told_alone() == "2 .gif, 1 .txt, 1 linked folders, 1 without an ending"


def test_pages_that_can_have_no_text_are_told_before_they_are_read(read, tmp_path):
    pages = tmp_path / "pages"
    (pages / "a.png").write_text("no image")
    (pages / "pages.jsonl").write_text('{"image": "a.png", "text": " "}\n')
    with pytest.raises(UserError, match="none of the 1 pages has text"):
        read(by_text=True)
    assert not (tmp_path / "index").exists()
    for settings in ({}, {"by_text": True, "ocr": True}):
        with pytest.raises(UserError, match="no image that Pillow reads"):
            read(**settings)
    (pages / "b.pdf").write_bytes(pdf_of(["text"]))
    assert [page.name for page in read(by_text=True, on_bad_page="skip").pages] == ["b_1"]


def bad_pages(folder):
    """Files that cannot be read -> what is said of each."""
    draw(folder / "good.png", "red")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("no image")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "none.pdf").write_bytes(pdf_of([]))
    with_password(pdf_of(["secret"]), folder / "locked.pdf")
    (folder / "pages.jsonl").write_text('{"image": "missing.png", "text": "gone"}\n')
    draw(folder / "wide.png", size=(402, 2))
    (folder / "long.pdf").write_bytes(pdf_of(["tall"]).replace(b"[0 0 200 100]", b"[0 0 2 980]  "))
    (folder / "gone.pdf").symlink_to("nowhere.pdf")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.pdf")
    return {
        "wide.png": "wide.png cannot be shown: it has 402 x 2 pixels, one side more than 200 times the other",
        "long.pdf": "long.pdf, page 1 cannot be shown: it has 4 x 1960 pixels",
        "gone.pdf": "gone.pdf cannot be read: there is no such file",
        "pipe.png": "pipe.png is no file",
        "pipe.pdf": "pipe.pdf is no file",
        "cut.png": "cannot be read as an image|is broken",
        "text.jpg": "no image that Pillow reads",
        "broken.pdf": "cannot be read as a PDF",
        "empty.pdf": "cannot be read as a PDF",
        "none.pdf": "cannot be read as a PDF: it is broken, or has no pages",
        "locked.pdf": "is protected by a password; save it without one",
        "missing.png": "pages.jsonl, line 1: .*missing.png: there is no such image",
    }


def test_pages_that_cannot_be_read_are_counted_or_an_error(read, tmp_path):
    wrong = bad_pages(tmp_path / "pages")
    found = read(on_bad_page="skip")
    assert [page.name for page in found.pages] == ["good"]
    assert len(found.skipped) == len(wrong)
    for name, said in wrong.items():
        (message,) = [message for message in found.skipped if name in message]
        assert re.search(said, message), message
    with pytest.raises(UserError, match="write `--on_bad_page skip`, in a recipe `on_bad_page: skip`"):
        read()
    (tmp_path / "pages" / "good.png").unlink()
    with pytest.raises(UserError, match=r"none of its 12 files can be read. The first"):
        read(on_bad_page="skip")


def test_two_pages_of_one_name(read, tmp_path):
    draw(tmp_path / "pages" / "a_1.png")
    (tmp_path / "pages" / "a.pdf").write_bytes(pdf_of(["x"]))
    with pytest.raises(UserError, match=r"a_1\.png and .*a\.pdf both give a page `a_1`"):
        read(on_bad_page="skip")


def test_folders_without_pages(read, tmp_path):
    with pytest.raises(UserError, match="holds no pages"):
        read()
    with pytest.raises(UserError, match="is no folder"):
        read_pages(tmp_path / "nowhere", tmp_path / "images")
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(UserError, match="is no folder"):
        read_pages(tmp_path / "file.png", tmp_path / "images")


def test_ocr_reads_pages_without_text(read, tmp_path):
    pytest.importorskip("rapidocr")
    image = Image.new("RGB", (700, 120), "white")
    ImageDraw.Draw(image).text((20, 30), "Sales of Norvik grew", fill="black", font=ImageFont.load_default(32))
    image.save(tmp_path / "pages" / "scan.png")
    draw(tmp_path / "pages" / "blank.png", size=(200, 200))
    write_corpus(tmp_path / "pages" / "more", ["a text of its own"])
    found = read(ocr=True)
    texts = {page.name: page.text for page in found.pages}
    assert texts == {"scan": "Sales of Norvik grew", "blank": "", "more/sub/doc_1": "a text of its own"}
    assert (found.by_ocr, found.without_text) == (1, 1)
