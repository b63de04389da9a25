"""Crops are exact: their place on the raw page and their pixels, at borders and after resizing, both ways."""

import random
from fractions import Fraction

import pytest
from PIL import Image

from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.engine import open_engine
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.searching import called, picture_of, query_of, said, same_pixels

SIZES = [(640, 480), (97, 61), (1501, 903), (61, 1200), (4000, 90)]


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory):
    """Pages whose pixels say where they are: red and green their coordinates modulo 256, blue what is above."""
    folder = tmp_path_factory.mktemp("coordinates")
    (folder / "pages").mkdir()
    lines = []
    for number, (width, height) in enumerate(SIZES):
        across = Image.linear_gradient("L").rotate(90).resize((256, 1), Image.Resampling.NEAREST)
        assert list(across.tobytes()) == list(range(256))
        image = Image.frombytes(
            "RGB",
            (width, height),
            bytes(
                part
                for y in range(height)
                for x in range(width)
                for part in (x % 256, y % 256, x // 256 * 16 + y // 256)
            ),
        )
        image.save(folder / "pages" / f"size_{number}.png")
        lines.append(f'{{"image": "size_{number}.png", "text": "number{number}"}}\n')
    (folder / "pages" / "pages.jsonl").write_text("".join(lines))
    build_index(folder / "pages", folder / "index", IndexSettings())
    engine = open_engine(folder / "index")

    def show(number: int, **limits):
        options = VragOptions(str(folder / "index"), **limits)
        environment = PageSearch(engine, options, turns=100)
        environment.start({})
        return environment, picture_of(environment.act(said(f"<search>number{number}</search>")))

    return show


def region(image: Image.Image) -> tuple[int, int, int, int]:
    """Where on the page an image that was not resized was cut out, by its own pixels."""

    def place(pixel) -> tuple[int, int]:
        red, green, blue = pixel
        return red + 256 * (blue // 16), green + 256 * (blue % 16)

    left, top = place(image.getpixel((0, 0)))
    right, bottom = place(image.getpixel((image.width - 1, image.height - 1)))
    return left, top, right + 1, bottom + 1


def covering(box, shown: tuple[int, int], raw: tuple[int, int]) -> tuple[int, ...]:
    """The smallest whole box of the raw page that holds what a box of the shown one covers."""
    found = []
    for place, value in enumerate(box):
        exact = Fraction(value) * raw[place % 2] / shown[place % 2]
        found.append(exact.numerator // exact.denominator if place < 2 else -(-exact.numerator // exact.denominator))
    return max(found[0], 0), max(found[1], 0), min(found[2], raw[0]), min(found[3], raw[1])


LIMITS = {
    "as they are": {"min_pixels": 784, "max_pixels": 10_000_000},
    "smaller": {"min_pixels": 784, "max_pixels": 60_000},
    "larger": {"min_pixels": 1_500_000, "max_pixels": 1_600_000},
    "VRAG's": {},
}


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("limits", LIMITS)
def test_a_crop_is_the_region_of_the_raw_page(coordinates, number, limits):
    environment, page = coordinates(number, **LIMITS[limits])
    (width, height), raw = page.image.size, SIZES[number]
    options = environment.options
    assert page.raw_size == raw
    if limits in ("smaller", "larger"):
        assert options.min_pixels <= width * height <= options.max_pixels
        assert (width, height) != raw or raw[0] * raw[1] < options.max_pixels
    generator = random.Random(f"{number} {limits}")
    boxes = [
        (0, 0, width, height),
        (0, 0, width / 2, height / 2),
        (width / 2, height / 2, width, height),
        (width - 1, height - 1, width, height),
        (0, 0, 1, 1),
        (0, height - 1, width, height),
        # Outside on all sides: clamped.
        (-50, -7.5, width + 50, height + 1e9),
        (width - 0.5, -3, width + 3, 2),
    ]
    for _ in range(8):
        x1, y1 = generator.uniform(-20, width - 1), generator.uniform(-20, height - 1)
        box = (x1, y1, x1 + generator.uniform(0.5, width), y1 + generator.uniform(0.5, height))
        boxes.append(tuple(round(side, generator.choice([0, 1, 6])) for side in box))
    raw_page = environment.engine.image(page.name)
    shown_whole = 0
    for box in boxes:
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        expected = covering(tuple(Fraction(repr(float(side))) for side in box), page.image.size, raw)
        wide, high = expected[2] - expected[0], expected[3] - expected[1]
        observation = environment.act(said(f"<bbox>{list(box)}</bbox>"))
        if min(wide, high) <= 0:
            assert "the box is outside of the page" in observation.text
            continue
        if max(wide, high) > 200 * min(wide, high):
            assert "the box is too narrow to be shown" in observation.text
            continue
        crop = picture_of(observation)
        assert (crop.name, crop.kind, crop.raw_size) == (page.name, "crop", raw)
        assert crop.box == expected, box
        assert environment.facts()["crops"][-1] == {"page": page.name, "box": list(expected)}
        pixels = crop.image.width * crop.image.height
        assert pixels <= options.max_pixels and min(crop.image.size) >= 28
        if crop.image.size == (wide, high):
            shown_whole += 1
            assert region(crop.image) == expected
            assert same_pixels(crop.image, raw_page.crop(expected))
        else:
            assert same_pixels(crop.image, raw_page.crop(expected).resize(crop.image.size, Image.Resampling.BICUBIC))
    assert shown_whole or limits in ("larger", "VRAG's")


def test_halves_of_a_page_shown_at_half_and_double_size_are_exact(searched):
    name = searched.rows[0]["reference_pages"][0]
    for factor, limits in (
        (0.5, {"min_pixels": 784, "max_pixels": 76_800}),
        (2, dict.fromkeys(LIMITS["larger"], 1_228_800)),
    ):
        environment = searched.environment(**limits)
        page = picture_of(environment.act(said(f"<search>{query_of(searched.rows[0])}</search>")))
        assert page.image.size == (640 * factor, 480 * factor)
        box = [100 * factor, 60 * factor, 200 * factor, 150 * factor]
        crop = picture_of(environment.act(said(f"<bbox>{box}</bbox>")))
        assert crop.box == (100, 60, 200, 150)
        wanted = searched.raw(name).crop((100, 60, 200, 150))
        if factor == 0.5:
            assert same_pixels(crop.image, wanted)
        # There and back: the box of the crop in pixels of the shown page is the one that was asked for.
        assert [side * factor for side in crop.box] == box


@pytest.mark.parametrize(
    "box",
    [[640, 0, 700, 10], [-20, 0, 0, 10], [0, 480, 10, 500], [0, -9, 10, 0], [1e9, 1e9, 1e10, 1e10], [-2, -2, -1, -1]],
)
def test_a_box_outside_of_the_page_is_told_with_its_size(searched, box):
    environment = searched.environment()
    environment.act(said(f"<search>{query_of(searched.rows[0])}</search>"))
    told = environment.act(said(f"<bbox>{box}</bbox>"))
    assert "the box is outside of the page, which has 640 x 480 pixels" in told.text
    assert environment.facts()["invalid_actions"] == 1 and environment.facts()["crops"] == []


def test_a_crop_needs_a_page(searched):
    environment = searched.environment()
    told = environment.act(said("<bbox>[1, 2, 30, 40]</bbox>"))
    assert "there is no page yet to look at closer; search first" in told.text
    environment.act(said("<search>zzz</search>"))
    assert "there is no page yet" in environment.act(said("<bbox>[1, 2, 30, 40]</bbox>")).text
    assert environment.measures()["vrag/crops"] == 0.0


def test_crops_are_of_the_last_page_and_not_of_one_another(searched):
    environment = searched.environment()
    for row in searched.rows[:3]:
        environment.act(said(f"<search>{query_of(row)}</search>"))
        for _ in range(2):
            crop = picture_of(environment.act(said("<bbox>[100, 60, 200, 150]</bbox>")))
            assert (crop.name, crop.box) == (row["reference_pages"][0], (100, 60, 200, 150))
            assert same_pixels(crop.image, searched.raw(crop.name).crop(crop.box))
    # What is told in between changes nothing.
    environment.act(said("<search>zzz</search>"))
    assert picture_of(environment.act(said("<bbox>[0, 0, 100, 100]</bbox>"))).name == row["reference_pages"][0]
    assert environment.measures()["vrag/crops"] == 7.0


def test_crops_can_be_left_out(searched):
    for vocabulary, turn in (
        ("tags", said("<bbox>[1, 2, 30, 40]</bbox>")),
        ("tools", called("crop", {"bbox": [1, 2, 3, 4]})),
    ):
        environment = searched.environment(crops=False, vocabulary=vocabulary)
        assert [tool["function"]["name"] for tool in environment.tools] == (
            [] if vocabulary == "tags" else ["search", "answer"]
        )
        told = environment.act(turn).text
        assert "pages are not cut here" in told and "bbox" not in told and "crop," not in told
        assert environment.facts()["invalid_actions"] == 1
