"""Scores of a frozen model of a whole data set, kept in a cache, which is then all that a training needs."""

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import SFTConfig

from hpt_trl.errors import UserError
from hpt_trl.files import cache_folder
from hpt_trl.models.random_state import kept_random_state
from hpt_trl.progress import Bar
from hpt_trl.token_scores.cache import ScoreCache, example_key
from hpt_trl.token_scores.kinds import ScoreKind

# Batches whose rows are sorted by length together: little is padded, and the rows are still read from nearby.
_WINDOW = 32
# A segment is written when it has so many tokens, or when a kill would cost more than a tenth of the time spent so far.
_SEGMENT_TOKENS = 2**24
_SEGMENT_S = 30.0

_T = TypeVar("_T")


def autocast_of(config: SFTConfig, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Return what makes the context of a frozen model's forward pass: the precision of the training.

    Not the accelerator's own: it does nothing under DeepSpeed, where the trained model's weights have that type.
    """
    if not (config.bf16 or config.fp16):
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16 if config.bf16 else torch.float16)


class Scorer:
    """A frozen model that is loaded when it is first needed.

    Args:
        kind: what its scores are.
        load: makes the model.
        score: of the model and a batch on its device: (rows, tokens), in the type of the kind.
        device: where it runs.
        autocast: makes the context that it runs in.
    """

    def __init__(
        self,
        kind: ScoreKind,
        load: Callable[[], torch.nn.Module],
        score: Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.kind = kind
        self._load, self._score = load, score
        self._model: torch.nn.Module | None = None
        self.device = device
        self.autocast = autocast

    def __call__(self, batch: dict[str, Any]) -> torch.Tensor:
        """Score a batch, which may lie on another device."""
        if self._model is None:
            self._model = self._load()
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        with self.autocast():
            return self._score(self._model, batch)

    def unload(self) -> None:
        """Give the model's memory back at once; it may refer to itself, by a method that was put into it."""
        self._model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def precision(self) -> float:
        """Of the numbers that it computes with: the distance from 1 to the next."""
        kind = autocast_type(self.autocast, self.device)
        assert self._model is not None
        return torch.finfo(kind or next(self._model.parameters()).dtype).eps


def prepare_cache(
    scorer: Scorer,
    config: SFTConfig,
    contents: Callable[[str | None], dict[str, Any]],
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> ScoreCache:
    """Open the cache of a run, check what is there, and score what is missing; all processes must call it together.

    The random state stays as it is: a run that fills the cache trains as one that finds it filled.

    Args:
        config: the trainer's. By the keys that begin with the kind's prefix: the folder of all caches of this kind (by
            default one in the package's cache), and how many rows are scored anew to see that the cache fits.
        contents: of the type that the scorer runs in, None without autocast: what the scores depend on; the first
            process alone asks, since weights are read for it.
        dataset: prepared rows (`input_ids`, `labels`, `seq_lengths` where they are packed).
        collator: the trainer's.

    Returns:
        A cache that holds every row of the data set. The model is gone by then.

    Raises:
        UserError: no room on the disk, a cache whose scores are not this model's, or a score that is not finite.
    """
    kind = scorer.kind
    found = _in_first_process(lambda: contents(autocast_name(scorer.autocast, scorer.device)))
    folder, check_rows = getattr(config, kind.dir_key), getattr(config, f"{kind.prefix}_check_rows")
    place = Path(folder or cache_folder() / f"{kind.prefix}_scores").expanduser()
    # What the first one makes or sets aside, it alone speaks of.
    with PartialState().main_process_first():
        cache = ScoreCache(place, found, kind)
    table = row_table(dataset, kind)
    with kept_random_state(scorer.device):
        _in_first_process(lambda: verify(cache, dataset, collator, scorer, table, rows=check_rows))
        fill(cache, dataset, collator, scorer, table, batch_size=config.per_device_train_batch_size)
    scorer.unload()
    return cache


@dataclass(frozen=True)
class RowTable:
    """Of each row of a data set: its key (uint64), its tokens, and at most how many of them are scored."""

    keys: np.ndarray
    lengths: np.ndarray
    scored: np.ndarray


def row_table(dataset: Dataset, kind: ScoreKind) -> RowTable:
    """Read keys and lengths of all rows."""
    columns = [name for name in ("input_ids", "labels", "seq_lengths") if name in dataset.column_names]
    keys, lengths, scored = [], [], []
    for batch in dataset.with_format("numpy", columns=columns).iter(batch_size=1000):
        for values in zip(*(batch[name] for name in columns), strict=True):
            row = dict(zip(columns, values, strict=True))
            keys.append(example_key(row))
            lengths.append(len(row["input_ids"]))
            labels = torch.tensor(row.get("labels", row["input_ids"]))
            scored.append(int(kind.positions(labels[None]).sum()))
    return RowTable(np.frombuffer(b"".join(keys), "<u8"), np.array(lengths, np.int64), np.array(scored, np.int64))


def fill(
    cache: ScoreCache,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    scorer: Scorer,
    table: RowTable,
    *,
    batch_size: int,
) -> int:
    """Score the rows that the cache lacks; all processes must call it together, and each scores its share.

    Returns:
        How many rows were scored, by all processes.

    Raises:
        UserError: no room on the disk, or a score that is not finite.
    """
    state, kind = PartialState(), scorer.kind
    # The first process decides: another run may be writing to the same folder.
    missing = broadcast_object_list([_missing(cache, table.keys)])[0]
    if missing.size == 0:
        return 0
    cache.check_room(missing.size, int(table.scored[missing].sum()))
    batches = _batches(missing, table.lengths, batch_size, state.num_processes)
    own = batches[state.process_index :: state.num_processes]
    with (
        Bar(
            int(table.lengths[missing].sum()),
            f"{kind.owner.capitalize()}: {kind.plural}",
            "tokens",
            shown=state.is_main_process,
            scaled=True,
        ) as bar,
        _Segments(cache) as segments,
    ):
        for number, (examples, batch) in enumerate(_collated(dataset, collator, own)):
            for scores, row in zip(_split(scorer, batch, examples), own[number], strict=True):
                if not np.isfinite(scores).all():
                    raise UserError(
                        f"{kind.prefix}_model_name_or_path: the {kind.owner} gives row {row} of the prepared data a "
                        f"{kind.one} of {scores[~np.isfinite(scores)][0]}. It is damaged, or its type is too narrow: "
                        f"try `{kind.prefix}_dtype: float32`."
                    )
                segments.add(table.keys[row].tobytes(), scores)
            # The others go at about the same pace.
            step = batches[number * state.num_processes : (number + 1) * state.num_processes]
            bar.update(int(sum(table.lengths[rows].sum() for rows in step)))
    state.wait_for_everyone()
    cache.reload()
    if _missing(cache, table.keys).size:
        raise UserError(f"{kind.dir_key}: {cache.folder} is not the same folder for all processes; name one that is.")
    return int(missing.size)


def verify(
    cache: ScoreCache,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    scorer: Scorer,
    table: RowTable,
    *,
    rows: int,
) -> None:
    """Score some rows that the cache holds anew.

    Raises:
        UserError: the scores differ by more than rounding does.
    """
    there, found = np.flatnonzero(cache.holds(table.keys)), {}
    for row in there[np.linspace(0, there.size - 1, min(rows, there.size), dtype=np.int64)]:
        example = dataset[int(row)]
        new = _split(scorer, collator([example]), [example])[0].astype(np.float32)
        if new.size:
            found[row] = new
    if not found:
        return
    kind = scorer.kind
    # Of all these rows: the scores of a short one may lie close together.
    allowed = kind.rounding(np.concatenate(list(found.values())), scorer.precision)
    for row, new in found.items():
        old = cache.scores(table.keys[row].tobytes())
        assert old is not None
        apart = np.abs(new - old.astype(np.float32)).mean() if new.size == old.size else np.inf
        if not apart <= allowed:
            raise UserError(
                f"{kind.dir_key}: {cache.folder} does not hold this {kind.owner}'s {kind.plural}: those of row {row} "
                f"of the prepared data are {apart:.3g}{kind.unit} apart, {allowed:.3g} at most is rounding. Remove the "
                "folder; it is filled anew."
            )


class _Segments:
    """Collects scored rows and writes them as segments, also when the scoring is interrupted."""

    def __init__(self, cache: ScoreCache):
        self._cache = cache
        self._started = self._written = time.monotonic()
        self._keys: list[bytes] = []
        self._scores: list[np.ndarray] = []
        self._tokens = 0

    def add(self, key: bytes, scores: np.ndarray) -> None:
        self._keys.append(key)
        self._scores.append(scores)
        self._tokens += scores.size
        now = time.monotonic()
        due = now - self._written > max(_SEGMENT_S, (now - self._started) / 10)
        if due or self._tokens >= _SEGMENT_TOKENS:
            self._write()

    def _write(self) -> None:
        keys, scores = self._keys, self._scores
        self._keys, self._scores, self._tokens = [], [], 0
        self._cache.write(keys, scores)
        self._written = time.monotonic()

    def __enter__(self) -> "_Segments":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._keys:
            self._write()


def _missing(cache: ScoreCache, keys: np.ndarray) -> np.ndarray:
    """Rows that the cache lacks, each content once, in the data's order."""
    first = np.unique(keys, return_index=True)[1]
    return np.sort(first[~cache.holds(keys[first])])


def _batches(rows: np.ndarray, lengths: np.ndarray, batch_size: int, processes: int) -> list[np.ndarray]:
    """Rows of like length together. Longest first: what does not fit into memory fails at once."""
    window = batch_size * processes * _WINDOW
    batches = []
    for start in range(0, rows.size, window):
        part = rows[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        batches += [part[place : place + batch_size] for place in range(0, part.size, batch_size)]
    return batches


def _collated(
    dataset: Dataset, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], batches: list[np.ndarray]
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Rows and batch, the next one prepared while the last is scored."""

    def collate(rows: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        examples = [dataset[int(row)] for row in rows]
        return examples, collator(examples)

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(collate, rows) for rows in batches[:1]]
        for following in [*batches[1:], None]:
            ready = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(collate, following))
            yield ready


def _split(scorer: Scorer, batch: dict[str, Any], examples: list[dict[str, Any]]) -> list[np.ndarray]:
    """Each row's scores, from a batch that is padded or flattened."""
    scored = scorer.kind.positions(batch["labels"])
    flat = scorer(batch).cpu()[scored].numpy()
    if scored.shape[0] == len(examples):
        counts = scored.sum(1)
    else:
        ends = torch.tensor([len(example["input_ids"]) for example in examples]).cumsum(0)
        counts = scored[0].cumsum(0)[ends - 1].diff(prepend=torch.zeros(1, dtype=torch.long))
    return np.split(flat, counts.cumsum(0)[:-1].numpy())


def _in_first_process(act: Callable[[], _T]) -> _T:
    """Do something in the first process alone: all of them return its result, or raise its `UserError`."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = act()
        except UserError as error:
            outcome[1] = str(error)
    result, message = broadcast_object_list(outcome)
    if message is not None:
        raise UserError(message)
    return result


def autocast_type(autocast: Callable[[], AbstractContextManager], device: torch.device) -> torch.dtype | None:
    """Return the type that a context computes in, None without autocast."""
    with autocast():
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def autocast_name(autocast: Callable[[], AbstractContextManager], device: torch.device) -> str | None:
    """Return the name of that type, for a fingerprint."""
    kind = autocast_type(autocast, device)
    return None if kind is None else str(kind)
