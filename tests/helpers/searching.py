"""Made pages with an index, environments that search them, and turns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from hpt_trl.data.pages.source import pages
from hpt_trl.environments.protocol import Turn
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.engine import SearchEngine, open_engine
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.rankers import IndexSettings

# Made pages are shown as they are.
AS_THEY_ARE = {"min_pixels": 28 * 28, "max_pixels": 640 * 480}


@dataclass(frozen=True)
class Searched:
    """Twelve pages, two of each layout, in an index.

    Attributes:
        pages: their folder.
        index: the folder of the index.
        rows: questions with the expert's trajectories.
        engine: of the index.
    """

    pages: Path
    index: Path
    rows: list[dict[str, Any]]
    engine: SearchEngine

    def environment(
        self, row: dict[str, Any] | None = None, *, turns: int = 4, images: int | None = None, **options: Any
    ) -> PageSearch:
        """An environment that has begun with a row."""
        settings = VragOptions(str(self.index), **{**AS_THEY_ARE, **options})
        environment = PageSearch(self.engine, settings, turns=turns, images=images)
        environment.start(row or {})
        return environment

    def raw(self, name: str) -> Image.Image:
        """A page's image from its own file."""
        return Image.open(self.pages / "images" / f"{name.rsplit('/', 1)[-1]}.png").convert("RGB")


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Searched:
    folder = tmp_path_factory.mktemp("searched")
    rows, _ = pages({"size": 12, "test_size": 0, "folder": str(folder / "pages")}, seed=0)
    build_index(folder / "pages", folder / "index", IndexSettings())
    return Searched(folder / "pages", folder / "index", rows.to_list(), open_engine(folder / "index"))


def said(text: str, **turn: Any) -> Turn:
    """A turn of text."""
    return Turn(text, {"role": "assistant", "content": text}, **turn)


def called(name: Any, arguments: Any, **turn: Any) -> Turn:
    """A turn of one tool call."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return Turn("", {"role": "assistant", "content": "", "tool_calls": [call]}, **turn)


def picture_of(observation: Any) -> Any:
    """The one picture of an observation."""
    [picture] = observation.pictures
    return picture


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images are of the same size and pixels."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def query_of(row: dict[str, Any]) -> str:
    """What the expert searches for first."""
    return row["completion"][0]["content"].split("<search>")[1].split("</search>")[0]
