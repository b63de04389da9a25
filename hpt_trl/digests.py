"""Sizes and digests of a folder's files, written last: by them a damaged or unfinished folder is told from a whole one.

They are against accidents (torn writes, bad disks, mixed-up files), not against somebody who means to deceive.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from hpt_trl.files import parsed_json, sync_to_disk, write_atomically

DIGESTS_FILE = "digests.json"

_ALGORITHM = "xxh3_128"
# Files that people write in: configs, templates, cards.
_BY_HAND = (".json", ".jinja", ".txt", ".md", ".yaml")
# Larger files are read whole only where they are checked, not where they are told from others.
_READ_WHOLE = 64 * 2**20
_PIECES, _PIECE = 64, 2**16
# Files that are read at a time: digests let go of the interpreter's lock.
_THREADS = 4


def note_digests(folder: Path, files: Iterable[Path] | None = None, *, base: str | None = None) -> None:
    """Writes what each file is into the folder's `digests.json`, once all of them are on the disk.

    Args:
        folder: Where the files lie.
        files: By default all below the folder.
        base: Of an adapter: what the weights that it lies over are (`hpt_trl.models.base_weights`).

    Raises:
        OSError: a file could not be read or written.
    """
    found = sorted(files_below(folder) if files is None else files)
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [path.stat().st_size for path in found]
        digests = list(pool.map(_settled, found))
    for below in sorted({path.parent for path in found}):
        sync_to_disk(below)
    names = [path.relative_to(folder).as_posix() for path in found]
    _write(folder, dict(zip(names, zip(sizes, digests, strict=True), strict=True)), base)


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder but its digests."""
    return [path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS_FILE]


def has_digests(folder: Path) -> bool:
    """Whether the folder says what its files are."""
    return (folder / DIGESTS_FILE).is_file()


def noted_base(folder: Path) -> str | None:
    """What the weights were that an adapter was trained over; None where it is not known, or the digests are torn."""
    try:
        base = parsed_json((folder / DIGESTS_FILE).read_bytes()).get("base")
    except (OSError, ValueError, AttributeError):
        return None
    return base if isinstance(base, str) else None


def damage_of(folder: Path, *, contents: bool, edited: bool = False) -> str | None:
    """The first file that is not what was written; None where all are, or where the folder does not say.

    Args:
        folder: Whose `digests.json` is read.
        contents: Whether each file is read as a whole; else its size alone is looked at.
        edited: Whether texts that people write in may have changed, as long as they can be read (`edited_files`).
    """
    if not has_digests(folder):
        return None
    try:
        noted = _read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / DIGESTS_FILE} is torn"
    for name, (size, _) in noted.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size and not (edited and _is_readable_text(path)):
            return f"{path} has {path.stat().st_size:,} bytes, {size:,} were written"
    if not contents:
        return None
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(digest_of, [folder / name for name in noted])
        for (name, (_, digest)), now in zip(noted.items(), found, strict=True):
            if now != digest and not (edited and _is_readable_text(folder / name)):
                return f"{folder / name} is not what was written (its bytes have changed, their number has not)"
    return None


def edited_files(folder: Path) -> list[Path]:
    """Texts of a folder that people write in and that are not what was written there."""
    if not has_digests(folder):
        return []
    noted = {folder / name: digest for name, (_, digest) in _read(folder).items()}
    return [path for path, digest in noted.items() if path.name.endswith(_BY_HAND) and digest_of(path) != digest]


def _is_readable_text(path: Path) -> bool:
    if not path.name.endswith(_BY_HAND):
        return False
    try:
        text = path.read_text(encoding="utf-8")
        # A file that is emptied is a disk's or a copy's doing.
        return (
            bool(text.strip())
            and "\0" not in text
            and (path.suffix != ".json" or isinstance(parsed_json(text), dict | list))
        )
    except (OSError, ValueError):
        return False


def digest_of(path: Path) -> str:
    """Digest of a file's contents; of one that cannot be read, why not.

    A disk that gives an error where a file was written is a damage like any other.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def digest_of_weights(files: Iterable[Path]) -> str:
    """Digest of names, sizes and contents of some files.

    Larger ones are known by pieces from all over them: of weights each differs between two trainings, and reading
    hundreds of gigabytes would delay every start.

    Raises:
        OSError: one cannot be read.
    """
    total = xxhash.xxh3_128()
    for file in files:
        add_file(total, file.name, file)
    return total.hexdigest()


def add_file(total: xxhash.xxh3_128, name: str, file: Path) -> None:
    """Adds a file to a digest: its name, its size and its contents, or pieces of them."""
    size = file.stat().st_size
    total.update(f"{name}\0{size}\0".encode())
    with file.open("rb") as opened:
        if size <= _READ_WHOLE:
            total.update(opened.read())
        else:
            for number in range(_PIECES):
                opened.seek((size - _PIECE) * number // (_PIECES - 1))
                total.update(opened.read(_PIECE))


def _settled(path: Path) -> str:
    """Digest of a file that is brought to the disk."""
    sync_to_disk(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _read(folder: Path) -> dict[str, tuple[int, str]]:
    said: Any = parsed_json((folder / DIGESTS_FILE).read_bytes())
    if said["algorithm"] != _ALGORITHM:
        raise ValueError(said["algorithm"])
    return {str(name): (int(file["bytes"]), str(file["digest"])) for name, file in said["files"].items()}


def _write(folder: Path, noted: Mapping[str, tuple[int, str]], base: str | None) -> None:
    files = {name: {"bytes": size, "digest": digest} for name, (size, digest) in noted.items()}
    said = {"algorithm": _ALGORITHM, "files": files} | ({} if base is None else {"base": base})
    write_atomically(folder / DIGESTS_FILE, json.dumps(said, indent=1) + "\n")
