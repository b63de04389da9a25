r"""An answer as plain LaTeX: one spelling for what is written in many ways, and nothing that has a meaning dropped.

Spaces are kept as one space each, for `1 1/2` is not `11/2`; `\\` stays the end of a row.
"""

# ruff: noqa: RUF001
import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ", "0123456789+-nx", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_SYMBOLS = {
    **dict.fromkeys("‐‑‒–—−﹣", "-"),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", ""),
    **dict.fromkeys("×∗", r"\cdot "),
    **dict.fromkeys("·⋅•", r"\cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("‘’ʼ′", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("∣│", "|"),
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\leq ",
    "⩽": r"\leq ",
    "≥": r"\geq ",
    "⩾": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "→": r"\to ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∑": r"\sum ",
    "∫": r"\int ",
    "∶": ":",
    "：": ":",
    "，": ",",
    "。": ".",
    "、": ",",
    "؛": ";",
    "،": ",",
    "٫": ".",
    "٬": ",",
    "٪": r"\%",
    "⟨": "(",
    "⟩": ")",
    "〈": "(",
    "〉": ")",
    "…": r"\ldots ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "δ": r"\delta ",
    "ε": r"\epsilon ",
    "θ": r"\theta ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "ρ": r"\rho ",
    "σ": r"\sigma ",
    "τ": r"\tau ",
    "φ": r"\phi ",
    "ω": r"\omega ",
    "Δ": r"\Delta ",
    "Ω": r"\Omega ",
}

# `\\` comes first, so that the backslashes of a row's end are never read as the start of a command.
_COMMAND = re.compile(r"\\\\(?:\s*\[[^\]\n]*(?:pt|em|ex|cm|mm)\])?|\\[a-zA-Z]+\*?|\\.", re.DOTALL)
_SPACES = {r"\,", r"\;", r"\:", r"\ ", "\\\n", "\\\t", r"\quad", r"\qquad", r"\thinspace", r"\enspace", r"\space"}
_NOTHING = {
    *(r"\!", r"\(", r"\)", r"\left", r"\right", r"\middle", r"\displaystyle", r"\textstyle", r"\limits", r"\nolimits"),
    *(r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\biggl", r"\biggr", r"\strut"),
    *(r"\bf", r"\rm", r"\it", r"\sf", r"\bfseries", r"\scriptstyle", r"\negthinspace", r"\hfill", r"\cal", r"\phantom"),
    *(r"\tiny", r"\small", r"\normalsize", r"\large", r"\Large", r"\huge"),
}
_SAME = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys((r"\le", r"\leqslant", r"\leqq"), r"\leq"),
    **dict.fromkeys((r"\ge", r"\geqslant", r"\geqq"), r"\geq"),
    **dict.fromkeys((r"\ne",), r"\neq"),
    **dict.fromkeys((r"\lt",), "<"),
    **dict.fromkeys((r"\gt",), ">"),
    **dict.fromkeys((r"\times", r"\ast", r"\cdotp"), r"\cdot"),
    **dict.fromkeys((r"\div",), "/"),
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert", r"\mid"), "|"),
    **dict.fromkeys((r"\lbrace",), r"\{"),
    **dict.fromkeys((r"\rbrace",), r"\}"),
    **dict.fromkeys((r"\lbrack",), "["),
    **dict.fromkeys((r"\rbrack",), "]"),
    **dict.fromkeys((r"\langle", r"\lparen"), "("),
    **dict.fromkeys((r"\rangle", r"\rparen"), ")"),
    **dict.fromkeys((r"\varnothing",), r"\emptyset"),
    **dict.fromkeys((r"\degree", r"\textdegree"), r"^\circ"),
    **dict.fromkeys((r"\colon",), ":"),
    **dict.fromkeys((r"\dots", r"\cdots"), r"\ldots"),
    **dict.fromkeys((r"\lor", r"\vee"), " or "),
    **dict.fromkeys((r"\land", r"\wedge"), " and "),
    **dict.fromkeys((r"\textdollar",), r"\$"),
    **dict.fromkeys((r"\backslash",), r"\setminus"),
    **dict.fromkeys((r"\R", r"\reals"), r"\mathbb{R}"),
    r"\lg": r"\log",
    r"\varepsilon": r"\epsilon",
    r"\varphi": r"\phi",
    r"\-": "",
    r"\/": "",
    r"\#": "#",
    r"\&": r"\&",
    r"\_": " ",
}
_FONTS = (
    "text|textbf|textit|textrm|texttt|textsf|textnormal|textsc|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|emph|"
    "operatorname|boldsymbol|bm|underline|boxed|fbox|mathcal|ensuremath"
)
_FONT = re.compile(rf"\\(?:{_FONTS})\*?\s*\{{([^{{}}]*)\}}")
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min|det"
_BARE_FUNCTION = re.compile(rf"(?<![\\a-zA-Z{{])({_FUNCTIONS})(?=\s*[(\\^_|]|\s*\d|\s+[a-zA-Z](?![a-zA-Z]))")
_BARE_PI = re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])")
_BARE_INFINITY = re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", re.IGNORECASE)
_TOKEN = r"(?:\d|[a-zA-Z]|\\(?:pi|theta|alpha|beta|infty)(?![a-zA-Z]))"
_FRACTION = re.compile(rf"\\(frac|binom)\s*(?:({_TOKEN})|(\{{[^{{}}]*\}}))\s*(?:({_TOKEN})|(?=\{{))")
_SQUARE_ROOT = re.compile(rf"\\sqrt\s*({_TOKEN})")
_ROOT_SIGN = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[a-zA-Z]|\\pi))")
_ROOT_WORD = re.compile(r"(?<![a-zA-Z])\\?(sqrt|cbrt)\s*\(([^()]*)\)")
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) ?\^ ?(?:\\circ(?![a-z])|\{ ?\\circ ?\})")
_SEGMENT = re.compile(r"\\(?:overline|vec|overrightarrow) ?\{([A-Z]{2}|[a-z])\}")
_PHRASE = re.compile(
    r"^(?:so|thus|therefore|hence)?,?\s*(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?(?:answer|result|solution)s?"
    r"\s*(?:is|are|:|=|-)+\s*:?\s*",
    re.IGNORECASE,
)
_WRAPS = (("**", "**"), ("__", "__"), ("$$", "$$"), ("$", "$"), ("`", "`"), ("\\(", "\\)"), ("\\[", "\\]"))
_SIGNS = (
    ("\\not=", r"\neq "),
    ("<=", r"\leq "),
    (">=", r"\geq "),
    ("!=", r"\neq "),
    ("**", "^"),
    ("{,}", ","),
    ("^{\\circ}", "^\\circ"),
)


def normalise(text: str) -> str:
    """Return `text` as plain LaTeX (see the module)."""
    text = _unwrapped(_ascii(text.replace("~", " ")))
    text = _PHRASE.sub("", text)
    text = _unwrapped(text)
    text = _COMMAND.sub(_command, text)
    text = re.sub(r"(?<!\\)\$(?!\s*\d)|(?<=\d)\$", "", text)
    text = re.sub(r"(?<!\\)\$", r"\\$", text)
    for old, new in _SIGNS:
        text = text.replace(old, new)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = _fonts(text)
    text = re.sub(r"\\text\{\s*(?:percent|per cent|percentage|pct)\s*\}", r"\\%", text)
    text = re.sub(r"(?<![\\a-zA-Z])(?:percent|per cent|percentage|pct)(?![a-zA-Z])", r"\\%", text)
    # `\text{3 hours}`: the number is none of the words.
    text = re.sub(r"^\\text\{\s*([+-]?\d[\d.,/]*)(?:\s+([^{}\d]*))?\}$", r"\1\\text{ \2}", text)
    text = _PHRASE.sub("", re.sub(r"^\\text\{([^{}]*)\}", _phrase, text))
    text = _operators(text)
    text = re.sub(r"\^\s*\\circ(?![a-zA-Z])\s*", r"^\\circ ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return _unended(text)


def tight(text: str) -> str:
    """Drop the spaces of a normalised text that separate neither two digits nor two letters."""
    return re.sub(r"(?<![\da-zA-Z]) | (?![\da-zA-Z])|(?<=[a-zA-Z]) (?=\d)|(?<=\d) (?=[a-zA-Z])", "", text)


def _ascii(text: str) -> str:
    if text.isascii():
        return text.replace("\0", " ")
    text = _RAISED.sub(lambda match: "^{" + "".join(_SUPERSCRIPTS[mark] for mark in match[0]) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + "".join(_SUBSCRIPTS[mark] for mark in match[0]) + "}", text)
    text = _ROOT_SIGN.sub(_root, "".join(map(_character, text)))
    return text


def _character(mark: str) -> str:
    if mark.isascii():
        return mark if mark != "\0" else " "
    if mark in _SYMBOLS:
        return _SYMBOLS[mark]
    if mark in "√∛∜€£¥₹₽₩":
        return mark
    digit = unicodedata.decimal(mark, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", mark)
    if "⁄" in plain and unicodedata.category(mark) == "No":
        above, _, below = plain.partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}" if above and below else plain.replace("⁄", "/")
    return "".join(_SYMBOLS.get(part, part) for part in plain)


def _root(match: re.Match[str]) -> str:
    degree = {"√": "", "∛": "[3]", "∜": "[4]"}[match[1]]
    return rf"\sqrt{degree}{{{next(group for group in match.groups()[1:] if group is not None)}}}"


def _unwrapped(text: str) -> str:
    """Drop what encloses the whole: markdown's marks, math delimiters, quotation marks, a full stop."""
    while True:
        before = text
        text = _unended(re.sub(r"(?<!\\)\\$", "", text.strip()))
        for opening, closing in (*_WRAPS, ('"', '"'), ("'", "'")):
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening[-1] not in inner[:-1]:
                text = inner.strip()
        if text == before:
            return text


def _unended(text: str) -> str:
    """Drop the full stop, comma or colon at the end; `\\,` and the like are spaces."""
    while text and text[-1] in ".,;:" and not text.endswith("\\" + text[-1]):
        text = text[:-1].rstrip()
    return text


def _command(match: re.Match[str]) -> str:
    name = match[0]
    if name.startswith("\\\\"):
        return "\\\\ "
    if name in _SPACES:
        return " "
    if name in _NOTHING:
        return ""
    return _SAME.get(name, name) + (" " if _SAME.get(name, "").startswith("\\") and name[1:].isalpha() else "")


def _fonts(text: str) -> str:
    r"""One font command, `\text`, for words; none for a letter, a number, or what holds a command."""
    for _ in range(20):
        changed = _FONT.sub(_font, text)
        if changed == text:
            break
        text = changed
    return text.replace("\x01", "\\text{").replace("\x02", "}")


def _font(match: re.Match[str]) -> str:
    inside = match[1]
    words = inside.strip()
    if match[0].startswith((r"\boxed", r"\fbox", r"\ensuremath")):
        return f"{inside}"
    if re.fullmatch(r"(?:,?\s*)(?:and|or)", words):
        return f" {words.lstrip(', ')} "
    if re.fullmatch(r"[a-zA-Z]?|[^a-zA-Z]*", words) and not match[0].startswith(r"\text"):
        return words
    if not re.search(r"[a-zA-Z]", words) or "\\" in words:
        return f" {words} " if match[0].startswith(r"\text") else words
    if f"\\{words}" in {"\\" + name for name in _FUNCTIONS.split("|")} and "operatorname" in match[0]:
        return f"\\{words} "
    # Marked, so that a text inside of another is not read again.
    return f"\x01{inside}\x02"


def _phrase(match: re.Match[str]) -> str:
    return "" if _PHRASE.fullmatch(match[1].strip() + " ") else match[0]


def _operators(text: str) -> str:
    """Fractions, roots and functions with their braces."""
    text = _BARE_PI.sub(r"\\pi ", text)
    text = _BARE_INFINITY.sub(r"\\infty ", text)
    for _ in range(10):
        changed = _ROOT_WORD.sub(lambda match: rf"\sqrt{'[3]' if match[1] == 'cbrt' else ''}{{{match[2]}}}", text)
        changed = _OVER.sub(r"\\frac{\1}{\2}", changed)
        if changed == text:
            break
        text = changed
    text = _BARE_FUNCTION.sub(r"\\\1", text)
    text = _FRACTION.sub(_fraction, text)
    text = re.sub(r"(?<=\\log)_ ?(\d) ?", r"_{\1} ", text)
    text = re.sub(r"([_^])(\d) (?=\d)", r"\1{\2} ", text)
    text = _SQUARE_ROOT.sub(r"\\sqrt{\1}", text)
    if _TRIGONOMETRIC.search(text):
        # sympy takes radians.
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _SEGMENT.sub(r"\1", text).replace(r"\bmod", r"\mod")
    return re.sub(r"(?<!\\)\*", r"\\cdot ", text)


def _fraction(match: re.Match[str]) -> str:
    above = match[3] or f"{{{match[2]}}}"
    return rf"\{match[1]}{above}" + (f"{{{match[4]}}}" if match[4] else "")
