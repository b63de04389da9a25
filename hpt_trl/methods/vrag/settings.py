"""Options of the environment `vrag` (`environment_options`)."""

from dataclasses import dataclass, fields
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.retrieval.engine import check_ranges, refuse_unused
from hpt_trl.retrieval.pages import MAX_PIXELS as MOST_PIXELS
from hpt_trl.settings.values import did_you_mean

VOCABULARIES = ("tags", "tools")
# What an option may be, in words.
_NAMES: dict[Any, str] = {
    str: "a text",
    str | None: "a text, or null",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
# VRAG's: page images of at least 256 and at most 512 patches of 28 x 28 pixels.
MIN_PIXELS, MAX_PIXELS = 256 * 28 * 28, 512 * 28 * 28


@dataclass(frozen=True)
class VragOptions:
    """What the environment searches, and how it shows pages.

    Attributes:
        index: folder of an index (`hpt-trl index`), or the address of a search service.
        vocabulary: `tags` (VRAG's) or `tools`, for models whose chat template has tool calls.
        min_pixels: fewest pixels, width times height, of an image as it is shown.
        max_pixels: most pixels.
        crops: whether there is the action that cuts a part out of the last page.
        instructions: whether the prompt says how to act; false where a model needs no more telling.
        reranker: see `hpt_trl.retrieval.reranking.open_reranker`.
        rerank_depth: pages that it looks at.
        timeout: seconds for an answer of a service.
        retries: questions again to a service that fails.
        images: folder of a service's page images on this machine.
    """

    index: str
    vocabulary: str = "tags"
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    crops: bool = True
    instructions: bool = True
    reranker: str | None = None
    rerank_depth: int = 20
    timeout: float = 10.0
    retries: int = 3
    images: str | None = None


def vrag_options(values: dict[str, Any], index: str) -> VragOptions:
    """Checks options.

    Args:
        values: fields of `VragOptions` but for `index`.
        index: that field.

    Raises:
        UserError: one is unknown, of another type or out of range.
    """
    known = {field.name: field for field in fields(VragOptions) if field.name != "index"}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"`{name}`: unknown.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        if not _fits(value, known[name].type):
            raise UserError(f"`{name}: {value}`; allowed: {_NAMES[known[name].type]}.")
    options = VragOptions(index, **values)
    if options.vocabulary not in VOCABULARIES:
        meant = did_you_mean(options.vocabulary, VOCABULARIES)
        raise UserError(f"`vocabulary: {options.vocabulary}`; allowed: {', '.join(VOCABULARIES)}.{meant}")
    if not 28 * 28 <= options.min_pixels <= options.max_pixels <= MOST_PIXELS:
        raise UserError(
            f"`min_pixels: {options.min_pixels}` and `max_pixels: {options.max_pixels}`; allowed: at least {28 * 28} "
            f"and at most {MOST_PIXELS}, and the first at most the second."
        )
    check_ranges(rerank_depth=options.rerank_depth, timeout=options.timeout, retries=options.retries)
    refuse_unused(options.index, values, options.reranker)
    return options


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)
