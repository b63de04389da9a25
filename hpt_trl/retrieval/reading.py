"""Pages of a folder: images, PDFs, and the texts of `pages.jsonl`."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpt_trl.errors import UserError
from hpt_trl.retrieval.listed import LIST_FILE, Listed, read_list
from hpt_trl.retrieval.ocr import TextReader
from hpt_trl.retrieval.pages import Page, image_digest, no_text, open_image, refuse_narrow, without_halves
from hpt_trl.retrieval.pdf import pdf_pages, require_pdfium

if TYPE_CHECKING:
    from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
PDF = ".pdf"
# `norvik_3`: page 3 of norvik, as VRAG's corpora name their images.
_NUMBERED = re.compile(r"(.*[^/])_(\d{1,9})")
_DIGITS = re.compile(r"(\d+)")


@dataclass
class Reading:
    """What was read of a folder.

    Attributes:
        pages: in the order of their files' names, numbers in them counted as numbers.
        skipped: what is wrong with each page or file that was left out.
        without_text: how many pages have no text.
        by_ocr: how many have the text that OCR found.
        left_alone: how many files are no pages, by their endings, and linked folders.
    """

    pages: list[Page] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    without_text: int = 0
    by_ocr: int = 0
    left_alone: Counter[str] = field(default_factory=Counter)

    def told_alone(self) -> str:
        """What was left alone in words, e.g. "3 .gif, 1 .txt"."""
        return ", ".join(f"{count} {ending}" for ending, count in sorted(self.left_alone.items()))


@dataclass(frozen=True)
class _Found:
    """A page as it is read; `path` is its image's, None for a page of a PDF."""

    name: str
    document: str
    number: int
    text: str
    image: "Image.Image"
    path: Path | None


def read_pages(
    folder: Path,
    images: Path,
    *,
    ocr: bool = False,
    by_text: bool = False,
    on_bad_page: Literal["error", "skip"] = "error",
    copy_images: bool = True,
    pdf_dpi: int = 144,
) -> Reading:
    """Reads the pages of a folder and its subfolders; names that begin with a dot are left alone.

    Args:
        folder: of the pages.
        images: new folder for the page images; a page's `image` is relative to its parent folder.
        ocr: reads the images of pages that have no text.
        by_text: whether pages without any text are of no use; where that shows before they are read, it is told then.
        on_bad_page: what an image or PDF that cannot be read leads to.
        copy_images: whether images that are files are copied; if not, a page's `image` is the file's absolute path.
            Pages of PDFs are written in either case.
        pdf_dpi: pixels per inch of rendered PDFs.

    Raises:
        UserError: the folder is missing or holds no page, two pages have one name, a line of `pages.jsonl` is wrong, an
            extra is not installed, no page can have a text and one is needed, or a page cannot be read and is not to be
            skipped.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder; name one with page images ({', '.join(IMAGES)}) or PDFs.")
    reader = TextReader() if ocr else None
    result, origins = Reading(), dict[str, str]()
    sources = _sources(folder, result.left_alone)
    if by_text and not ocr and sources and not any(_may_have_text(*source) for source in sources):
        raise no_text(len(sources))
    images.mkdir(parents=True)
    for path, listed in sources:
        for found in _pages_of(path, listed, folder, pdf_dpi):
            if isinstance(found, UserError):
                if on_bad_page == "error":
                    raise UserError(
                        f"{found} To leave such pages out, write `--on_bad_page skip`, in a recipe `on_bad_page: skip`."
                    ) from found
                result.skipped.append(str(found))
                continue
            if found.name in origins:
                raise UserError(
                    f"{path} and {origins[found.name]} both give a page `{found.name}`; rename one of them."
                )
            origins[found.name] = str(path)
            text = without_halves(found.text)
            if not text and reader is not None:
                text = reader.read(found.image)
                result.by_ocr += bool(text)
            result.without_text += not text
            result.pages.append(_stored(found, text, images, len(result.pages), copy_images))
    if not result.pages:
        raise UserError(_nothing(folder, result))
    return result


def _nothing(folder: Path, result: Reading) -> str:
    if result.skipped:
        return f"{folder}: none of its {len(result.skipped)} files can be read. The first: {result.skipped[0]}"
    other = f" but {result.told_alone()}" if result.left_alone else ""
    return f"{folder} holds no pages{other}; allowed: images ({', '.join(IMAGES)}) and PDFs, also in subfolders."


def _may_have_text(path: Path, listed: Listed | None) -> bool:
    return path.suffix.lower() == PDF or bool(((listed and listed.text) or "").strip())


def _sources(folder: Path, left_alone: Counter[str]) -> list[tuple[Path, Listed | None]]:
    """Images and PDFs with what is listed of them; an image that is listed in another place comes as well.

    Args:
        left_alone: counts the others.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    files, others, listed = set[Path](), set[Path](), dict[Path, Listed]()
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_alone.update("linked folders" for name in folders if Path(parent, name).is_symlink())
        for path in (Path(parent, name) for name in names if not name.startswith(".") and name != LIST_FILE):
            (files if path.suffix.lower() in (*IMAGES, PDF) else others).add(path)
        for line in read_list(Path(parent, LIST_FILE)) if LIST_FILE in names else ():
            if line.path in listed:
                raise UserError(
                    f"{line.where}: {line.path} stands in {listed[line.path].where} already; drop one of them."
                )
            listed[line.path] = line
    left_alone.update(path.suffix.lower() or "without an ending" for path in others - set(listed))
    if any(path.suffix.lower() == PDF for path in files):
        require_pdfium()
    paths = files | set(listed)
    return [(path, listed.get(path)) for path in sorted(paths, key=lambda path: _natural(path.as_posix()))]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Orders `a_2` before `a_10`."""
    parts = _DIGITS.split(name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts if part]


def _pages_of(path: Path, listed: Listed | None, folder: Path, dpi: int) -> "Iterator[_Found | UserError]":
    """The pages of a file, and in place of one that cannot be read what is wrong with it."""
    name = _name_of(path, listed, folder)
    if path.suffix.lower() != PDF:
        try:
            called = str(path) if listed is None else f"{listed.where}: {path}"
            image = open_image(path, name=called)
            refuse_narrow(*image.size, called)
        except UserError as error:
            yield error
            return
        numbered = _NUMBERED.fullmatch(name)
        document, number = (numbered[1], int(numbered[2])) if numbered else (name, 1)
        if listed is not None:
            document = document if listed.document is None else listed.document
            number = number if listed.number is None else listed.number
        yield _Found(name, document, number, ((listed and listed.text) or "").strip(), image, path)
        return
    try:
        for number, page in enumerate(pdf_pages(path, dpi), start=1):
            yield (
                page
                if isinstance(page, UserError)
                else _Found(f"{name}_{number}", name, number, page[1], page[0], None)
            )
    except UserError as error:
        yield error


def _name_of(path: Path, listed: Listed | None, folder: Path) -> str:
    """What a file's page is called: as it is listed, or by its path in the folder, without suffix."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path).encode('utf-8', 'replace').decode()} is no name in UTF-8; rename it.") from error
    if listed is not None and listed.name is not None:
        return listed.name
    if listed is not None and path.suffix.lower() == PDF:
        raise UserError(f"{listed.where}: `image` names a PDF; PDFs need no line, their pages have text of their own.")
    if not path.is_relative_to(folder):
        raise UserError(
            f"{listed.where if listed else path}: {path} lies outside of {folder}; write a `name` beside it."
        )
    return path.relative_to(folder).with_suffix("").as_posix()


def _stored(found: _Found, text: str, images: Path, place: int, copy: bool) -> Page:
    """The page with its image where the index will find it."""
    if found.path is not None and not copy:
        image, file = str(found.path.resolve()), found.path
    else:
        file = images / f"{place:06d}{'.png' if found.path is None else found.path.suffix.lower()}"
        if found.path is None:
            found.image.save(file, format="PNG", compress_level=1)
        else:
            shutil.copyfile(found.path, file)
        image = file.relative_to(images.parent).as_posix()
    return Page(found.name, image, text, found.document, found.number, image_digest(file.read_bytes()))
