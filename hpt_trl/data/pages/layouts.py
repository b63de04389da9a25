"""The layouts but for `text`, which has words to break into lines and lies in `paragraphs.py`."""

import random
from collections.abc import Callable

from hpt_trl.data.pages.page import Page
from hpt_trl.data.pages.paragraphs import text
from hpt_trl.data.pages.sheet import INK, MARGIN, SIZE, Box, Colour, Sheet
from hpt_trl.data.pages.words import (
    COLOURS,
    CROPS,
    GOODS,
    LINES,
    MONTHS,
    PEOPLE,
    REPAIRS,
    SEASONS,
    SHIFTS,
    VENUES,
)

# Draws a page: of its place, its year, whether it is the place's first page, and a generator.
Layout = Callable[[str, int, bool, random.Random], Page]

_TABLES = {"Harvest": CROPS, "Sales": GOODS, "Visitors": VENUES, "Repairs": REPAIRS}
_CHARTS = {"Passengers": LINES, "Rainfall": MONTHS, "Output": SHIFTS, "Exports": GOODS}
_FORMS = {
    "Delivery note": ("Carrier", "Driver", "Goods", "Parcels", "Weight", "Gate"),
    "Work order": ("Engineer", "Machine", "Month", "Hours", "Gate", "Approved by"),
    "Room booking": ("Booked by", "Building", "Seats", "Month", "Host", "Hours"),
}
_ACCENTS: tuple[Colour, ...] = ((40, 90, 160), (150, 60, 50), (40, 120, 90), (110, 70, 140), (160, 110, 30))
_RULE: Colour = (170, 172, 178)
_SHADE: Colour = (234, 237, 242)


def table(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """Rows and columns of labels and numbers."""
    topic = generator.choice(list(_TABLES))
    rows = generator.sample(_TABLES[topic], generator.randint(3, 6))
    columns = generator.sample(SEASONS, generator.randint(3, 4))
    numbers = [str(number) for number in generator.sample(range(10, 1000), len(rows) * len(columns))]
    title = f"{topic} of {place} {year}"
    sheet = Sheet()
    accent = generator.choice(_ACCENTS)
    sheet.title(title, accent)
    top, height, label = 92, min(56, (SIZE[1] - 92 - MARGIN) // (len(rows) + 1)), 150
    width = (SIZE[0] - 2 * MARGIN - label) // len(columns)

    def cell(row: int, column: int) -> Box:
        left, upper = MARGIN + label + column * width, top + (row + 1) * height
        return left, upper, left + width, upper + height

    right, bottom = MARGIN + label + len(columns) * width, top + (len(rows) + 1) * height
    sheet.draw.rectangle((MARGIN, top, right, top + height), fill=_SHADE)
    for column, name in enumerate(columns):
        sheet.write(name, (MARGIN + label + (column + 0.5) * width, top + height / 2), anchor="mm", ink=accent)
    for row, name in enumerate(rows):
        middle = top + (row + 1.5) * height
        sheet.write(name, (MARGIN + 10, middle))
        for column in range(len(columns)):
            sheet.write(
                numbers[row * len(columns) + column], (cell(row, column)[2] - 16, middle), anchor="rm", value=True
            )
    for line in range(len(rows) + 2):
        sheet.draw.line((MARGIN, top + line * height, right, top + line * height), fill=_RULE)
    if generator.random() < 0.5:
        for edge in (MARGIN, *(MARGIN + label + column * width for column in range(len(columns) + 1))):
            sheet.draw.line((edge, top, edge, bottom), fill=_RULE)
    row, column = generator.randrange(len(rows)), generator.randrange(len(columns))
    question = f"In the table {title}, what is the number of {rows[row]} in {columns[column]}?"
    return Page(sheet, title, question, numbers[row * len(columns) + column], cell(row, column))


def chart(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """Bars side by side, each with its label below and its value above."""
    topic = generator.choice(list(_CHARTS))
    labels = generator.sample(_CHARTS[topic], generator.randint(3, 5))
    values = generator.sample(range(20, 400), len(labels))
    title = f"{topic} of {place} {year}"
    sheet = Sheet()
    accent = generator.choice(_ACCENTS)
    sheet.title(title, accent)
    floor, ceiling = SIZE[1] - 64, 116
    step = (SIZE[0] - 2 * MARGIN) // len(labels)
    boxes: list[Box] = []
    for number, (name, value) in enumerate(zip(labels, values, strict=True)):
        middle = MARGIN + number * step + step // 2
        upper = floor - round((floor - ceiling) * value / max(values))
        half = min(44, step // 3)
        sheet.draw.rectangle((middle - half, upper, middle + half, floor), fill=accent)
        sheet.write(str(value), (middle, upper - 6), anchor="mb", value=True)
        sheet.write(name, (middle, floor + 10), anchor="mt")
        boxes.append((middle - half, upper - 28, middle + half, floor))
    sheet.draw.line((MARGIN, floor, SIZE[0] - MARGIN, floor), fill=INK, width=2)
    asked = generator.randrange(len(labels))
    question = f"In the chart {title}, what is the value of the bar {labels[asked]}?"
    return Page(sheet, title, question, str(values[asked]), boxes[asked])


def form(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """Fields, each with its name and a value in a frame."""
    topic = generator.choice(list(_FORMS))
    names = generator.sample(_FORMS[topic], generator.randint(4, 6))
    # No value twice on a page: the answer would stand in two fields.
    pools = {
        "people": generator.sample(PEOPLE, len(names)),
        "numbers": [str(number) for number in generator.sample(range(10, 1000), len(names))],
    }
    words = {"Goods": GOODS, "Machine": REPAIRS, "Building": VENUES, "Month": MONTHS}
    numbered = ("Parcels", "Weight", "Gate", "Hours", "Seats")
    title = f"{topic} of {place} {year}"
    sheet = Sheet()
    accent = generator.choice(_ACCENTS)
    sheet.title(title, accent)
    step, left = min(66, (SIZE[1] - 88 - MARGIN) // len(names)), MARGIN + 170
    boxes, values = [], []
    for number, name in enumerate(names):
        if name in words:
            value = generator.choice(words[name])
        else:
            value = pools["numbers" if name in numbered else "people"][number]
        upper = 88 + number * step
        box = (left, upper, SIZE[0] - MARGIN, upper + step - 14)
        sheet.write(f"{name}:", (MARGIN, (box[1] + box[3]) / 2), ink=accent)
        sheet.draw.rectangle(box, fill=(255, 255, 255), outline=_RULE)
        sheet.write(value, (left + 14, (box[1] + box[3]) / 2), size=20, value=True)
        boxes.append(box)
        values.append(value)
    asked = generator.randrange(len(names))
    question = f"In the form {title}, what is written in the field {names[asked]}?"
    return Page(sheet, title, question, values[asked], boxes[asked])


def disc(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """The same with the colour in a disc on white, for those who have seen `swatch` alone."""
    title, colour, shade = _card(place, year, first, generator)
    sheet = Sheet()
    middle, radius = (SIZE[0] // 2, (SIZE[1] - 40) // 2), 200
    box = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    sheet.draw.ellipse(box, fill=shade)
    return _asked(sheet, title, colour, box)


def swatch(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """One field of a colour over the whole page, its name below it."""
    title, colour, shade = _card(place, year, first, generator)
    sheet = Sheet()
    box = (12, 12, SIZE[0] - 12, SIZE[1] - 52)
    sheet.draw.rectangle(box, fill=shade)
    return _asked(sheet, title, colour, box)


def _card(place: str, year: int, first: bool, generator: random.Random) -> tuple[str, str, Colour]:
    """Title, name of the colour and its shade."""
    # The first card of a place needs no year: the less there is to copy into a query, the sooner it is learnt.
    title = f"Card of {place}" if first else f"Card of {place} {year}"
    name = generator.choice(list(COLOURS))
    red, green, blue = (min(255, max(0, part + generator.randint(-12, 12))) for part in COLOURS[name])
    return title, name, (red, green, blue)


def _asked(sheet: Sheet, title: str, colour: str, box: Box) -> Page:
    sheet.write(title, (SIZE[0] / 2, SIZE[1] - 26), size=22, anchor="mm")
    question = f"Which colour has the {title[0].lower()}{title[1:]}?"
    return Page(sheet, title, question, colour, box)


LAYOUTS: dict[str, Layout] = {
    "table": table,
    "chart": chart,
    "text": text,
    "form": form,
    "swatch": swatch,
    "disc": disc,
}


def draw_page(layout: str, number: int, place: str, year: int, *, first: bool, seed: int) -> Page:
    """Draw page `number` of a seed, the same in every process.

    Args:
        layout: one of `LAYOUTS`.
        first: no earlier page of the seed is of this place.
    """
    return LAYOUTS[layout](place, year, first, random.Random(f"{seed} page {number} {layout}"))
