"""What the pages are about: places, years, and what is counted there."""

import random


def _words(text: str) -> list[str]:
    return text.split()


_BEGINNINGS = _words(
    "Ald Amber Ash Bar Birch Brack Cald Cor Dun East Elm Fair Fern Glen Grim Hart Haw Holm Kel Kirk Lang Lin Mar "
    "Mil Nor Oak Pen Quin Ray Red Roth Sand Sel Stan Thorn Tor Ulver Wald West Wynd"
)
_ENDINGS = _words(
    "beck borough bridge burn bury by combe dale den fell field ford gate ham hurst leigh mere mouth port shaw "
    "stead stone ton wick worth"
)

FIRST_YEAR = 1950
_YEARS = 70
# With no common divisor with the years, so that a place meets each of them once.
_STRIDE = 11

CROPS = _words("Barley Oats Wheat Rye Beans Maize Hops Flax Turnips Clover")
GOODS = _words("Timber Glass Paper Copper Cloth Rope Salt Leather Candles Bricks")
VENUES = _words("Museum Castle Harbour Theatre Garden Library Zoo Market Tower Baths")
REPAIRS = _words("Pumps Boats Clocks Bicycles Engines Kettles Looms Lamps Carts Radios")
SEASONS = _words("Spring Summer Autumn Winter")
MONTHS = _words("January February March April May June July August September October")
LINES = _words("Red Blue Green Coast Hill River Forest Airport")
SHIFTS = _words("Dawn Morning Noon Evening Night")
PEOPLE = _words(
    "Abbott Baker Cooper Dawson Ellis Foster Grant Harper Irving Jensen Keller Lambert Mercer Nolan Osborne "
    "Palmer Quill Ramsey Sutton Turner"
)
# Each far enough from the others to be told apart at a few pixels.
COLOURS = {
    "red": (205, 35, 40),
    "green": (40, 150, 60),
    "blue": (35, 70, 200),
    "yellow": (240, 215, 40),
    "purple": (125, 45, 160),
    "orange": (240, 130, 25),
    "black": (25, 25, 28),
    "cyan": (60, 200, 215),
}

PLACES = [beginning + ending for beginning in _BEGINNINGS for ending in _ENDINGS]
# So many pages have titles of their own.
MOST_PAGES = len(PLACES) * _YEARS


def places(seed: int) -> list[str]:
    """All places, in the order in which the pages of a seed take them."""
    order = list(PLACES)
    random.Random(f"{seed} places").shuffle(order)
    return order


def year_of(number: int) -> int:
    """The year of page `number` (from 0): pages of one place have different ones."""
    place, turn = number % len(PLACES), number // len(PLACES)
    return FIRST_YEAR + (place * 13 + turn * _STRIDE) % _YEARS
