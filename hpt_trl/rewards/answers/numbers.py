r"""Plain numbers as exact fractions: integers, decimals, `1,234`, `2 3/4`, `\frac{11}{4}`, `50\%`, `1.5\cdot 10^3`."""

import re
from dataclasses import dataclass
from fractions import Fraction

# Beyond it a power of ten is not written out.
_MAX_EXPONENT = 400
_DIGITS = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+"
_DECIMAL = rf"(?:(?:{_DIGITS})(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"(?:{_DECIMAL})")
_SLASHED = re.compile(rf"(?P<above>{_DECIMAL}) ?/ ?(?P<below>[-+]?{_DECIMAL})")
_FRAC = r"\\frac ?\{ ?(?P<above>[-+]? ?" + _DECIMAL + r") ?\} ?\{ ?(?P<below>[-+]? ?" + _DECIMAL + r") ?\}"
_LATEX_FRACTION = re.compile(_FRAC)
_MIXED = re.compile(rf"(?P<whole>\d+)(?: ?{_FRAC}| (?P<over>\d+) ?/ ?(?P<under>\d+))")
_POWER = r"10 ?(?:\^ ?(?:\{ ?(?P<braced>[-+]? ?\d+) ?\}|\( ?(?P<bracketed>[-+]?\d+) ?\)|(?P<bare>-?\d+)))"
_SCIENTIFIC = re.compile(rf"(?:(?P<mantissa>{_DECIMAL}) ?\\cdot ?)?{_POWER}")
_EXPONENTIAL = re.compile(rf"(?P<mantissa>{_DECIMAL})[eE](?P<exponent>[-+]?\d+)")
_REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?P<fixed>\d*)\\(?:overline|bar|dot|overbar) ?(?:\{(?P<many>\d+)\}|(?P<one>\d))"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(?P<number>.*?\S) ?(?:\\text\{{ ?)?(?P<scale>{'|'.join(_SCALES)})s? ?\}}?")


@dataclass(frozen=True)
class Number:
    """A rational number. `places` are the decimals it was written with (None: written as a fraction)."""

    value: Fraction
    places: int | None = None

    def equals(self, other: "Number") -> bool:
        """Exactly, or as a decimal of at least six places rounded from a number that has more of them."""
        if self.value == other.value:
            return True
        for rounded, exact in ((self, other), (other, self)):
            # As many places as math-verify compares: 0.333333 is 1/3, 0.33 is not.
            if exact.places is None and rounded.places is not None and rounded.places >= 6:
                return round(exact.value, rounded.places) == rounded.value
        return False


def read_number(text: str) -> Number | None:
    """Read a normalised text as a number; None where it is not one, divides by zero, or is too large to write out."""
    percents = 0
    while text.endswith((r"\%", r"\% ")) and percents < 2:
        text, percents = text.rstrip().removesuffix(r"\%").rstrip(), percents + 1
    signs = re.match(r"(?:[-+] ?)*", text)
    sign = text[: signs.end()] if signs else ""
    rest = text[len(sign) :].strip()
    # Inside of brackets a comma separates: `(1,234)` is a pair.
    while rest[:1] + rest[-1:] in ("()", "{}") and not set("(){},") & set(rest[1:-1]):
        rest = rest[1:-1].strip()
        inner = re.match(r"(?:[-+] ?)*", rest)
        sign, rest = sign + rest[: inner.end() if inner else 0], rest[inner.end() if inner else 0 :].strip()
    if not rest or not re.match(r"[\d.\\]", rest) or len(rest) > 2 * _MAX_EXPONENT:
        return None
    number = _unsigned(rest)
    if number is None:
        return None
    factor = Fraction(-1 if sign.count("-") % 2 else 1, 100**percents)
    places = number.places if number.places is None else number.places + 2 * percents
    return Number(number.value * factor, places)


def _unsigned(text: str) -> Number | None:
    if _PLAIN.fullmatch(text):
        return _decimal(text)
    if found := _MIXED.fullmatch(text):
        above, below = (found["above"], found["below"]) if found["above"] else (found["over"], found["under"])
        part = _ratio(_decimal(above), _decimal(below))
        return part and Number(int(found["whole"]) + part.value)
    if found := _SLASHED.fullmatch(text) or _LATEX_FRACTION.fullmatch(text):
        return _ratio(_decimal(found["above"]), _decimal(found["below"]))
    if found := _EXPONENTIAL.fullmatch(text):
        return _scientific(found["mantissa"], found["exponent"])
    if found := _SCIENTIFIC.fullmatch(text):
        return _scientific(found["mantissa"] or "1", found["braced"] or found["bracketed"] or found["bare"])
    if found := _REPEATING.fullmatch(text):
        repeated = found["many"] or found["one"]
        fixed, scale = found["fixed"], 10 ** len(found["fixed"])
        tail = Fraction(int(fixed or "0")) + Fraction(int(repeated), 10 ** len(repeated) - 1)
        return Number(int(found["whole"] or "0") + tail / scale)
    if found := _SCALED.fullmatch(text):
        number = read_number(found["number"])
        return number and Number(number.value * 10 ** _SCALES[found["scale"]], number.places)
    return None


def _decimal(text: str) -> Number:
    plain = re.sub(r"[, ]", "", text)
    sign = -1 if plain.count("-") % 2 else 1
    whole, _, part = plain.lstrip("+-").partition(".")
    return Number(sign * Fraction(int(whole + part or "0"), 10 ** len(part)), len(part))


def _ratio(above: Number, below: Number) -> Number | None:
    return Number(above.value / below.value) if below.value else None


def _scientific(mantissa: str, exponent: str) -> Number | None:
    power = exponent.replace(" ", "")
    if len(power) > 5 or abs(int(power)) > _MAX_EXPONENT:
        return None
    number = _decimal(mantissa)
    return Number(number.value * Fraction(10) ** int(power), max(0, (number.places or 0) - int(power)))
