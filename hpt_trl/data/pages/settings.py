"""What a folder of made pages is made by, and how its values are held to their ranges."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from hpt_trl.data.pages.layouts import LAYOUTS
from hpt_trl.data.pages.words import MOST_PAGES
from hpt_trl.errors import UserError
from hpt_trl.settings.values import did_you_mean

TEXT_LAYERS = ("titles", "full")
# Raise it when pages are drawn in another way, so that an old folder is not taken for a new one.
_VERSION = 1


@dataclass(frozen=True)
class PageSettings:
    """The pages of a folder.

    Attributes:
        size: training pages, one question each.
        test_size: held-out pages, one question each.
        layouts: of the training pages, in turn.
        test_layouts: of the held-out pages; by default those of the training pages.
        text_layer: `titles`: titles and labels alone can be searched, so that an answer has to be seen; `full`: all
            that is written on a page.
        seed: draws everything.
    """

    size: int = 200
    test_size: int = 50
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    test_layouts: tuple[str, ...] | None = None
    text_layer: str = "titles"
    seed: int = 0

    def layout_of(self, number: int) -> str:
        """The layout of page `number` (from 0, the training pages first)."""
        if number < self.size:
            return self.layouts[number % len(self.layouts)]
        layouts = self.layouts if self.test_layouts is None else self.test_layouts
        return layouts[(number - self.size) % len(layouts)]

    def as_json(self) -> dict[str, Any]:
        """All that the pages depend on."""
        return {**asdict(self), "version": _VERSION}

    def digest(self) -> str:
        """Sixteen letters that name these settings."""
        return hashlib.blake2b(json.dumps(self.as_json()).encode(), digest_size=8).hexdigest()


def page_settings(values: dict[str, Any], source: str) -> PageSettings:
    """Check values and make settings of them.

    Args:
        values: fields of `PageSettings`; layouts as a list or as one name.
        source: what messages call their place.

    Raises:
        UserError: a value of another type or out of range.
    """
    checked = dict(values)
    for key, least in (("size", 1), ("test_size", 0), ("seed", 0)):
        value = checked.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{source}: `{key}: {value}` must be a whole number of at least {least}.")
    if "layouts" in checked:
        checked["layouts"] = _layouts(checked["layouts"], "layouts", source)
    if checked.get("test_layouts") is not None:
        checked["test_layouts"] = _layouts(checked["test_layouts"], "test_layouts", source)
    layer = checked.get("text_layer", "titles")
    if layer not in TEXT_LAYERS:
        hint = did_you_mean(str(layer), TEXT_LAYERS)
        raise UserError(f"{source}: `text_layer: {layer}`; allowed: {', '.join(TEXT_LAYERS)}.{hint}")
    settings = PageSettings(**checked)
    if settings.size + settings.test_size > MOST_PAGES:
        raise UserError(
            f"{source}: `size` and `test_size` ask for {settings.size + settings.test_size} pages; there are titles "
            f"for {MOST_PAGES}."
        )
    return settings


def _layouts(value: Any, key: str, source: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise UserError(f"{source}: `{key}: {value}` must be a list of layouts, some of {', '.join(LAYOUTS)}.")
    for name in names:
        if name not in LAYOUTS:
            raise UserError(
                f"{source}: `{key}`: there is no layout `{name}`; allowed: {', '.join(LAYOUTS)}."
                f"{did_you_mean(str(name), list(LAYOUTS))}"
            )
    return tuple(dict.fromkeys(names))
