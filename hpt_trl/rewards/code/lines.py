"""Lines as Python's own parser counts them; `str.splitlines` knows ends that it does not, as in a text with U+2028."""

import io


def normalised(text: str) -> str:
    """The text with every end of a line written as the parser reads it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """The lines of a normalised text, each with its end."""
    return list(io.StringIO(text))
