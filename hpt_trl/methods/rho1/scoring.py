"""Losses under the reference: of a batch, and of a whole data set into a cache, which is then all a training needs."""

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
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpt_trl.errors import UserError
from hpt_trl.methods.rho1 import head
from hpt_trl.methods.rho1.cache import DIR_KEY, ScoreCache, example_key, scored_positions
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.methods.rho1.reference import MODEL_KEY, fingerprint, load_reference
from hpt_trl.models.built_in import cache_folder
from hpt_trl.models.random_state import kept_random_state

# Batches whose rows are sorted by length together: little is padded, and the rows are still read from nearby.
_WINDOW = 32
# A segment is written when it has so many tokens, or when a kill would cost more than a tenth of the time spent so far.
_SEGMENT_TOKENS = 2**24
_SEGMENT_S = 30.0

_T = TypeVar("_T")


def autocast_of(config: Rho1Config, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Return what makes the context of a reference's forward pass: the precision of the training.

    Not the accelerator's own: it does nothing under DeepSpeed, where the trained model's weights have that type.
    """
    if not (config.bf16 or config.fp16):
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16 if config.bf16 else torch.float16)


@torch.no_grad()
def reference_nll(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the reference's losses of a batch, -log p(label), 0 where there is no label.

    Args:
        model: the reference, in evaluation mode, with TRL's fused head.
        batch: from SFTTrainer's collator, on the model's device.

    Returns:
        (rows, tokens) float16, in nats, at the places of the labels.
    """
    with head.labelled_alone(scored_positions(batch["labels"])[:, 1:].flatten()):
        outputs = model(**batch, fused_lm_head=True)
    losses = torch.zeros(batch["labels"].shape, dtype=torch.float16, device=batch["labels"].device)
    losses[:, 1:] = -outputs.log_probs
    return losses


class Reference:
    """A reference model that is loaded when it is first needed.

    Args:
        load: makes the model.
        device: where it runs.
        autocast: makes the context that it runs in.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ):
        self._load = load
        self._model: PreTrainedModel | None = None
        self.device = device
        self.autocast = autocast

    def nll(self, batch: dict[str, Any]) -> torch.Tensor:
        """Score a batch, see `reference_nll`; it may lie on another device."""
        if self._model is None:
            self._model = self._load()
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        with self.autocast():
            return reference_nll(self._model, batch)

    def unload(self) -> None:
        """Give the model's memory back at once; it refers to itself, by the method that the fused head stands in."""
        self._model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def precision(self) -> float:
        """Of the numbers that it computes with: the distance from 1 to the next."""
        kind = _autocast_type(self.autocast, self.device)
        assert self._model is not None
        return torch.finfo(kind or self._model.dtype).eps


def prepare_cache(
    config: Rho1Config,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    device: torch.device,
) -> ScoreCache:
    """Open the cache of a run, check what is there, and score what is missing; all processes must call it together.

    The random state stays as it is: a run that fills the cache trains as one that finds it filled.

    Args:
        dataset: prepared rows (`input_ids`, `labels`, `seq_lengths` where they are packed).
        collator: the trainer's.
        device: of this process.

    Returns:
        A cache that holds every row of the data set. The reference model is gone by then.

    Raises:
        UserError: no room on the disk, a cache whose scores are not this reference's, or a loss that is not finite.
    """
    autocast = autocast_of(config, device)
    kind = _autocast_type(autocast, device)
    # One process reads gigabytes of weights for the digest, not each of them.
    contents = _in_first_process(lambda: fingerprint(config, tokenizer, autocast=None if kind is None else str(kind)))
    folder = Path(config.reference_cache_dir or cache_folder() / "reference_scores").expanduser()
    # What the first one makes or sets aside, it alone speaks of.
    with PartialState().main_process_first():
        cache = ScoreCache(folder, contents)
    reference = Reference(lambda: load_reference(config, device), device, autocast)
    table = row_table(dataset)
    with kept_random_state(device):
        _in_first_process(lambda: verify(cache, dataset, collator, reference, table, rows=config.reference_check_rows))
        fill(cache, dataset, collator, reference, table, batch_size=config.per_device_train_batch_size)
    reference.unload()
    return cache


@dataclass(frozen=True)
class RowTable:
    """Of each row of a data set: its key (uint64), its tokens, and at most how many of them are scored."""

    keys: np.ndarray
    lengths: np.ndarray
    scored: np.ndarray


def row_table(dataset: Dataset) -> RowTable:
    """Read keys and lengths of all rows."""
    columns = [name for name in ("input_ids", "labels", "seq_lengths") if name in dataset.column_names]
    keys, lengths, scored = [], [], []
    for batch in dataset.with_format("numpy", columns=columns).iter(batch_size=1000):
        for values in zip(*(batch[name] for name in columns), strict=True):
            row = dict(zip(columns, values, strict=True))
            keys.append(example_key(row))
            lengths.append(len(row["input_ids"]))
            scored.append(int((row.get("labels", row["input_ids"])[1:] != -100).sum()))
    return RowTable(np.frombuffer(b"".join(keys), "<u8"), np.array(lengths, np.int64), np.array(scored, np.int64))


def fill(
    cache: ScoreCache,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    reference: Reference,
    table: RowTable,
    *,
    batch_size: int,
) -> int:
    """Score the rows that the cache lacks; all processes must call it together, and each scores its share.

    Returns:
        How many rows were scored, by all processes.

    Raises:
        UserError: no room on the disk, or a loss that is not finite.
    """
    state = PartialState()
    # The first process decides: another run may be writing to the same folder.
    missing = broadcast_object_list([_missing(cache, table.keys)])[0]
    if missing.size == 0:
        return 0
    cache.check_room(missing.size, int(table.scored[missing].sum()))
    batches = _batches(missing, table.lengths, batch_size, state.num_processes)
    own = batches[state.process_index :: state.num_processes]
    with (
        tqdm(
            total=int(table.lengths[missing].sum()),
            desc="Reference losses",
            unit="tok",
            unit_scale=True,
            disable=not state.is_main_process,
        ) as bar,
        _Segments(cache) as segments,
    ):
        for number, (examples, batch) in enumerate(_collated(dataset, collator, own)):
            for losses, row in zip(_split(reference.nll(batch), batch, examples), own[number], strict=True):
                if not np.isfinite(losses).all():
                    raise UserError(
                        f"{MODEL_KEY}: the reference gives row {row} of the prepared data a loss of "
                        f"{losses[~np.isfinite(losses)][0]}. It is damaged, or its type is too narrow: try "
                        "`reference_dtype: float32`."
                    )
                segments.add(table.keys[row].tobytes(), losses)
            # The others go at about the same pace.
            step = batches[number * state.num_processes : (number + 1) * state.num_processes]
            bar.update(int(sum(table.lengths[rows].sum() for rows in step)))
    state.wait_for_everyone()
    cache.reload()
    if _missing(cache, table.keys).size:
        raise UserError(f"{DIR_KEY}: {cache.folder} is not the same folder for all processes; name one that is.")
    return int(missing.size)


def verify(
    cache: ScoreCache,
    dataset: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    reference: Reference,
    table: RowTable,
    *,
    rows: int,
) -> None:
    """Score some rows that the cache holds anew.

    Raises:
        UserError: the losses differ by more than the numbers' precision.
    """
    there = np.flatnonzero(cache.holds(table.keys))
    for row in there[np.linspace(0, there.size - 1, min(rows, there.size), dtype=np.int64)]:
        example = dataset[int(row)]
        batch = collator([example])
        new = _split(reference.nll(batch), batch, [example])[0]
        old = cache.scores(table.keys[row].tobytes())
        assert old is not None
        # Kernels and batches round differently, by a few units of the logits' last place, in either direction; the
        # losses of another model, or of other tokens, differ by tenths and more.
        allowed = 0.02 + 8 * reference.precision
        apart = np.abs(new.astype(np.float32) - old.astype(np.float32)).mean() if new.size == old.size else np.inf
        if new.size and not apart <= allowed:
            raise UserError(
                f"{DIR_KEY}: {cache.folder} does not hold this reference's losses: those of row {row} of the prepared "
                f"data are {apart:.3g} nats apart, {allowed:.3g} at most is rounding. Remove the folder; it is filled "
                "anew."
            )


class _Segments:
    """Collects scored rows and writes them as segments, also when the scoring is interrupted."""

    def __init__(self, cache: ScoreCache):
        self._cache = cache
        self._started = self._written = time.monotonic()
        self._keys: list[bytes] = []
        self._losses: list[np.ndarray] = []
        self._tokens = 0

    def add(self, key: bytes, losses: np.ndarray) -> None:
        self._keys.append(key)
        self._losses.append(losses)
        self._tokens += losses.size
        now = time.monotonic()
        due = now - self._written > max(_SEGMENT_S, (now - self._started) / 10)
        if due or self._tokens >= _SEGMENT_TOKENS:
            self._write()

    def _write(self) -> None:
        keys, losses = self._keys, self._losses
        self._keys, self._losses, self._tokens = [], [], 0
        self._cache.write(keys, losses)
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


def _split(losses: torch.Tensor, batch: dict[str, Any], examples: list[dict[str, Any]]) -> list[np.ndarray]:
    """Each row's losses of its scored tokens, from a batch that is padded or flattened."""
    scored = scored_positions(batch["labels"])
    flat = losses.cpu()[scored].numpy()
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


def _autocast_type(autocast: Callable[[], AbstractContextManager], device: torch.device) -> torch.dtype | None:
    with autocast():
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
