"""Files of rows: any bytes, and right files that are cut, flipped, or of another encoding."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.errors import UserError
from tests.fuzz.bounds import CORPUS, bounded, examples, is_short
from tests.helpers.datasets import load

SIGNS = '[]{}",:\\\n\r\t 01ea\0'
ROWS = [{"prompt": f"What is {i} + 1?", "completion": str(i + 1)} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = ("prompt,completion\n" + "".join(f'"What is {i}, then?",{i}\n' for i in range(20))).encode()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


FILES = {
    ".jsonl": LINES,
    ".jsonl.gz": gzip.compress(LINES),
    ".json": json.dumps(ROWS).encode(),
    ".parquet": _parquet(),
    ".csv": TABLE,
    ".tsv": TABLE.replace(b",", b"\t"),
    ".txt": b"One line.\nAnother.\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


def try_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # A file is one, though it is read twice.
    for layout, kind in (("prompts", "files"), ("documents", "files as documents")):
        try:
            with bounded(kind, content, f"_{path.name}"):
                load(path, layout=layout)
        except UserError as error:
            assert is_short(error), str(error)[:2000]
            assert path.name in str(error)


@pytest.mark.parametrize("path", sorted((CORPUS / "files").iterdir()), ids=lambda path: path.name)
def test_what_was_found(folder, path):
    try_file(folder / path.name, path.read_bytes())


@pytest.mark.parametrize("ending", FILES)
@examples(12, 0.08)
@given(content=st.one_of(st.binary(max_size=300), st.text(alphabet=SIGNS, max_size=100).map(str.encode)))
def test_any_bytes(folder, ending, content):
    try_file(folder / f"any{ending}", content)


@pytest.mark.parametrize("ending", FILES)
@examples(12, 0.08)
@given(data=st.data())
def test_damaged_files(folder, ending, data):
    content = bytearray(FILES[ending])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
    if ending in (".jsonl", ".json", ".csv", ".tsv", ".txt") and data.draw(st.booleans()):
        content = bytearray(content.decode("latin-1").encode(data.draw(encodings)))
    try_file(folder / f"damaged{ending}", bytes(content))
