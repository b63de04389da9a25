"""The page that shows which tokens were selected: selections.html, of the samples in selections.jsonl."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.token_scores.page import (
    Span,
    marked_text,
    mean,
    page_text,
    read_samples,
    scale_of,
    shade_of,
    shown_number,
    span,
    write_page,
)

SELECTIONS_FILE = "selections.jsonl"
PAGE_FILE = "selections.html"

_TEMPLATE = Path(__file__).with_name("selections.html.jinja")
_LISTS = ("tokens", "loss", "reference_loss", "selected")
_KEYS = ("step", "select_ratio", "scope", "selection", "threshold", *_LISTS)


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

    def span(self, scale: float | None) -> Span:
        """The token on the page.

        Args:
            scale: the excess that has the deepest colour.
        """
        title = f"loss {shown_number(self.loss)}"
        if self.reference is not None:
            title += f", reference {shown_number(self.reference)}, excess {shown_number(self.excess, sign=True)}"
        title += "; selected" if self.selected else "; not selected"
        mark = "x" if not self.scored else "s" if self.selected else ""
        shade = shade_of(self.excess, scale)
        return span(self.text, mark=mark, shade=shade, title=title if self.scored else None, strong=self.selected)


def draw_selections(folder: str | Path) -> Path | None:
    """Writes selections.html into a run's folder.

    Returns:
        Its path; None where the run left no samples.

    Raises:
        UserError: selections.jsonl is broken.
    """
    samples = read_selections(folder)
    if not samples:
        return None
    return write_page(Path(folder) / PAGE_FILE, selections_page(samples, Path(folder).resolve().name))


def read_selections(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the samples that a run left; none of other runs.

    Raises:
        UserError: selections.jsonl is broken.
    """
    return read_samples(Path(folder) / SELECTIONS_FILE, _KEYS, _LISTS)


def selections_page(samples: list[dict[str, Any]], run: str) -> str:
    """Returns the page that shows samples of `read_selections`; `run` is its name."""
    tokens = [_tokens(sample) for sample in samples]
    sizes = [token.excess for found in tokens for token in found if token.excess is not None]
    # In nats; None without a reference.
    scale = scale_of(sizes, least=0.01) if sizes else None
    shown = [_shown(*pair, scale) for pair in zip(samples, tokens, strict=True)]
    return page_text(run, _TEMPLATE, shown, scale=scale)


def selections_text(samples: list[dict[str, Any]]) -> str:
    """Returns samples of `read_selections` as text, their selected tokens between ⟦ and ⟧."""
    return "\n\n".join(_as_text(_shown(sample, _tokens(sample), None)) for sample in samples)


def _as_text(shown: dict[str, Any]) -> str:
    groups = [
        f"{group['name']}: {group['count']} tokens, mean loss {shown_number(group['loss'])}, reference "
        f"{shown_number(group['reference'])}, excess {shown_number(group['excess'], sign=True)}"
        for group in shown["groups"]
    ]
    head = f"Step {shown['step']}: {shown['about']} ⟦…⟧: selected."
    return "\n".join([head, marked_text(shown["spans"]), *groups])


def _tokens(sample: dict[str, Any]) -> list[Token]:
    references = sample["reference_loss"] or [None] * len(sample["tokens"])
    columns = (sample["tokens"], sample["loss"], references, sample["selected"])
    return [
        Token(text=text, scored=selected is not None, selected=bool(selected), loss=loss, reference=reference)
        for text, loss, reference, selected in zip(*columns, strict=True)
    ]


def _shown(sample: dict[str, Any], tokens: list[Token], scale: float | None) -> dict[str, Any]:
    """What the template reads of a sample."""
    scored = [token for token in tokens if token.scored]
    chosen = [token for token in scored if token.selected]
    left = [token for token in scored if not token.selected]
    scope = {"global": "optimizer step", "micro_batch": "micro-batch"}.get(sample["scope"], sample["scope"])
    about = (
        f"{sample['selection']}, ratio {sample['select_ratio']:.3g} of each {scope}; here "
        f"{100 * len(chosen) / max(1, len(scored)):.1f} % of {len(scored)} scored tokens"
    )
    if sample["threshold"] is not None:
        about += f", threshold {sample['threshold']:.3f}"
    return {
        "step": sample["step"],
        "about": f"{about}.",
        "spans": [token.span(scale) for token in tokens],
        "groups": [_figures("selected", chosen), _figures("not selected", left)],
    }


def _figures(name: str, tokens: list[Token]) -> dict[str, Any]:
    return {
        "name": name,
        "count": len(tokens),
        "loss": mean([token.loss for token in tokens]),
        "reference": mean([token.reference for token in tokens]),
        "excess": mean([token.excess for token in tokens]),
    }
