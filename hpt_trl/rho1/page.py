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
        shade: -SHADES (far below the reference's loss) to SHADES (far above it); 0 without a reference.
    """

    text: str
    scored: bool
    selected: bool
    loss: float | None
    reference: float | None
    shade: int

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

    scale = _scale(samples)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(_TEMPLATE).render(
        title=Path(folder).resolve().name,
        samples=[_shown(sample, scale) for sample in samples],
        scale=scale,
        shades=SHADES,
    )
    path = Path(folder) / PAGE_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of selections.jsonl; none without the file. A broken last line, as a killed run leaves it, is left out.

    Raises:
        UserError: another line is not a sample.
    """
    path = Path(folder) / SELECTIONS_FILE
    if not path.exists():
        return []
    samples = []
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            sample = json.loads(text)
        except ValueError:
            if number == len(texts):
                break
            sample = None
        if not isinstance(sample, dict) or any(key not in sample for key in _KEYS):
            raise UserError(f"{path}, line {number}: not a JSON object with {', '.join(_KEYS)}; remove the line.")
        sizes = {key: len(sample[key]) for key in _LISTS if sample[key] is not None}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} of `{key}`" for key, size in sizes.items())
            raise UserError(f"{path}, line {number}: one entry per token is needed, found {found}; remove the line.")
        samples.append(sample)
    return samples


def _scale(samples: list[dict[str, Any]]) -> float | None:
    """The excess, in nats, that has the deepest shade on the page; None without a reference."""
    sizes = sorted(abs(excess) for sample in samples for excess in _excesses(sample) if excess is not None)
    return None if not sizes else max(sizes[int(_INSIDE * (len(sizes) - 1))], 0.01)


def _excesses(sample: dict[str, Any]) -> list[float | None]:
    return [
        None if loss is None or reference is None else loss - reference
        for loss, reference in zip(sample["loss"], _references(sample), strict=True)
    ]


def _references(sample: dict[str, Any]) -> list[float | None]:
    return sample["reference_loss"] or [None] * len(sample["tokens"])


def _shown(sample: dict[str, Any], scale: float | None) -> dict[str, Any]:
    """What the template reads of a sample."""
    columns = (sample["tokens"], sample["loss"], _references(sample), sample["selected"], _excesses(sample))
    tokens = [
        Token(
            text=text.replace("\n", "↵\n") or "∅",
            scored=selected is not None,
            selected=bool(selected),
            loss=loss,
            reference=reference,
            shade=0 if excess is None or scale is None else _shade(excess / scale),
        )
        for text, loss, reference, selected, excess in zip(*columns, strict=True)
    ]
    scored = [token for token in tokens if token.scored]
    chosen = [token for token in scored if token.selected]
    left = [token for token in scored if not token.selected]
    return {
        **{key: sample[key] for key in ("step", "select_ratio", "scope", "selection", "threshold")},
        "tokens": tokens,
        "scored": len(scored),
        "share": len(chosen) / max(1, len(scored)),
        "groups": [_figures("selected", chosen), _figures("not selected", left)],
    }


def _shade(relative: float) -> int:
    return round(SHADES * max(-1.0, min(1.0, relative)))


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
