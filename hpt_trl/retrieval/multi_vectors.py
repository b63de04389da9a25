"""Ranking by many vectors of each page, compared one by one with those of the query (late interaction, MaxSim).

ColBERT's kind for texts, ColPali's and ColQwen2's for page images, by `MultiVectorEncoder` of sentence-transformers.
Every page is compared: with hundreds of vectors each, thousands of pages want a GPU.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpt_trl.retrieval.vectors import check_probe, embed, load_model, save_probe

_BATCH = 4
# Pages whose vectors are compared at once.
_COMPARED = 256


class MultiVectors:
    """An index of several vectors a page, in half precision, mapped into memory.

    Attributes:
        count: its pages; those without text are not among them where texts are embedded.
    """

    def __init__(self, model: Any, vectors: Any, ends: Any, places: Any):
        self._model, self._vectors, self._ends, self._places = model, vectors, ends, places
        self.count = len(places)

    @classmethod
    def build(cls, name: str, places: Sequence[int], content: Callable[[int], Any]) -> "MultiVectors":
        """Embeds pages; see `Vectors.build`."""
        model = load_model("MultiVectorEncoder", name)
        import numpy

        found: list[Any] = []
        for start in range(0, len(places), _BATCH):
            contents = [content(place) for place in places[start : start + _BATCH]]
            embedded = embed(model.encode_document, name, contents, convert_to_numpy=True)
            found += [vectors.astype(numpy.float16) for vectors in embedded]
        ends = numpy.cumsum([len(vectors) for vectors in found])
        return cls(model, numpy.concatenate(found), ends, numpy.asarray(places))

    def save(self, folder: Path) -> None:
        """Writes vectors, where those of each page end, and the pages' places."""
        import numpy

        folder.mkdir()
        for name, array in (("vectors", self._vectors), ("ends", self._ends), ("places", self._places)):
            numpy.save(folder / f"{name}.npy", array, allow_pickle=False)
        save_probe(self._model, folder)

    @classmethod
    def load(cls, folder: Path, name: str) -> "MultiVectors":
        """Maps an index into memory.

        Raises:
            OSError, ValueError: its files are missing or damaged, or do not belong together.
            UserError: as for `load_model` and `check_probe`.
        """
        model = load_model("MultiVectorEncoder", name)
        check_probe(model, name, folder)
        import numpy

        vectors, ends, places = (
            numpy.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in ("vectors", "ends", "places")
        )
        if len(ends) != len(places) or ends[-1] != len(vectors):
            raise ValueError("the files of its vectors do not belong together")
        return cls(model, vectors, ends, places)

    def rank(self, queries: Sequence[str], top_k: int) -> list[list[tuple[int, float]]]:
        """Ranks the pages for each query: places and scores, best first, the earlier page first among equals."""
        import torch

        asked = [vectors.float().cpu() for vectors in self._model.encode_query(list(queries), show_progress_bar=False)]
        scores = torch.cat(
            [self._compared(asked, start) for start in range(0, self.count, _COMPARED)],
            dim=1,
        )
        ranked = []
        for row in scores:
            best = torch.sort(row, descending=True, stable=True)
            pairs = zip(best.indices[:top_k].tolist(), best.values[:top_k].tolist(), strict=True)
            ranked.append([(int(self._places[index]), score) for index, score in pairs])
        return ranked

    def _compared(self, asked: list[Any], start: int) -> Any:
        import numpy
        import torch

        stop = min(start + _COMPARED, self.count)
        begins = [0 if index == 0 else int(self._ends[index - 1]) for index in range(start, stop)]
        pages = [
            torch.from_numpy(numpy.array(self._vectors[begin : int(self._ends[index])], dtype=numpy.float32))
            for index, begin in zip(range(start, stop), begins, strict=True)
        ]
        return self._model.similarity(asked, pages).float().cpu()
