"""Ranking by words: BM25 over the pages' texts (bm25s), saved on disk and mapped into memory."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.retrieval.pages import no_text
from hpt_trl.settings.values import did_you_mean

NO_LANGUAGE = "none"
# A character of Chinese or Japanese writing is a word, as no space parts them; else a run of letters and digits, so
# also the `7` of a table, which the usual pattern of two letters or more leaves out.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# Languages for which bm25s has a list of words that say nothing, by PyStemmer's names.
_STOP_WORDS = {"english": "EN"} | {
    language: language.upper()
    for language in (
        *("german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish"),
        *("norwegian", "danish", "turkish"),
    )
}


class Words:
    """Splits texts into words: lower case, words that say nothing dropped, the others cut to their stems.

    Args:
        language: as PyStemmer names it, e.g. `english`; `none` keeps every word as it is.

    Raises:
        UserError: the extra `retrieval` is not installed, or there is no such language.
    """

    def __init__(self, language: str):
        require_bm25s()
        self.stemmer: Any = None
        self.stop_words: frozenset[str] = frozenset()
        if language == NO_LANGUAGE:
            return
        import Stemmer
        from bm25s import stopwords

        known = Stemmer.algorithms()
        if language not in known:
            raise UserError(
                f"there is no language `{language}` for words.{did_you_mean(language, known)} Allowed: {NO_LANGUAGE}, "
                f"{', '.join(sorted(known))}."
            )
        self.stemmer = Stemmer.Stemmer(language)
        if language in _STOP_WORDS:
            self.stop_words = frozenset(getattr(stopwords, f"STOPWORDS_{_STOP_WORDS[language]}"))

    def of(self, text: str) -> list[str]:
        """The words of a text, in its order."""
        words = [word for word in _WORD.findall(text.lower()) if word not in self.stop_words]
        return words if self.stemmer is None else self.stemmer.stemWords(words)


class Lexical:
    """An index of words."""

    def __init__(self, retriever: Any, words: Words):
        self._retriever, self._words = retriever, words

    @classmethod
    def build(cls, texts: Sequence[str], language: str) -> "Lexical":
        """Indexes texts, with BM25 as Lucene has it (k1 1.5, b 0.75), whose scores are above 0 for every word found.

        Raises:
            UserError: no text has a word, or as for `Words`.
        """
        words = Words(language)
        documents = [words.of(text) for text in texts]
        # In the order of the alphabet: bm25s would number them by a set's order, another one in each process.
        vocabulary = {word: number for number, word in enumerate(sorted({word for text in documents for word in text}))}
        if not vocabulary:
            raise no_text(len(texts))
        import bm25s

        retriever = bm25s.BM25(method="lucene")
        retriever.index(([[vocabulary[word] for word in text] for text in documents], vocabulary), show_progress=False)
        return cls(retriever, words)

    def save(self, folder: Path) -> None:
        """Writes the index as bm25s does."""
        self._retriever.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path, language: str) -> "Lexical":
        """Maps an index into memory.

        Raises:
            OSError, ValueError, KeyError: its files are missing or damaged.
            UserError: as for `Words`.
        """
        words = Words(language)
        import bm25s

        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False), words)

    def rank(self, queries: Sequence[str], top_k: int) -> list[list[tuple[int, float]]]:
        """Ranks the pages for each query.

        Returns:
            Of each query places of pages with their scores, best first, the earlier page first among equals; only pages
            with a word of the query, so none for a query without a known word.
        """
        return [self._rank(query, top_k) for query in queries]

    def _rank(self, query: str, top_k: int) -> list[tuple[int, float]]:
        import numpy

        known = self._retriever.get_tokens_ids(self._words.of(query))
        if not known:
            return []
        scores = self._retriever.get_scores_from_ids(known)
        places = numpy.flatnonzero(scores > 0)
        if len(places) > top_k:
            least = numpy.partition(scores[places], len(places) - top_k)[len(places) - top_k]
            places = places[scores[places] >= least]
        order = numpy.argsort(-scores[places], kind="stable")[:top_k]
        return [(int(place), float(scores[place])) for place in places[order]]


def require_bm25s() -> None:
    """Looks whether an index of words can be made and read.

    Raises:
        UserError: bm25s or PyStemmer is not installed.
    """
    if find_spec("bm25s") is None or find_spec("Stemmer") is None:
        raise UserError("an index of words needs bm25s and PyStemmer. Run: pip install 'hpt-trl[retrieval]'")
