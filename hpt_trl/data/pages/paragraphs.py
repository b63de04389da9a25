"""The layout `text`: facts told in sentences, broken into lines."""

import random
from dataclasses import dataclass

from hpt_trl.data.pages.page import Page
from hpt_trl.data.pages.sheet import MARGIN, SIZE, Box, Colour, Sheet, width_of
from hpt_trl.data.pages.words import GOODS, MONTHS, PEOPLE

_LETTERS, _LINE = 19, 32
_ACCENT: Colour = (90, 90, 100)

_WORDS = {"{person}": PEOPLE, "{month}": MONTHS, "{goods}": [name.lower() for name in GOODS]}
# House -> sentences about it, each with one fact, and the question for the fact. `{n}` is a number of three digits.
_HOUSES: dict[str, tuple[tuple[str, str], ...]] = {
    "Library": (
        ("The library keeps {n} maps in its cellar.", "how many maps does the library keep"),
        ("Its reading room has {n} chairs.", "how many chairs has the reading room"),
        ("The keeper of the books is called {person}.", "who is the keeper of the books"),
        ("Every {month} it closes for a week of cleaning.", "in which month is the library closed"),
        ("Readers borrow {n} books on a usual day.", "how many books do readers borrow on a usual day"),
    ),
    "Harbour": (
        ("The harbour has room for {n} boats.", "for how many boats has the harbour room"),
        ("Its crane was built by {person}.", "who built the crane"),
        ("Most ships that come in carry {goods}.", "what do most ships carry"),
        ("The pier is {n} steps long.", "how many steps long is the pier"),
        ("Storms are worst in {month}.", "in which month are storms worst"),
    ),
    "School": (
        ("The school has {n} pupils.", "how many pupils has the school"),
        ("Its head is {person}.", "who is the head of the school"),
        ("The hall holds {n} people.", "how many people does the hall hold"),
        ("The summer fair is held in {month}.", "in which month is the fair held"),
        ("The workshop stores {goods}.", "what does the workshop store"),
    ),
}
_FILLERS = (
    "It stands near the old bridge.",
    "Guests are welcome at any time.",
    "A path leads from there to the hill.",
    "The windows look to the river.",
    "It was painted not long ago.",
)


@dataclass(frozen=True)
class _Word:
    text: str
    fact: int | None  # Of which fact it is the value.


def text(place: str, year: int, first: bool, generator: random.Random) -> Page:
    """A paragraph of facts; the answer is a word of it, the box the line on which it stands."""
    house = generator.choice(list(_HOUSES))
    told = generator.sample(_HOUSES[house], generator.randint(3, 5))
    numbers = iter(generator.sample(range(100, 1000), len(told)))
    title = f"{house} of {place} {year}"
    sheet = Sheet()
    sheet.title(title, _ACCENT)
    fillers = iter(generator.sample(_FILLERS, len(_FILLERS)))
    words: list[_Word] = []
    values = []
    for fact, (sentence, _) in enumerate(told):
        kind = sentence[sentence.index("{") : sentence.index("}") + 1]
        values.append(next(numbers) if kind == "{n}" else generator.choice(_WORDS[kind]))
        for word in sentence.split():
            words.append(_Word(word.replace(kind, str(values[-1])), fact if kind in word else None))
        if generator.random() < 0.6:
            words += [_Word(word, None) for word in next(fillers).split()]
    boxes = _write_lines(sheet, words)
    asked = generator.randrange(len(told))
    return Page(sheet, title, f"On the page {title}, {told[asked][1]}?", str(values[asked]), boxes[asked])


def _write_lines(sheet: Sheet, words: list[_Word]) -> dict[int, Box]:
    """Write the words in lines; returns the box of each fact's line."""
    space = width_of(" ", _LETTERS)
    left, middle = float(MARGIN), 104.0
    boxes = {}
    for word in words:
        if left + width_of(word.text, _LETTERS) > SIZE[0] - MARGIN:
            left, middle = float(MARGIN), middle + _LINE
        left += space + sheet.write(word.text, (left, middle), size=_LETTERS, value=word.fact is not None)
        if word.fact is not None:
            upper = round(middle) - _LINE // 2
            boxes[word.fact] = (MARGIN, upper, SIZE[0] - MARGIN, upper + _LINE)
    return boxes
