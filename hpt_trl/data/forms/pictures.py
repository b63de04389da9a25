"""Pictures of rows as files have them: paths from the data's folder, `{bytes, path}`, `<image>` marks in the text.

They stand in columns of their own, or in the parts of messages.
"""

import base64
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List

from hpt_trl.data.faults import Faults
from hpt_trl.data.forms.part_pictures import taken_out
from hpt_trl.data.messages import IMAGE_MARK, IMAGES, images_of
from hpt_trl.data.objects import with_column
from hpt_trl.data.reading.places import Source
from hpt_trl.data.row_checks import iterate_rows

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Of files of these kinds.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")


def with_pictures(rows: Dataset, answers: list[str], faults: Faults) -> Dataset:
    """The rows with pictures that are read where they lie; columns `image` and `images` of other things stay.

    A path counts from the folder of the row's file, else from the working directory. Pictures that the parts of
    messages hold become the column `images`.
    """
    rows, taken = taken_out(rows, [name for name in ("prompt", *answers) if name in rows.column_names])
    damaged = cache(_damage)
    for name in IMAGES:
        if name not in rows.column_names:
            continue
        if _is_read(rows.features[name]):
            for row, (value,) in iterate_rows(undecoded(rows), [name]):
                _noted([_checked(one, damaged) for one in _listed(value)], row, name, faults)
            continue
        first = next((value for _, (value,) in iterate_rows(rows, [name]) if value), None)
        if not taken and not _is_picture(first[0] if isinstance(first, list) else first):
            continue
        read: list[Any] = []
        for row, (value,) in iterate_rows(rows, [name]):
            folder = _folder(faults.source, row)
            read.append(_noted([_checked(_read(one, folder), damaged) for one in _listed(value)], row, name, faults))
        alone = not isinstance(first, list)
        values = [(found[0] if found else None) if alone else found for found in read]
        rows = with_column(rows.remove_columns(name), name, values).cast_column(
            name, Image() if alone else List(Image())
        )
    return rows


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _noted(found: list[Any], row: int, column: str, faults: Faults) -> list[Any]:
    """The pictures of a row; none of one with a fault."""
    if fault := next((one for one in found if isinstance(one, str)), None):
        faults.add(row, f"{fault} Column `{faults.called(column)}`.")
        return []
    return found


def with_places(rows: Dataset, answers: list[str], faults: Faults) -> Dataset:
    """The rows with a part of type image for each `<image>` in the text of a row with pictures."""
    names = [name for name in IMAGES if name in rows.column_names]
    columns = [name for name in ("prompt", *answers) if name in rows.column_names]
    if not names or not any(IMAGE_MARK in str(value) for _, values in iterate_rows(rows, columns) for value in values):
        return rows
    made: dict[str, list[Any]] = {name: [] for name in columns}
    for row, values in iterate_rows(undecoded(rows), [*columns, *names]):
        held = dict(zip([*columns, *names], values, strict=True))
        parted = {name: _parted(held[name], "user" if name == "prompt" else "assistant") for name in columns}
        places = sum(_places(parted[name]) for name in columns)
        count = len(images_of({name: held[name] for name in names}) or [])
        if places and places != count:
            said = f"the text has {places} places for images (`{IMAGE_MARK}`), and the row {count} images"
            faults.add(row, f"{said}; write one for each.")
        for name in columns:
            made[name].append(parted[name])
    for name, changed in made.items():
        rows = with_column(rows.remove_columns(name), name, changed)
    return rows


def undecoded(rows: Dataset) -> Dataset:
    """The rows with their pictures as they are stored, to be counted or looked for."""
    stored = Image(decode=False)
    for name in IMAGES:
        if name in rows.column_names and _is_read(rows.features[name]):
            alone = isinstance(rows.features[name], Image)
            rows = rows.cast_column(name, stored if alone else List(stored))
    return rows


def _is_read(feature: Any) -> bool:
    return isinstance(feature.feature if isinstance(feature, List) else feature, Image)


def _is_picture(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and value.keys() <= {"bytes", "path"}
    if not isinstance(value, str):
        return False
    return (value.lower().endswith(_ENDINGS) and "://" not in value) or _written_out(value) is not None


def _folder(source: str, row: int) -> Path:
    piece = source.piece_of(row) if isinstance(source, Source) else None
    return Path() if piece is None or piece.path is None else piece.path.parent


def _read(value: Any, folder: Path) -> dict[str, Any] | str:
    """Where a picture lies, or its bytes; a text is what is wrong with it."""
    if isinstance(value, dict) and value.get("bytes"):
        return {"bytes": value["bytes"], "path": value.get("path")}
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        return f"{value!r:.60} is no picture; write its path, or {{bytes, path}}."
    if (content := _written_out(path)) is not None:
        return {"bytes": content, "path": None}
    path = path.removeprefix("file://")
    if "://" in path:
        return f"the image {path:.120} is an address; write the path of a copy."
    found = next((place for place in (folder / path, Path(path)) if place.is_file()), None)
    if found is None:
        return f"the image {path:.120} is no file (looked in {folder.resolve()})."
    return {"bytes": None, "path": str(found)}


def _checked(found: dict[str, Any] | str | None, damaged: Callable[[bytes | str], str | None]) -> Any:
    """A picture, or what is wrong with it."""
    if not isinstance(found, dict):
        return found
    content = found.get("bytes") or found.get("path")
    fault = "it has neither bytes nor a path" if content is None else damaged(content)
    if fault is None:
        return found
    name = "" if found.get("path") is None else f" {found['path']:.120}"
    return f"the image{name} cannot be read: {fault}."


def _damage(content: bytes | str) -> str | None:
    """Why a picture, by its bytes or its path, cannot be read; None if it can."""
    # Rows without pictures are read where Pillow is not installed.
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.format == "PNG":
                image.verify()
            else:
                # A JPEG is read to its end in an eighth of its size, which costs little.
                image.draft("L", (1, 1))
                image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        return "it is of no known kind" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
    return None


def _written_out(text: str) -> bytes | None:
    """A picture that stands in the text itself, in base64 with or without the head of a data URI; None of any other."""
    try:
        content = base64.b64decode(text.partition(";base64,")[2] if text.startswith("data:") else text, validate=True)
    except ValueError:
        return None
    return content if content.startswith(_BEGINNINGS) else None


def _parted(value: Any, role: str) -> Any:
    """Messages whose contents are lists of parts, so that no image is put before the first of them."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list):
        return value
    return [
        {**message, "content": _parts(message["content"])}
        if isinstance(message, dict) and isinstance(message.get("content"), str)
        else message
        for message in value
    ]


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for place, said in enumerate(text.split(IMAGE_MARK)):
        if place:
            parts.append({"type": "image"})
        if said:
            parts.append({"type": "text", "text": said})
    return parts


def _places(messages: Any) -> int:
    contents = [message.get("content") for message in messages or [] if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(isinstance(part, dict) and part.get("type") == "image" for part in parts)
