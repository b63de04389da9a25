"""Indexes on disk: what they hold, what is never lost, and what is refused."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
from PIL import Image

from hpt_trl.errors import UserError
from hpt_trl.retrieval.index import build_index, load_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.pages import pdf_of, write_corpus


@pytest.fixture
def pages(tmp_path):
    return write_corpus(tmp_path / "pages")


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(index, query, top_k=5):
    return [hit.name for hit in index.search([query], top_k)[0]]


def test_an_index_finds_and_shows_pages_without_their_folder(pages, tmp_path):
    built = build_index(pages, tmp_path / "index", IndexSettings())
    shutil.rmtree(pages)
    for index in (built.index, load_index(tmp_path / "index")):
        assert len(index) == len(index.names) == 4
        assert names(index, "Norvik revenue") == ["sub/doc_1", "sub/doc_3"]
        assert index.search(["zebra", "weather"], 1)[0] == []
        assert index.image("sub/doc_2").getpixel((0, 0)) == (20, 0, 0)
        assert index.search([], 3) == []
        with pytest.raises(UserError, match="has no page `sub/doc_9`"):
            index.image("sub/doc_9")
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (facts["kind"], facts["count"], facts["format"]) == ("lexical", 4, 2) and facts["version"]


def test_a_pdf_becomes_images_in_the_index(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "r.pdf").write_bytes(pdf_of(["alpha beta", "gamma delta"]))
    index = build_index(tmp_path / "pages", tmp_path / "index", IndexSettings(copy_images=False)).index
    assert names(index, "gamma") == ["r_2"]
    assert index.image("r_2").size == (400, 200)


def test_an_index_may_refer_to_the_images_where_they_lie(pages, tmp_path):
    index = build_index(pages, tmp_path / "index", IndexSettings(copy_images=False)).index
    assert not any((tmp_path / "index" / "images").iterdir())
    moved = shutil.move(tmp_path / "index", tmp_path / "moved")
    assert load_index(moved).image("sub/doc_1").size == (60, 40)
    shutil.rmtree(pages)
    with pytest.raises(UserError, match=r"page sub/doc_1: .*doc_1\.png cannot be read.*Build it again: hpt-trl index"):
        index.image("sub/doc_1")
    with pytest.raises(UserError, match=r"4 of 4 images are missing, the first .*doc_1\.png.*--overwrite"):
        load_index(moved)


def test_texts_with_half_characters_and_an_index_in_the_working_folder(pages, tmp_path, monkeypatch):
    (pages / "pages.jsonl").write_text('{"image": "sub/doc_1.png", "text": "half \\ud800 alpha\\u2028beta \\u0000"}\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build_index(pages, ".", IndexSettings())
    index = load_index(tmp_path / "here")
    assert names(index, "alpha") == names(index, "beta") == ["sub/doc_1"]
    assert index.pages[0].text.startswith("half ? alpha\u2028beta")


def test_names_that_are_no_utf8_are_told(pages, tmp_path):
    shutil.copy(pages / "sub" / "doc_1.png", os.fsencode(str(pages)) + b"/bad\xff.png")
    with pytest.raises(UserError, match="is no name in UTF-8"):
        build_index(pages, tmp_path / "index", IndexSettings())


def test_digests_follow_the_contents(pages, tmp_path):
    def digest(number, **settings):
        return build_index(pages, tmp_path / f"index{number}", IndexSettings(**settings)).index.digest

    first = digest(0)
    assert digest(1) == first == digest(2, copy_images=False)
    assert digest(3, language="none") != first
    Image.new("RGB", (60, 40), "white").save(pages / "sub" / "doc_1.png")
    changed = digest(4)
    assert changed != first
    (pages / "pages.jsonl").write_text('{"image": "sub/doc_1.png", "text": "other"}\n')
    assert digest(5) != changed


def test_an_index_is_replaced_when_that_is_said_and_only_then(pages, tmp_path):
    target = tmp_path / "index"
    build_index(pages, target, IndexSettings())
    before = tree(target)
    with pytest.raises(UserError, match=r"holds an index already.*--overwrite"):
        build_index(pages, target, IndexSettings())
    assert tree(target) == before
    write_corpus(tmp_path / "others", ["entirely different"])
    index = build_index(tmp_path / "others", target, IndexSettings(), overwrite=True).index
    assert names(index, "different") == ["sub/doc_1"] and len(index) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "others", "pages"]


def test_a_build_that_fails_leaves_the_old_index_and_nothing_else(pages, tmp_path):
    target = tmp_path / "index"
    build_index(pages, target, IndexSettings())
    before = tree(target)
    (pages / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        build_index(pages, target, IndexSettings(), overwrite=True)
    write_corpus(tmp_path / "silent", ["", ""])
    with pytest.raises(UserError, match=r"none of the 2 pages has text.*--ocr"):
        build_index(tmp_path / "silent", target, IndexSettings(), overwrite=True)
    assert tree(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pages", "silent"]


def test_what_is_no_index_is_never_removed(pages, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else than an index"):
        build_index(pages, tmp_path / "mine", IndexSettings(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"):
        build_index(pages, tmp_path / "mine" / "thesis.tex", IndexSettings(), overwrite=True)
    (tmp_path / "empty").mkdir()
    assert len(build_index(pages, tmp_path / "empty", IndexSettings()).index) == 4


@pytest.mark.parametrize("place", ["pages/index", "pages", "."])
def test_index_and_pages_lie_apart(pages, tmp_path, place):
    before = tree(tmp_path)
    with pytest.raises(UserError, match="lie in one another"):
        build_index(pages, tmp_path / place, IndexSettings(), overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "lexcal"}, "no index of kind `lexcal`. Did you mean `lexical`"),
        ({"language": "klingon"}, "no language `klingon`"),
        ({"pdf_dpi": 0}, "`pdf_dpi` is 0; allowed: 36 or more"),
        ({"pdf_dpi": -1}, "`pdf_dpi` is -1; allowed: 36 or more"),
        ({"model": "some/model"}, "an index of words has no model"),
    ],
)
def test_settings_that_are_refused_before_a_page_is_read(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        build_index(tmp_path / "nowhere", tmp_path / "index", IndexSettings(**settings))
    assert not any(tmp_path.iterdir())


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def halved(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def changed(**facts):
    def damage(folder):
        known = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(known | facts))

    return damage


DATA, VOCABULARY, PARAMETERS = "ranking/data.csc.index.npy", "ranking/vocab.index.json", "ranking/params.index.json"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("index.json"), "holds no index"),
        (with_text("index.json", ""), "is damaged"),
        (with_text("index.json", "[1]"), "is damaged"),
        (with_text("index.json", "{}"), "is damaged: 'format' is missing"),
        (halved("index.json"), "is damaged"),
        (changed(format=1), r"is of format 1; this version reads 2.*--overwrite"),
        (changed(count=3), "is not the one that it was built with"),
        (changed(kind="nonsense"), "is not the one|is damaged"),
        (changed(digest="00"), "is not the one that it was built with"),
        (without("pages.jsonl"), "is damaged"),
        (with_text("pages.jsonl", ""), "it has no pages"),
        (halved("pages.jsonl"), "is damaged"),
        (with_text("pages.jsonl", '{"name": "a"}\n'), "is damaged"),
        (with_text("pages.jsonl", "[" * 100_000), "is damaged: it is nested too deep"),
        (without("images/000001.png"), r"is damaged: 1 of 4 images are missing, the first images/000001\.png"),
        (without(DATA), "is damaged"),
        (halved(DATA), "is damaged"),
        (with_text(DATA, ""), "is damaged"),
        (halved(VOCABULARY), "is damaged"),
        (with_text(VOCABULARY, "[]"), "is damaged"),
        (without(PARAMETERS), "is damaged"),
        (with_text(PARAMETERS, "{}"), "is damaged"),
        (lambda folder: shutil.rmtree(folder / "ranking"), "is damaged"),
        (lambda folder: shutil.rmtree(folder), "holds no index"),
    ],
)
def test_damaged_indexes_are_messages(pages, tmp_path, damage, said):
    target = tmp_path / "index"
    build_index(pages, target, IndexSettings())
    damage(target)
    with pytest.raises(UserError, match=said) as raised:
        load_index(target)
    assert str(target) in str(raised.value)


def test_a_ranking_of_other_pages(pages, tmp_path):
    build_index(pages, tmp_path / "index", IndexSettings())
    build_index(write_corpus(tmp_path / "more", ["a b", "c d"]), tmp_path / "other", IndexSettings())
    shutil.rmtree(tmp_path / "index" / "ranking")
    shutil.copytree(tmp_path / "other" / "ranking", tmp_path / "index" / "ranking")
    with pytest.raises(UserError, match="files in ranking are not those that it was built with"):
        load_index(tmp_path / "index")


def test_a_flipped_byte_of_a_ranking_is_told(pages, tmp_path):
    build_index(pages, tmp_path / "index", IndexSettings())
    files = sorted((tmp_path / "index" / "ranking").iterdir())
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match="files in ranking are not those that it was built with"):
            load_index(tmp_path / "index")
        file.write_bytes(content)
    assert names(load_index(tmp_path / "index"), "weather") == ["sub/doc_4"]


def test_a_page_image_that_is_gone_or_another_one(pages, tmp_path):
    index = build_index(pages, tmp_path / "index", IndexSettings(copy_images=False)).index
    assert index.image("sub/doc_2").size == (60, 40)
    Image.new("RGB", (60, 40), "white").save(pages / "sub" / "doc_2.png")
    (pages / "sub" / "doc_1.png").unlink()
    with pytest.raises(UserError, match=r"page sub/doc_1: .*doc_1\.png cannot be read: No such file.*--overwrite"):
        index.image("sub/doc_1")
    with pytest.raises(UserError, match=r"page sub/doc_2: .*doc_2\.png is not the image .* built of.*--overwrite"):
        index.image("sub/doc_2")


def test_names_that_a_disk_does_not_take_are_messages(pages, tmp_path):
    name = "x" * 300
    with pytest.raises(UserError, match="File name too long"):
        load_index(tmp_path / name)
    with pytest.raises(UserError, match="File name too long"):
        build_index(pages, tmp_path / name, IndexSettings())
    with pytest.raises(UserError, match="is no folder"):
        build_index(tmp_path / name, tmp_path / "index", IndexSettings())


@contextmanager
def without_rights(folder):
    """Takes the right to read a folder away; root, whom that does not stop, becomes another user."""
    folder.chmod(0)
    os.seteuid(os.geteuid() or 65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o700)


def test_a_folder_without_the_right_to_read_it_is_a_message(pages, tmp_path):
    build_index(pages, tmp_path / "index", IndexSettings())
    before = tree(tmp_path / "index")
    with without_rights(tmp_path / "index"):
        with pytest.raises(UserError, match=r"index.* cannot be read: Permission denied"):
            load_index(tmp_path / "index")
        with pytest.raises(UserError, match=r"index cannot be written: .*Permission denied"):
            build_index(pages, tmp_path / "index", IndexSettings(), overwrite=True)
    assert tree(tmp_path / "index") == before
