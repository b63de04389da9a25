"""The page that shows with what weight each token was trained: token_weights.html, of token_weights.jsonl."""

import math
from pathlib import Path
from typing import Any

from hpt_trl.token_scores.page import mean, page_text, read_samples, scale_of, shade_of, shown_number, span, write_page

SAMPLES_FILE = "token_weights.jsonl"
PAGE_FILE = "token_weights.html"

_TEMPLATE = Path(__file__).with_name("weights.html.jinja")
_LISTS = ("tokens", "weight", "value", "loss")
_KEYS = ("step", "weighting", *_LISTS)


def draw_weights(folder: str | Path) -> Path | None:
    """Writes token_weights.html into a run's folder: the text coloured by weight, and the value curve under it.

    Returns:
        Its path; None where the run left no samples.

    Raises:
        UserError: token_weights.jsonl is broken.
    """
    samples = read_weights(folder)
    if not samples:
        return None
    return write_page(Path(folder) / PAGE_FILE, weights_page(samples, Path(folder).resolve().name))


def read_weights(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the samples that a run left; none of other runs.

    Raises:
        UserError: token_weights.jsonl is broken.
    """
    return read_samples(Path(folder) / SAMPLES_FILE, _KEYS, _LISTS)


def weights_page(samples: list[dict[str, Any]], run: str) -> str:
    """Returns the page that shows samples of `read_weights`; `run` is its name."""
    # Twice the weight is as far from 1 as half of it.
    sizes = [math.log(weight) for sample in samples for weight in sample["weight"] if weight]
    scale = scale_of(sizes or [0.0], least=0.01)
    shown = [_shown(sample, scale) for sample in samples]
    return page_text(run, _TEMPLATE, shown, scale=math.exp(scale))


def _shown(sample: dict[str, Any], scale: float) -> dict[str, Any]:
    """What the template reads of a sample."""
    count = len(sample["tokens"])
    weights, values, losses = (sample[key] or [None] * count for key in ("weight", "value", "loss"))
    spans = []
    for text, weight, value, loss in zip(sample["tokens"], weights, values, losses, strict=True):
        parts = [("weight", weight, False), ("value", value, True), ("loss", loss, False)]
        title = ", ".join(f"{name} {shown_number(number, sign)}" for name, number, sign in parts if number is not None)
        # What has no weight is as far from 1 as anything on the page.
        shade = 0 if weight is None else shade_of(math.log(weight) if weight else -scale, scale)
        spans.append(span(text, mark="" if weight is not None else "x", shade=shade, title=title or None))
    trained = [weight for weight in weights if weight is not None]
    pairs = [(weight, loss) for weight, loss in zip(weights, losses, strict=True) if None not in (weight, loss)]
    total = sum(weight for weight, _ in pairs)
    return {
        "step": sample["step"],
        "weighting": sample["weighting"],
        "spans": spans,
        "trained": len(trained),
        "least": min(trained, default=None),
        "most": max(trained, default=None),
        "mean": mean(trained),
        "mean_loss": mean([loss for _, loss in pairs]),
        "weighted_loss": sum(weight * loss for weight, loss in pairs) / total if total else None,
        "curve": _curve(values, spans),
    }


def _curve(values: list[float | None], spans: list[Any]) -> dict[str, Any] | None:
    """Points of the value along the text, in a box of one unit a token and 100 in height; None without values."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    low, high = min(value for _, value in known), max(value for _, value in known)
    first, last = known[0][0], known[-1][0]
    height = max(high - low, 1e-9)
    points = [(place - first + 0.5, 96 - 92 * (value - low) / height) for place, value in known]
    return {
        "low": low,
        "high": high,
        "first": first + 1,
        "last": last + 1,
        "width": last - first + 1,
        "points": " ".join(f"{x:g},{y:.2f}" for x, y in points),
        # One for each token, to point at.
        "strips": [
            {
                "x": place - first,
                "classes": spans[place].classes,
                "title": f"{spans[place].text.strip() or '␣'}: {spans[place].title}",
            }
            for place, _ in known
        ],
    }
