"""`hpt-trl index` and `hpt-trl search` as processes."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.pages import pdf_of, with_password, write_corpus
from tests.helpers.processes import ENVIRONMENT, ROOT, hpt_trl
from tests.helpers.servers import send, serve


def test_pages_are_indexed_and_found(tmp_path):
    pages, index = write_corpus(tmp_path / "pages"), str(tmp_path / "index")
    (pages / "more.pdf").write_bytes(pdf_of(["Harbour fees of the coast", ""]))
    (pages / "logo.gif").write_bytes(b"GIF89a")
    with_password(pdf_of(["x"]), pages / "locked.pdf")
    refused = hpt_trl("index", str(pages), index)
    assert refused.returncode == 2 and "locked.pdf is protected by a password" in refused.stderr
    built = hpt_trl("index", str(pages), index, "--on_bad_page", "skip")
    assert built.returncode == 0, built.stderr
    assert built.stdout.splitlines()[:2] == [
        "Pages:   6 of 2 documents",
        "No text: 1 pages, which are found by no words (`--ocr` reads images)",
    ]
    assert "Others:  1 .gif, which are no pages and were left alone" in built.stdout
    assert "Skipped: 1 that cannot be read. The first: " in built.stdout and f"Index:   {index}" in built.stdout
    found = hpt_trl("search", index, "the northern coast", "--top_k", "2")
    assert found.returncode == 0, found.stderr
    ranks = [line.split(maxsplit=3) for line in found.stdout.splitlines()]
    assert [(rank, name, text) for rank, _, name, text in ranks] == [
        ("1", "sub/doc_4", "Weather stations of the northern coast."),
        ("2", "more_1", "Harbour fees of the coast"),
    ]
    assert float(ranks[0][1]) > float(ranks[1][1]) > 0
    nothing = hpt_trl("search", index, "zebra")
    assert nothing.returncode == 0 and nothing.stdout == "No page is found: none has a word of the query.\n"


def test_a_reranker_puts_pages_in_another_order(tmp_path, tiny_model_path):
    index = str(tmp_path / "index")
    texts = [f"coast {'and more ' * number}" for number in range(5)]
    assert hpt_trl("index", str(write_corpus(tmp_path / "pages", texts)), index).returncode == 0
    words = ("search", index, "coast", "--top_k", "5")
    plain = hpt_trl(*words).stdout
    again = hpt_trl(*words, "--reranker", f"query_likelihood:{tiny_model_path}")
    assert again.returncode == 0, again.stderr
    names = [[line.split()[2] for line in lines.splitlines()] for lines in (plain, again.stdout)]
    assert sorted(names[0]) == sorted(names[1]) and len(names[0]) == 5
    assert all(float(line.split()[1]) < 0 for line in again.stdout.splitlines())


def test_a_service_is_asked():
    with serve(lambda handler, asked: send(handler, [[{"image_file": "img/a_1.jpg"}]])) as server:
        found = hpt_trl("search", server.address, "anything")
    assert found.returncode == 0 and found.stdout == "1  -  a_1\n"


def test_a_service_that_finds_nothing():
    with serve(lambda handler, asked: send(handler, [[]])) as server:
        found = hpt_trl("search", server.address, "anything")
    assert found.returncode == 0 and found.stdout == "No page is found.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("pages", [40, 4000])
def test_a_reader_that_goes_away_is_no_error(pages, unbuffered):
    """Less than a pipe holds, and more."""
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
    answer = [{"image_file": f"page_{number}.png", "text": "words " * 10} for number in range(pages)]
    with serve(lambda handler, asked: send(handler, [answer])) as server:
        words = [sys.executable, "-m", "hpt_trl", "search", server.address, "x", "--top_k", str(pages)]
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            errors = process.stderr.read()
    assert errors == b"" and process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "nowhere", "index", "--pdf_dpi", "0"], "`pdf_dpi` is 0; allowed: 36 or more"),
        (["search", "nowhere", "query", "--timeout", "3"], "`timeout` is of a search service, and `nowhere` is none"),
        (["search", "http://127.0.0.1:9", "query", "--timeout", "nan"], "`timeout: nan`; allowed: a number of seconds"),
        (["index", "nowhere", "index"], "error: nowhere is no folder"),
        (["index", ".", "index", "--kind", "lexcal"], "Did you mean `lexical`?"),
        (["search", "nowhere", "query"], "error: nowhere holds no index"),
        (["search", "http://127.0.0.1:9", "query", "--retries", "0"], "error: the service at http://127.0.0.1:9"),
    ],
)
def test_mistakes_are_messages(words, said):
    result = hpt_trl(*words)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_an_index_of_words_imports_no_torch(tmp_path):
    write_corpus(tmp_path / "pages")
    index, pages = str(tmp_path / "index"), str(tmp_path / "pages")
    code = (
        "import sys; from hpt_trl.cli import main;"
        f"codes = [main(['index', {pages!r}, {index!r}]), main(['search', {index!r}, 'coast'])];"
        "heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else sum(codes))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_without_the_extra_the_message_names_it(tmp_path):
    """In a process that sees none of the extra's packages."""
    write_corpus(tmp_path / "pages")
    code = (
        "import sys, importlib.util as u; found = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name in {hidden!r} else found(name, *rest);"
        "from hpt_trl.cli import main; sys.exit(main({words!r}))"
    )
    pages, index = str(tmp_path / "pages"), str(tmp_path / "index")
    for hidden, words, said in (
        (["bm25s"], [], "hpt-trl[retrieval]"),
        (["sentence_transformers"], ["--kind", "text_vectors", "--model", "m"], "hpt-trl[embeddings]"),
        (["rapidocr"], ["--ocr"], "hpt-trl[ocr]"),
    ):
        program = code.format(hidden=hidden, words=["index", pages, index, *words])
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        assert result.returncode == 2 and f"pip install '{said}'" in result.stderr, result.stderr
