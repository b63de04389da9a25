"""Ranking by one vector of each page: a model of sentence-transformers, an exact index of faiss."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError

_FILE, _PROBE_FILE = "vectors.faiss", "probe.npy"
_BATCH = 16
# What an index keeps the vectors of, to tell other weights; and by how much numbers of other hardware may differ.
_PROBE, _PROBE_TOLERANCE = "Which company sold most in the last quarter?", 0.02


def require_embeddings() -> None:
    """Looks whether models of sentence-transformers can be loaded.

    Raises:
        UserError: sentence-transformers or faiss is not installed.
    """
    if find_spec("sentence_transformers") is None or find_spec("faiss") is None:
        raise UserError(
            "vectors and cross-encoders need sentence-transformers and faiss. Run: pip install 'hpt-trl[embeddings]'"
        )


def load_model(kind: str, name: str) -> Any:
    """Loads a model of sentence-transformers.

    Args:
        kind: class of sentence-transformers: `SentenceTransformer`, `MultiVectorEncoder` or `CrossEncoder`.
        name: Hub id or local folder.

    Raises:
        UserError: the extra is not installed, or the model cannot be loaded.
    """
    require_embeddings()
    import sentence_transformers

    try:
        return getattr(sentence_transformers, kind)(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the model {name} cannot be loaded as a {kind} of sentence-transformers: {reason} Write a local folder, "
            "or a Hub id that is cached or reachable."
        ) from error


class Vectors:
    """An index of vectors of length 1, compared by their inner product.

    Attributes:
        count: its vectors; pages without text have none where texts are embedded.
    """

    def __init__(self, model: Any, index: Any):
        self._model, self._index = model, index
        self.count: int = index.ntotal

    @classmethod
    def build(cls, name: str, places: Sequence[int], content: Callable[[int], Any]) -> "Vectors":
        """Embeds pages.

        Args:
            name: of the model.
            places: of the pages that are embedded.
            content: of a place: its text or image.

        Raises:
            UserError: as for `load_model`, or the model takes no such contents.
        """
        model = load_model("SentenceTransformer", name)
        import faiss
        import numpy

        index = None
        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            contents = [content(place) for place in batch]
            vectors = embed(model.encode_document, name, contents, normalize_embeddings=True)
            if index is None:
                index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
            vectors = numpy.ascontiguousarray(vectors, dtype=numpy.float32)
            index.add_with_ids(vectors, numpy.asarray(batch, dtype=numpy.int64))
        return cls(model, index)

    def save(self, folder: Path) -> None:
        """Writes the index as faiss does."""
        import faiss

        folder.mkdir()
        faiss.write_index(self._index, str(folder / _FILE))
        save_probe(self._model, folder)

    @classmethod
    def load(cls, folder: Path, name: str) -> "Vectors":
        """Reads an index.

        Raises:
            OSError, ValueError, RuntimeError: its files are missing or damaged.
            UserError: as for `load_model` and `check_probe`.
        """
        model = load_model("SentenceTransformer", name)
        check_probe(model, name, folder)
        import faiss

        return cls(model, faiss.read_index(str(folder / _FILE)))

    def rank(self, queries: Sequence[str], top_k: int) -> list[list[tuple[int, float]]]:
        """Ranks the pages for each query: places and scores, best first, the earlier page first among equals."""
        import numpy

        vectors = self._model.encode_query(list(queries), normalize_embeddings=True, show_progress_bar=False)
        scores, places = self._index.search(
            numpy.ascontiguousarray(vectors, dtype=numpy.float32), min(top_k, self.count)
        )
        return [
            sorted(zip(row.tolist(), found.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))
            for row, found in zip(places, scores, strict=True)
        ]


def save_probe(model: Any, folder: Path) -> None:
    """Writes what the model makes of a fixed question."""
    import numpy

    numpy.save(folder / _PROBE_FILE, _probe(model), allow_pickle=False)


def check_probe(model: Any, name: str, folder: Path) -> None:
    """Compares what the model makes of the fixed question with what it made when the index was built.

    Raises:
        OSError, ValueError: the file is missing or damaged.
        UserError: it differs: the model has other weights now, or a layer that is drawn anew at each loading.
    """
    import numpy

    kept, now = numpy.load(folder / _PROBE_FILE, allow_pickle=False), _probe(model)
    if kept.shape != now.shape or not numpy.allclose(kept, now, rtol=0, atol=_PROBE_TOLERANCE):
        raise UserError(
            f"the model {name} embeds a query otherwise than when the index was built: it has other weights now, "
            "or lacks a trained layer, which is then drawn anew at each loading. Build the index again, with a model "
            "that is trained for it."
        )


def _probe(model: Any) -> Any:
    import numpy

    (vectors,) = model.encode_query([_PROBE], convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False)
    return numpy.asarray(vectors, dtype=numpy.float32)


def embed(encode: Any, name: str, contents: list[Any], **settings: Any) -> Any:
    """Embeds a batch of texts or images.

    Args:
        encode: of the model.
        name: of the model, for the message.
        contents: texts or images.
        settings: further arguments of `encode`.

    Raises:
        UserError: the model takes no such contents.
    """
    try:
        return encode(contents, batch_size=len(contents), show_progress_bar=False, **settings)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = "texts" if isinstance(contents[0], str) else "images"
        raise UserError(f"the model {name} takes no {what}: {error}") from error
