"""What a run keeps of its tokens for reading: a sample of a batch now and then, in a file of JSON lines."""

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hpt_trl.files import lines_of, valid_json, write_atomically
from hpt_trl.token_scores.selection import groups_by_token

# Tokens of a sample, and those before a token that its text is taken with.
_MOST, _CONTEXT = 1024, 8


class FirstSequence:
    """What is known of the tokens of a batch's first sequence; its tensors are read when it is asked for.

    Args:
        batch: `input_ids` and `labels`, (B, T), and without padding `position_ids`.
        learnt: whether a token has a loss, by target token, (B, T).
    """

    def __init__(self, batch: Mapping[str, Any], learnt: Tensor):
        self._ids = batch["input_ids"][0]
        # In a padding-free row others follow.
        self._learnt = learnt[0] & (groups_by_token(batch)[0] == 0)
        self._figures: dict[str, tuple[Tensor, Tensor]] = {}

    def note(self, name: str, values: Tensor, known: Tensor | None = None) -> None:
        """Add a figure of each token; what is noted first stays.

        Args:
            values: by token, (B, T).
            known: which tokens have one, (B, T); by default those that are learnt.
        """
        self._figures.setdefault(name, (values[0], self._learnt if known is None else known[0]))

    def sample(self, **about: Any) -> tuple[list[int], dict[str, Any]] | None:
        """Return token ids and figures for `TokenSamples.write`, None where nothing is learnt.

        The sequence ends with its last token that is learnt: padding may follow it. A figure is None where it is not
        known.

        Args:
            about: what else belongs to the figures.
        """
        places = self._learnt.nonzero()
        if not len(places):
            return None
        end = int(places.max()) + 1
        figures: dict[str, list[Any]] = {}
        for name, (values, known) in self._figures.items():
            each = zip(values[:end].tolist(), known[:end].tolist(), strict=True)
            figures[name] = [value if there else None for value, there in each]
        return self._ids[:end].tolist(), about | figures


class TokenSamples(TrainerCallback):
    """Writes the sample of the first logged step, and of the first one after each doubling of the steps.

    A run of any length then leaves a dozen, dense at the start, where most changes. What a run before this one left
    behind the step where this one begins goes.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path, tokenizer: PreTrainedTokenizerBase):
        self.path = Path(path)
        self.tokenizer = tokenizer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.path.exists():
            self._store([line for line in self._lines() if line["step"] <= state.global_step])

    def write(self, step: int, ids: list[int], figures: dict[str, Any]) -> None:
        """Adds the sample of a step, unless it is too close to the last one.

        Args:
            step: optimizer steps done.
            ids: token ids of a sequence.
            figures: what else belongs to the line; lists are cut like the tokens.
        """
        lines = self._lines() if self.path.exists() else []
        if lines and step < 2 * lines[-1]["step"]:
            return
        ids = ids[:_MOST]
        cut = {name: value[:_MOST] if isinstance(value, list) else value for name, value in figures.items()}
        tokens = [self._text(ids, place) for place in range(len(ids))]
        self._store([*lines, valid_json({"step": step, **cut, "tokens": tokens})])

    def _text(self, ids: list[int], place: int) -> str:
        """A token's text where it stands: by itself a tokenizer may drop its leading space, or a part of a letter."""
        before = str(self.tokenizer.decode(ids[max(place - _CONTEXT, 0) : place]))
        whole = str(self.tokenizer.decode(ids[max(place - _CONTEXT, 0) : place + 1]))
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
        return whole[shared:]

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in lines_of(self.path)]

    def _store(self, lines: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
