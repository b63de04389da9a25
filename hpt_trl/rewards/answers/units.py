r"""Units of quantities: `5\text{ cm}` is `5 cm`, `5 centimeters` and `0.05 m`, and is not `5 m`."""

import re
from dataclasses import dataclass
from fractions import Fraction

_F = Fraction
# Names of a unit, the dimension that it measures, and its size in the dimension's first unit.
_TABLE: tuple[tuple[str, str, Fraction], ...] = (
    ("m meter metre", "length", _F(1)),
    ("cm centimeter centimetre", "length", _F(1, 100)),
    ("mm millimeter millimetre", "length", _F(1, 1000)),
    ("dm decimeter decimetre", "length", _F(1, 10)),
    ("km kilometer kilometre", "length", _F(1000)),
    ("inch inches in", "length", _F(254, 10_000)),
    ("foot feet ft", "length", _F(3048, 10_000)),
    ("yard yd", "length", _F(9144, 10_000)),
    ("mile mi", "length", _F(1_609_344, 1000)),
    ("g gram gramme", "mass", _F(1)),
    ("kg kilogram kilogramme kilo", "mass", _F(1000)),
    ("mg milligram", "mass", _F(1, 1000)),
    ("ton tonne", "ton", _F(1)),
    ("pound lb", "pound", _F(1)),
    ("ounce oz", "pound", _F(1, 16)),
    ("s sec second", "time", _F(1)),
    ("min minute", "time", _F(60)),
    ("h hr hour", "time", _F(3600)),
    ("day", "time", _F(86_400)),
    ("week wk", "time", _F(604_800)),
    ("ms millisecond", "time", _F(1, 1000)),
    ("year yr", "year", _F(1)),
    ("month", "year", _F(1, 12)),
    ("decade", "year", _F(10)),
    ("century centuries", "year", _F(100)),
    ("dollar usd buck", "dollar", _F(1)),
    ("cent", "dollar", _F(1, 100)),
    ("euro eur", "euro", _F(1)),
    ("gbp quid", "sterling", _F(1)),
    ("rupee inr rs", "rupee", _F(1)),
    ("yen jpy", "yen", _F(1)),
    ("yuan cny rmb", "yuan", _F(1)),
    ("degree deg", "degree", _F(1)),
    ("radian rad", "radian", _F(1)),
    ("celsius", "celsius", _F(1)),
    ("fahrenheit", "fahrenheit", _F(1)),
    ("dozen", "", _F(12)),
    ("unit", "", _F(1)),
    ("person people", "person", _F(1)),
    ("child children", "child", _F(1)),
    ("man men", "man", _F(1)),
    ("woman women", "woman", _F(1)),
    ("n newton", "newton", _F(1)),
    ("j joule", "joule", _F(1)),
    ("w watt", "watt", _F(1)),
    ("v volt", "volt", _F(1)),
    ("k kelvin", "kelvin", _F(1)),
    ("hz hertz", "hertz", _F(1)),
    ("pa pascal", "pascal", _F(1)),
    ("mol mole", "mole", _F(1)),
)
_UNITS = {name: (dimension, factor) for names, dimension, factor in _TABLE for name in names.split()}
_SHORT = {
    "mph": "mile/hour",
    "kph": "km/hour",
    "kmh": "km/hour",
    "kmph": "km/hour",
    "fps": "foot/second",
    "sqft": "foot^2",
    **dict.fromkeys(("l", "liter", "litre", "liters", "litres"), "dm^3"),
    **dict.fromkeys(("ml", "milliliter", "millilitre", "milliliters", "millilitres", "cc"), "cm^3"),
}
_SYMBOLS = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee", "¢": "cent"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# Words that only say what is counted, as in `5 units` or `5 cm long`.
_EMPTY = {
    "long",
    "tall",
    "wide",
    "high",
    "old",
    "away",
    "total",
    "of",
    "each",
    "about",
    "only",
    "altogether",
    "left",
    "in",
}
_PART = re.compile(r"/|per(?![a-z])|[a-z€£¥₹¢$]+|\^ ?\{? ?(-?\d+) ?\}?|\S", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """A product of powers of dimensions, and its size in their first units."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction

    def agrees(self, other: "Unit") -> bool:
        """Whether both measure the same; a degree may be one of an angle or a temperature, a pound of mass or money."""
        if self.dimensions == other.dimensions:
            return True
        names = {name for unit in (self, other) for name, _ in unit.dimensions}
        return names in ({"degree", "celsius"}, {"degree", "fahrenheit"}, {"pound", "sterling"})


def is_known_unit(word: str) -> bool:
    """Return whether `word` is in the table of units, also with a plural s."""
    return _known(word) is not None or word.lower() in _SHORT


def read_unit(text: str) -> Unit | None:
    r"""Read a unit such as `cm`, `\text{ square feet}`, `m/s^2` or `^\circ`; None where it is not one."""
    plain = re.sub(r"\^\\circ", " degree ", text)
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", plain).replace(r"\$", "$").replace(r"\cdot", " ").strip(" .")
    for mark, name in _SYMBOLS.items():
        plain = plain.replace(mark, f" {name} ")
    plain = re.sub(
        r"\bdegrees?\s+([cf])\b|\bdegrees?\s+(celsius|fahrenheit)\b", _temperature, plain, flags=re.IGNORECASE
    )
    if not plain or re.search(r"\\|[=<>|&]", plain):
        return None
    return _product(plain)


def _product(plain: str) -> Unit | None:
    powers: dict[str, int] = {}
    factor, sign, waiting = Fraction(1), 1, 1
    last: tuple[str, Fraction, int] | None = None
    for found in _PART.finditer(plain):
        part = found[0].lower()
        if part in ("/", "per"):
            sign = -1
        elif found[1] is not None:
            if last is None or abs(int(found[1])) > 9:
                return None
            name, size, before = last
            more = before * (int(found[1]) - 1)
            powers[name] = powers.get(name, 0) + more
            factor *= size**more
            last = None
        elif part in _POWERS:
            if part in ("squared", "cubed") and last is not None:
                name, size, before = last
                powers[name] = powers.get(name, 0) + before * (_POWERS[part] - 1)
                factor *= size ** (before * (_POWERS[part] - 1))
            else:
                waiting = _POWERS[part]
        elif not part[0].isalpha():
            if part not in "-.,'()":
                return None
        elif part in _SHORT:
            inner = _product(_SHORT[part])
            assert inner is not None
            for name, power in inner.dimensions:
                powers[name] = powers.get(name, 0) + sign * power
            factor *= inner.factor**sign
        elif part not in _EMPTY or not powers:
            name, size = _known(found[0]) or (_singular(part), Fraction(1))
            power = sign * waiting
            powers[name] = powers.get(name, 0) + power
            factor *= size**power
            last, waiting = (name, size, power), 1
    dimensions = tuple(sorted((name, power) for name, power in powers.items() if name and power))
    if waiting != 1:
        # `5 square units` counts squares of a unit that has no name.
        return Unit((), Fraction(1))
    return Unit(dimensions, factor)


def _known(word: str) -> tuple[str, Fraction] | None:
    lower = word.lower()
    for name in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _UNITS and not (len(name) == 1 and len(lower) > 1):
            return _UNITS[name]
    return None


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word.removesuffix("s") if len(word) > 2 and not word.endswith("ss") else word


def _temperature(match: re.Match[str]) -> str:
    letter = (match[1] or match[2])[0].lower()
    return " celsius " if letter == "c" else " fahrenheit "
