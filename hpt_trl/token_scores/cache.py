"""What a frozen model says of tokens, on disk: 2 or 4 bytes a token and 12 bytes a row, found by what a row holds.

A cache is one folder per model and preparation of the rows, `FOLDER/<hash of the contents>/`:

    manifest.json    what the scores belong to, readable; the hash of it names the folder
    <unique>-<digest of the scores>.nll
                     segments: a header, the rows' keys and lengths, then their scores, end to end

A segment is written whole or not at all, and never changed. So processes and runs may fill one folder at once, a run
that is killed loses only what it had not written yet, and rows are found after any shuffling.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
import time
import uuid
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from hpt_trl.errors import UserError
from hpt_trl.token_scores.kinds import ScoreKind

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
# Bytes on disk of a row, beside its scores.
ROW_BYTES = 12

# Magic, rows, scored tokens, digest of the index.
_HEADER = struct.Struct("<8sQQ16s")
# A segment takes seconds to write; what is older was left by a run that was killed.
_ABANDONED_S = 3600.0


def row_key(input_ids: Any, labels: Any = None, seq_lengths: Any = None) -> bytes:
    """Return 8 bytes that stand for a row.

    Args:
        input_ids: (tokens,) as prepared for the training.
        labels: (tokens,), -100 where no loss is taken; by default the ids.
        seq_lengths: of the documents of a packed row, where attention ends with each.
    """
    state = hashlib.blake2b(digest_size=8)
    for part in (input_ids, input_ids if labels is None else labels, [] if seq_lengths is None else seq_lengths):
        numbers = np.asarray(part, dtype=np.int32)
        state.update(len(numbers).to_bytes(4, "little"))
        state.update(numbers.tobytes())
    return state.digest()


def example_key(example: dict[str, Any]) -> bytes:
    """Return the key of a prepared row."""
    return row_key(example["input_ids"], example.get("labels"), example.get("seq_lengths"))


class ScoreCache:
    """The scores of one model on rows of one preparation.

    Args:
        folder: of all caches; this one's is `folder/<hash of contents>`.
        contents: what the scores depend on, readable.
        kind: what they are.

    Raises:
        UserError: the folder cannot be made or read, or holds the scores of something else.
    """

    def __init__(self, folder: str | Path, contents: dict[str, Any], kind: ScoreKind):
        self.kind = kind
        text = json.dumps({"format": FORMAT, **contents}, sort_keys=True)
        self.contents = json.loads(text)
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            self._open()
            self.reload()
        except OSError as error:
            raise UserError(
                f"{kind.dir_key}: {self.folder} cannot be used: {error}. Name a folder that can."
            ) from error

    def reload(self) -> None:
        """Read the segments' indexes: what other processes and runs have written since is there then."""
        parts = []
        self._segments: list[tuple[str, int]] = []
        for path in sorted(self.folder.glob(f"*{self.kind.suffix}")):
            index = _read_index(path, self.kind)
            if index is not None:
                parts.append((len(self._segments), *index))
                self._segments.append((str(path), index[0].size))
        lengths = [length for _, _, length in parts]
        keys = np.concatenate([keys for _, keys, _ in parts] or [np.empty(0, np.uint64)])
        counts = np.concatenate(lengths or [np.empty(0, np.uint32)])
        owners = np.repeat(np.arange(len(parts), dtype=np.int32), [length.size for length in lengths])
        starts = [np.concatenate([[0], np.cumsum(length[:-1], dtype=np.int64)]) for length in lengths]
        # A row that two runs scored is there twice; one of them will do.
        self._keys, first = np.unique(keys, return_index=True)
        self._lengths, self._owners = counts[first], owners[first]
        self._starts = np.concatenate(starts or [np.empty(0, np.int64)])[first]

    def __len__(self) -> int:
        return self._keys.size

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Return for each key (uint64) whether its row is there."""
        place = np.searchsorted(self._keys, keys)
        found = place < self._keys.size
        found[found] = self._keys[place[found]] == keys[found]
        return found

    def scores(self, key: bytes) -> np.ndarray | None:
        """Return the scores of a row's scored tokens in their order, None if the row is not there."""
        number = np.frombuffer(key, dtype="<u8")[0]
        place = np.searchsorted(self._keys, number)
        if place == self._keys.size or self._keys[place] != number:
            return None
        start, length = self._starts[place], self._lengths[place]
        if length == 0:
            return np.empty(0, self.kind.dtype)
        return _scores(*self._segments[self._owners[place]], self.kind.dtype)[start : start + length]

    def refuse_damaged(self, keys: Sequence[bytes]) -> None:
        """Read the segments in which rows lie, each once.

        Raises:
            UserError: a segment's scores are not those that were written.
        """
        numbers = np.frombuffer(b"".join(keys), dtype="<u8")
        places = np.searchsorted(self._keys, numbers)
        for owner in set(self._owners[places[places < self._keys.size]].tolist()):
            path, rows = self._segments[owner]
            if not _is_whole(path, rows, self.kind.dtype):
                raise UserError(
                    f"{self.kind.dir_key}: {path} does not hold the {self.kind.plural} that were written: its bytes "
                    "have changed. Remove the file; its rows are scored anew."
                )

    @property
    def tokens(self) -> int:
        """Scored tokens of the rows that are there."""
        return int(self._lengths.sum(dtype=np.int64))

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*{self.kind.suffix}"))

    def check_room(self, rows: int, tokens: int) -> None:
        """Raise `UserError` if the disk has no room for so many more rows and scored tokens."""
        needed, free = rows * ROW_BYTES + tokens * self.kind.token_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._no_room(needed, "too little room")

    def write(self, keys: Sequence[bytes], scores: Sequence[np.ndarray]) -> None:
        """Add a segment; it is there whole or not at all.

        Args:
            keys: of the rows.
            scores: one array a row.

        Raises:
            UserError: it cannot be written; all other segments are as they were.
        """
        lengths = np.array([len(row) for row in scores], dtype=np.uint32)
        index = b"".join(keys) + lengths.tobytes()
        header = _HEADER.pack(self.kind.magic, len(keys), int(lengths.sum(dtype=np.int64)), _digest(index))
        written = [row.astype(self.kind.dtype, copy=False).tobytes() for row in scores]
        digest = xxhash.xxh3_128()
        for part in written:
            digest.update(part)
        name = f"{uuid.uuid4().hex}-{digest.hexdigest()}"
        partial = self.folder / f"{name}.partial"
        try:
            with partial.open("wb") as file:
                for part in (header, index, *written):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / f"{name}{self.kind.suffix}")
        except OSError as error:
            partial.unlink(missing_ok=True)
            size = len(header) + len(index) + self.kind.token_bytes * int(lengths.sum(dtype=np.int64))
            raise self._no_room(size, str(error.strerror)) from error

    def _no_room(self, needed: int, why: str) -> UserError:
        free = shutil.disk_usage(self.folder).free
        return UserError(
            f"{self.kind.dir_key}: {self.folder} does not take {needed:,} more bytes ({why}); {free:,} are free on its "
            "disk. What was scored before is kept. Make room, or name a folder on another disk; the same command goes "
            "on from there."
        )

    def _open(self) -> None:
        manifest = self.folder / MANIFEST
        found = _read_manifest(manifest)
        if not found:
            self._explain_new()
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = manifest.with_name(f"{uuid.uuid4().hex}.partial")
            partial.write_text(json.dumps(self.contents, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, manifest)
        elif found != self.contents:
            raise UserError(
                f"{self.kind.dir_key}: {manifest} is of other scores than its folder's name says "
                f"({_changed(found, self.contents)}). Remove the folder, or name another one."
            )
        for path in self.folder.glob("*.partial"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)

    def _explain_new(self) -> None:
        """Say what sets the scores that are there apart from these: scoring anew may take hours."""
        others = [found for path in self.folder.parent.glob(f"*/{MANIFEST}") if (found := _read_manifest(path))]
        if others:
            nearest = min((_changed(found, self.contents) for found in others), key=len)
            logger.warning(
                "%s holds scores, but none for this run (other: %s); they stay, and new ones are made.",
                self.folder.parent,
                nearest,
            )


class WithScores:
    """A collator that adds a cache's scores to a batch, under the name of their kind.

    (rows, tokens), at the places of the tokens: the score of each token that has one, else 0. These are the bits of the
    scores, as whole numbers: DeepSpeed would cast the floating numbers of a batch to the training's type. `scores_of`
    has them back.

    Args:
        collator: the trainer's own.
        cache: holds every row that will come.
    """

    def __init__(self, collator: Any, cache: ScoreCache):
        self.collator = collator
        self.cache = cache

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows and look their scores up.

        Raises:
            UserError: a row is not in the cache, has another number of scored tokens there, or scores that are no
                numbers.
        """
        kind, folder = self.cache.kind, self.cache.folder
        rows = [self.cache.scores(example_key(example)) for example in examples]
        batch = self.collator(examples)
        if any(row is None for row in rows):
            raise UserError(
                f"{kind.dir_key}: a row of the training is not in {folder}: the rows have changed since it was filled, "
                "or the processes do not see the same folder. Name one that all of them see."
            )
        # A batch lays its rows one after the other, padded or flattened; so its scored tokens are the rows' in turn.
        scores = np.concatenate([row for row in rows if row is not None])
        scored = kind.positions(batch["labels"])
        if int(scored.sum()) != scores.size:
            raise UserError(
                f"{kind.dir_key}: {folder} has {scores.size} {kind.plural} for rows with {int(scored.sum())} scored "
                "tokens. Remove the folder; it is filled anew."
            )
        if not np.isfinite(scores).all():
            raise UserError(
                f"{kind.dir_key}: {folder} has {kind.plural} that are no numbers: its files are damaged. Remove the "
                "folder; it is filled anew."
            )
        self.cache.refuse_damaged([example_key(example) for example in examples])
        found = torch.zeros(batch["labels"].shape, dtype=kind.torch_dtype)
        found[scored] = torch.from_numpy(scores)
        return {**batch, kind.name: as_bits(found)}


_BITS = {torch.float16: torch.int16, torch.float32: torch.int32}


def as_bits(scores: torch.Tensor) -> torch.Tensor:
    """Return scores as whole numbers of the same bits, which nothing rounds on its way through a trainer."""
    return scores.view(_BITS[scores.dtype])


def scores_of(batch: dict[str, Any], kind: ScoreKind) -> torch.Tensor:
    """Return the scores that a batch carries. Shape: (rows, tokens), float32."""
    return batch[kind.name].view(kind.torch_dtype).float()


@lru_cache(maxsize=256)
def _scores(path: str, rows: int, dtype: np.dtype) -> np.ndarray:
    """A segment's scores; the number of segments open at a time is limited, as that of files is."""
    return np.memmap(path, dtype=dtype, mode="r", offset=_HEADER.size + rows * ROW_BYTES)


@lru_cache(maxsize=65536)
def _is_whole(path: str, rows: int, dtype: np.dtype) -> bool:
    """Whether a segment's scores are those that were written; each is read once, when its first row is asked for.

    Names of segments of former versions hold no digest.
    """
    digest = Path(path).stem.partition("-")[2]
    return not digest or xxhash.xxh3_128(_scores(path, rows, dtype).tobytes()).hexdigest() == digest


def _read_index(path: Path, kind: ScoreKind) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys (uint64) and lengths (uint32) of a segment; a truncated one, or one with a damaged index, is set aside."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) == _HEADER.size:
                magic, rows, tokens, digest = _HEADER.unpack(header)
                whole = _HEADER.size + rows * ROW_BYTES + tokens * kind.token_bytes == path.stat().st_size
                index = file.read(rows * ROW_BYTES) if magic == kind.magic and whole else b""
                if index and _digest(index) == digest:
                    return np.frombuffer(index, "<u8", rows), np.frombuffer(index, "<u4", rows, offset=8 * rows)
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
    except FileNotFoundError:
        # Another process has just set it aside.
        return None
    logger.warning("%s was truncated or damaged: it is set aside as %s, and its rows are scored anew.", path, aside)
    return None


def _digest(index: bytes) -> bytes:
    return hashlib.blake2b(index, digest_size=16).digest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _changed(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)))
