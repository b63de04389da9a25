"""The page that shows which tokens were selected, from the samples that a run left.

selections.jsonl holds one line per sample, written while training; selections.html is made of it, one file that needs
nothing else. jinja2 is imported on use only.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError

SELECTIONS_FILE = "selections.jsonl"
PAGE_FILE = "selections.html"

_TEMPLATE = "selections.html.jinja"
_LISTS = ("tokens", "loss", "reference_loss", "selected")
_KEYS = ("step", "select_ratio", "scope", "selection", "threshold", *_LISTS)
# Shades on either side of an excess of 0, and the share of the tokens that lie inside the deepest ones.
SHADES = 5
_INSIDE = 0.95


@dataclass(frozen=True)
class Token:
    """One token of a sample; losses in nats, None where there is none.

    Attributes:
        scored: whether its loss counts; a prompt's does not, nor does the first token's.
    """

    text: str
    scored: bool
    selected: bool
    loss: float | None
    reference: float | None

    @property
    def excess(self) -> float | None:
        """The loss above the reference's."""
        return None if self.loss is None or self.reference is None else self.loss - self.reference


def draw_selections(folder: str | Path) -> Path | None:
    """Writes selections.html into a run's folder.

    Returns:
        Its path; None where the run left no samples.

    Raises:
        UserError: selections.jsonl is broken.
    """
    samples = read_samples(folder)
    if not samples:
        return None
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    tokens = [_tokens(sample) for sample in samples]
    scale = _scale(tokens)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(_TEMPLATE).render(
        title=Path(folder).resolve().name,
        samples=[_shown(*pair, scale) for pair in zip(samples, tokens, strict=True)],
        scale=scale,
        shades=SHADES,
    )
    path = Path(folder) / PAGE_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of selections.jsonl; none without the file.

    Raises:
        UserError: a line is not a sample.
    """
    path = Path(folder) / SELECTIONS_FILE
    if not path.exists():
        return []
    samples = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            sample = json.loads(text)
        except ValueError:
            sample = None
        if not isinstance(sample, dict) or any(key not in sample for key in _KEYS):
            raise UserError(f"{path}, line {number}: not a JSON object with {', '.join(_KEYS)}; remove the line.")
        sizes = {key: len(sample[key]) for key in _LISTS if sample[key] is not None}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} of `{key}`" for key, size in sizes.items())
            raise UserError(f"{path}, line {number}: one entry per token is needed, found {found}; remove the line.")
        samples.append(sample)
    return samples


def _scale(samples: list[list[Token]]) -> float | None:
    """The excess, in nats, that has the deepest shade on the page; None without a reference."""
    sizes = sorted(abs(token.excess) for tokens in samples for token in tokens if token.excess is not None)
    return None if not sizes else max(sizes[int(_INSIDE * (len(sizes) - 1))], 0.01)


def _tokens(sample: dict[str, Any]) -> list[Token]:
    references = sample["reference_loss"] or [None] * len(sample["tokens"])
    columns = (sample["tokens"], sample["loss"], references, sample["selected"])
    return [
        Token(
            text=text.replace("\n", "↵\n") or "∅",
            scored=selected is not None,
            selected=bool(selected),
            loss=loss,
            reference=reference,
        )
        for text, loss, reference, selected in zip(*columns, strict=True)
    ]


def _shown(sample: dict[str, Any], tokens: list[Token], scale: float | None) -> dict[str, Any]:
    """What the template reads of a sample."""
    scored = [token for token in tokens if token.scored]
    chosen = [token for token in scored if token.selected]
    left = [token for token in scored if not token.selected]
    return {
        **{key: sample[key] for key in ("step", "select_ratio", "scope", "selection", "threshold")},
        "tokens": [(token, _shade(token, scale)) for token in tokens],
        "scored": len(scored),
        "share": len(chosen) / max(1, len(scored)),
        "groups": [_figures("selected", chosen), _figures("not selected", left)],
    }


def _shade(token: Token, scale: float | None) -> int:
    """-SHADES (far below the reference's loss) to SHADES (far above it); 0 without a reference."""
    if token.excess is None or scale is None:
        return 0
    return round(SHADES * max(-1.0, min(1.0, token.excess / scale)))


def _figures(name: str, tokens: list[Token]) -> dict[str, Any]:
    return {
        "name": name,
        "count": len(tokens),
        "loss": _mean([token.loss for token in tokens]),
        "reference": _mean([token.reference for token in tokens]),
        "excess": _mean([token.excess for token in tokens]),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
