"""Drawn pages: the answer is in the picture, in its box, and not in what is searched."""

import re

import pytest
import torch
from PIL import Image, ImageDraw

from hpt_trl.data.pages.layouts import LAYOUTS, draw_page
from hpt_trl.data.pages.sheet import SIZE, font
from hpt_trl.data.pages.words import COLOURS, MOST_PAGES, PLACES, places, year_of

# Letters of the answers, in pixels.
LETTERS = {"table": 18, "chart": 18, "text": 19, "form": 20}


def page(layout: str, number: int, seed: int = 0):
    return draw_page(layout, number, places(seed)[number], year_of(number), first=True, seed=seed)


def darkness(image: Image.Image) -> torch.Tensor:
    """(height, width), 1 where there is ink."""
    grey = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
    return 1 - grey.view(image.height, image.width).float() / 255


def seen_at(image: Image.Image, text: str, size: int) -> tuple[int, int, float]:
    """Where a text looks most as if it stood: x and y of its middle, and how much (correlation)."""
    left, top, right, bottom = (round(side) for side in font(size).getbbox(text))
    stamp = Image.new("L", (right - left + 2, bottom - top + 2), 255)
    ImageDraw.Draw(stamp).text((1 - left, 1 - top), text, font=font(size), fill=0)
    wanted = darkness(stamp)
    wanted = wanted - wanted.mean()
    ink = darkness(image)[None, None]
    ones = torch.ones_like(wanted)[None, None]
    found = torch.nn.functional.conv2d(ink, wanted[None, None])[0, 0]
    mean = torch.nn.functional.conv2d(ink, ones)[0, 0] / ones.sum()
    spread = torch.nn.functional.conv2d(ink**2, ones)[0, 0] - ones.sum() * mean**2
    score = found / (spread.clamp(min=1e-3) ** 0.5 * wanted.norm())
    y, x = divmod(int(score.argmax()), score.shape[1])
    return x + stamp.width // 2, y + stamp.height // 2, float(score.max())


@pytest.mark.parametrize("layout", LETTERS)
def test_the_answer_is_seen_in_its_box_and_nowhere_else(layout):
    for number in range(8):
        drawn = page(layout, number, seed=number)
        x, y, score = seen_at(drawn.sheet.image, drawn.answer, LETTERS[layout])
        x1, y1, x2, y2 = drawn.box
        assert x1 <= x < x2 and y1 <= y < y2, (number, drawn.answer, drawn.box, (x, y))
        assert score > 0.7
        # Outside of the box nothing looks as much like it.
        rest = drawn.sheet.image.copy()
        rest.paste((255, 255, 255), drawn.box)
        assert seen_at(rest, drawn.answer, LETTERS[layout])[2] < score


def test_a_swatch_has_the_colour_that_answers():
    found = set()
    for number in range(60):
        drawn = page("swatch", number)
        pixels = drawn.sheet.image.crop(drawn.box).getcolors()
        assert len(pixels) == 1
        shade = pixels[0][1]
        distance = {
            name: sum((a - b) ** 2 for a, b in zip(shade, colour, strict=True)) for name, colour in COLOURS.items()
        }
        assert min(distance, key=distance.get) == drawn.answer
        assert drawn.answer not in drawn.sheet.text_layer(values=True)
        found.add(drawn.answer)
    assert found == set(COLOURS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_search_reads_titles_and_labels_without_the_answer(layout):
    for number in range(200):
        drawn = page(layout, number)
        x1, y1, x2, y2 = drawn.box
        assert 0 <= x1 < x2 <= SIZE[0] and 0 <= y1 < y2 <= SIZE[1] and drawn.sheet.image.size == SIZE
        named = re.findall(r"\w+", drawn.sheet.text_layer(values=False))
        assert drawn.answer not in named, (drawn.question, named)
        assert set(drawn.title.split()) <= set(named)
        assert drawn.title.lower() in drawn.question.lower() and drawn.answer not in drawn.question.split()
        if layout not in ("swatch", "disc"):
            written = re.findall(r"\w+", drawn.sheet.text_layer(values=True))
            # Of all that is written it stands there once.
            assert written.count(drawn.answer) == 1, (drawn.answer, written)


def test_letters_stay_on_the_page():
    """The outermost pixels of every page are paper; nothing runs over its edge."""
    for layout in LAYOUTS:
        for number in range(40):
            image = page(layout, number).sheet.image
            edges = [
                image.crop(box) for box in ((0, 0, 640, 6), (0, 474, 640, 480), (0, 0, 6, 480), (634, 0, 640, 480))
            ]
            assert all(len(edge.getcolors()) == 1 for edge in edges), (layout, number)


def test_no_two_pages_have_the_same_title():
    order = places(3)
    assert sorted(order) == sorted(PLACES) and order != places(4) and len(set(PLACES)) == len(PLACES)
    named = {(order[number % len(order)], year_of(number)) for number in range(MOST_PAGES)}
    assert len(named) == MOST_PAGES
