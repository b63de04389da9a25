"""Folders of pages: drawn images, PDFs written by hand, and a corpus of a few sentences."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

TEXTS = [
    "Norvik Ltd annual report. Revenue grew by 7 percent in 2021.",
    "Tarn Mining: costs fell in the third quarter.",
    "Norvik Ltd staff by country, 2020 and 2021.",
    "Weather stations of the northern coast.",
]


def write_corpus(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    """Writes pages `sub/doc_1`, `sub/doc_2`, ... of one colour each with their texts in a pages.jsonl."""
    (folder / "sub").mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts, start=1):
        name = f"sub/doc_{number}.png"
        Image.new("RGB", (60, 40), (10 * number % 256, 0, 0)).save(folder / name)
        lines.append(json.dumps({"image": name, "text": text}) + "\n")
    (folder / "pages.jsonl").write_text("".join(lines))
    return folder


def pdf_of(texts: Sequence[str]) -> bytes:
    """A PDF with a page of 200 x 100 points for each text."""
    count = len(texts)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {count} /Kids [{' '.join(f'{4 + 2 * i} 0 R' for i in range(count))}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, text in enumerate(texts):
        stream = f"BT /F1 12 Tf 10 50 Td ({text}) Tj ET".encode()
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents {5 + 2 * index} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return body + end % (size, table, size, len(body))


def with_password(pdf: bytes, path: Path) -> None:
    """Writes a PDF that opens with a password only."""
    from io import BytesIO

    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=BytesIO(pdf))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(path)
