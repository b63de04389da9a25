"""The page that shows with what weight each token was trained: token_weights.html, of token_weights.jsonl."""

import math
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

SAMPLES_FILE = "token_weights.jsonl"
PAGE_FILE = "token_weights.html"

_TEMPLATE = Path(__file__).with_name("weights.html.jinja")
_LISTS = ("tokens", "weight", "value", "loss")
_KEYS = ("step", "weighting", *_LISTS)
# Tokens whose weights are written out in a text, of the heaviest and of the lightest.
_NAMED = 5


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
    scale = _scale(samples)
    shown = [_shown(sample, scale) for sample in samples]
    return page_text(run, _TEMPLATE, shown, scale=math.exp(scale), heavy=math.exp(scale / 2))


def weights_text(samples: list[dict[str, Any]]) -> str:
    """Returns samples of `read_weights` as text: heavy tokens between ⟦ and ⟧, and the extremes with their weights."""
    scale = _scale(samples)
    return "\n\n".join(_as_text(_shown(sample, scale), math.exp(scale / 2)) for sample in samples)


def _as_text(shown: dict[str, Any], heavy: float) -> str:
    lines = [
        f"Step {shown['step']}: {shown['about']} ⟦…⟧: weight of {heavy:.2f} or more.",
        marked_text(shown["spans"]),
    ]
    ordered = shown["ordered"]
    for name, some in (("heaviest", ordered[::-1]), ("lightest", ordered)) if ordered else ():
        lines.append(f"{name}: " + ", ".join(f"{text!r} {weight:.2f}" for text, weight in some[:_NAMED]))
    if curve := shown["curve"]:
        lines.append(f"value: {shown_number(curve['low'], sign=True)} to {shown_number(curve['high'], sign=True)}")
    return "\n".join(lines)


def _scale(samples: list[dict[str, Any]]) -> float:
    """The size of a weight's logarithm that has the deepest colour."""
    # Twice the weight is as far from 1 as half of it.
    sizes = [math.log(weight) for sample in samples for weight in sample["weight"] or () if weight]
    return scale_of(sizes or [0.0], least=0.01)


def _shown(sample: dict[str, Any], scale: float) -> dict[str, Any]:
    """What the template reads of a sample."""
    count = len(sample["tokens"])
    weights, values, losses = (sample[key] or [None] * count for key in ("weight", "value", "loss"))
    spans: list[Span] = []
    for text, weight, value, loss in zip(sample["tokens"], weights, values, losses, strict=True):
        parts = [("weight", weight, False), ("value", value, True), ("loss", loss, False)]
        title = ", ".join(f"{name} {shown_number(number, sign)}" for name, number, sign in parts if number is not None)
        # What has no weight is as far from 1 as anything on the page.
        shade = 0 if weight is None else shade_of(math.log(weight) if weight else -scale, scale)
        mark, heavy = "" if weight is not None else "x", weight is not None and weight >= math.exp(scale / 2)
        spans.append(span(text, mark=mark, shade=shade, title=title or None, strong=heavy))
    weighed = [(text, weight) for text, weight in zip(sample["tokens"], weights, strict=True) if weight is not None]
    trained = [weight for _, weight in weighed]
    pairs = [(weight, loss) for weight, loss in zip(weights, losses, strict=True) if None not in (weight, loss)]
    total = sum(weight for weight, _ in pairs)
    about = (
        f"{sample['weighting']}; {len(trained)} trained tokens with weights from "
        f"{shown_number(min(trained, default=None))} to {shown_number(max(trained, default=None))}, mean "
        f"{shown_number(mean(trained))} here"
    )
    if total:
        weighted = sum(weight * loss for weight, loss in pairs) / total
        about += (
            f"; mean loss {shown_number(mean([loss for _, loss in pairs]))} nats, weighted {shown_number(weighted)}"
        )
    return {
        "step": sample["step"],
        "about": f"{about}.",
        "spans": spans,
        "ordered": sorted(weighed, key=lambda pair: pair[1]),
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
