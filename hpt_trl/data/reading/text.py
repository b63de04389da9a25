"""The text of a file: UTF-8 with or without the mark in front, UTF-16 or UTF-32, compressed or not."""

import gzip
import io
import zlib
from collections.abc import Iterator
from json import detect_encoding
from pathlib import Path
from typing import BinaryIO, cast

from hpt_trl.errors import UserError

# What reading a file raises where it is damaged or out of reach.
UNREADABLE = (OSError, EOFError, zlib.error)


def lines(path: Path, *, newline: str | None) -> Iterator[str]:
    """The lines of a file, each with its end.

    Args:
        newline: what ends a line, as `open` has it.

    Raises:
        UserError: a line that is no text in the file's encoding.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    encoding, number = _encoding(path), 0
    with _opened(path) as file, io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
        try:
            for line in text:
                number += 1
                yield line
        except UnicodeDecodeError as error:
            raise _undecoded(path, encoding, number, error) from error


def _encoding(path: Path) -> str:
    with _opened(path) as file:
        # Meant for JSON: it looks for the mark, else for zero bytes beside a first character of ASCII.
        return detect_encoding(file.read(4))


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb"))


def _undecoded(path: Path, encoding: str, number: int, error: UnicodeDecodeError) -> UserError:
    if not encoding.startswith("utf-8"):
        return UserError(f"{path}, after line {number}: not {encoding.upper()} text ({error.reason}).")
    # Text is decoded in blocks; the line is found among the bytes.
    with _opened(path) as file:
        for line, content in enumerate(file, 1):
            try:
                content.decode(encoding)
            except UnicodeDecodeError as found:
                number, error = line, found
                break
    return UserError(
        f"{path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start}). Save the file as UTF-8, e.g. "
        f"iconv -f WINDOWS-1252 -t UTF-8 {path.name}."
    )
