"""What a run keeps of its selections for reading: a sample of a batch now and then, in selections.jsonl."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hpt_trl.reporting import valid_json, write_atomically
from hpt_trl.rho1.page import SELECTIONS_FILE

# Tokens of a sample.
_MOST = 1024


class SelectionSamples:
    """Writes the samples of the 1st logged step, and of the first one after each doubling of the steps.

    A run of any length then leaves a dozen, dense at the start, where the selection changes most.
    """

    def __init__(self, output_dir: str | Path, tokenizer: PreTrainedTokenizerBase):
        self.path = Path(output_dir) / SELECTIONS_FILE
        self.tokenizer = tokenizer

    def write(self, step: int, ids: list[int], figures: dict[str, Any]) -> None:
        """Adds the sample of a step, unless it is too close to the last one.

        Args:
            step: optimizer steps done.
            ids: token ids of a sequence.
            figures: what else belongs to the line; lists are cut like the tokens.
        """
        lines = self._lines_before(step)
        if lines and step < 2 * lines[-1]["step"]:
            return
        tokens = [self.tokenizer.decode([token]) for token in ids[:_MOST]]
        cut = {name: value[:_MOST] if isinstance(value, list) else value for name, value in figures.items()}
        lines.append(valid_json({"step": step, **cut, "tokens": tokens}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _lines_before(self, step: int) -> list[dict[str, Any]]:
        """The lines of earlier steps: a resumed run does later ones again."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["step"] < step]
