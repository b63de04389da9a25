"""Verdicts that are kept: in memory, or in a folder where later runs and other processes find them."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hpt_trl.errors import UserError
from hpt_trl.rewards.judge.question import Question

FILE = "verdicts.sqlite3"
# Seconds that a process waits for another one that writes.
_WAIT = 60.0
_TABLE = """create table if not exists verdicts (
    key text primary key, model text, question text, reference text, answer text, reply text, verdict integer
)"""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Verdict:
    """What a model replied to a question, and whether it finds the answer right."""

    model: str
    question: Question
    reply: str
    right: bool


def verdict_key(model: str, prompt: str) -> str:
    """Returns the name of a verdict: a hash of the model and of all that it was asked."""
    return hashlib.sha256(json.dumps([model, prompt]).encode()).hexdigest()


class Verdicts:
    """Verdicts by their keys.

    Args:
        folder: Where they are kept, made at the first use; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, bool] = {}

    def find(self, keys: Sequence[str]) -> dict[str, bool]:
        """Returns the verdicts that are there.

        Raises:
            UserError: the file cannot be read.
        """
        missing = [key for key in keys if key not in self._known]
        if missing and self._folder is not None:
            self._known |= self._with_file(lambda file: dict(_rows(file, missing)))
        return {key: self._known[key] for key in keys if key in self._known}

    def add(self, verdicts: dict[str, Verdict]) -> None:
        """Keeps verdicts, all of them or, where that fails, none.

        Raises:
            UserError: the file cannot be written.
        """
        self._known |= {key: verdict.right for key, verdict in verdicts.items()}
        if self._folder is not None and verdicts:
            rows = [
                (
                    *(key, verdict.model, verdict.question.question, "\n".join(verdict.question.references)),
                    *(verdict.question.answer, verdict.reply, int(verdict.right)),
                )
                for key, verdict in verdicts.items()
            ]
            self._with_file(
                lambda file: file.executemany("insert or replace into verdicts values (?, ?, ?, ?, ?, ?, ?)", rows)
            )

    def _with_file(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        assert self._folder is not None
        path = self._folder / FILE
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The outer one closes the file, the inner one commits.
            with closing(sqlite3.connect(path, timeout=_WAIT)) as file, file:
                file.execute(_TABLE)
                return work(file)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"judge_cache: {path} cannot be used: {error}. Name another folder, or remove the file; its verdicts "
                "are then asked for anew."
            ) from None


def _rows(file: sqlite3.Connection, keys: Sequence[str]) -> Iterable[tuple[str, bool]]:
    for key in keys:
        for (verdict,) in file.execute("select verdict from verdicts where key = ?", (key,)):
            yield key, bool(verdict)
