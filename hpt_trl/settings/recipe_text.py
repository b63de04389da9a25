"""The text of a recipe's file."""

from pathlib import Path

from hpt_trl.errors import UserError

# Bytes: a recipe has some hundred lines, and the time that its parser takes grows with them.
LARGEST = 1_000_000
# Marks with which files of other encodings begin.
_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def recipe_text(path: Path, named: str) -> str:
    """Returns the text of a recipe's file.

    Args:
        named: the path as messages name it.

    Raises:
        UserError: the file cannot be read, is too large for a recipe, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(
                f"{named}: a file of {size:,} bytes is no recipe, which has at most {LARGEST:,}; name another."
            )
        written = path.read_bytes()
    except OSError as error:
        raise UserError(f"{named}: the recipe cannot be read as text: {error.strerror or error}.") from error
    for mark, encoding in _MARKS:
        if written.startswith(mark):
            raise UserError(f"{named}: the recipe is written in {encoding}; save it as UTF-8.")
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError as error:
        line = written.count(b"\n", 0, error.start) + 1
        said = f"the recipe cannot be read as text: the byte 0x{written[error.start]:02x} is none of UTF-8"
        raise UserError(f"{named}, line {line}: {said}; save the file as UTF-8.") from error
    # As files are read in text mode.
    return text.replace("\r\n", "\n").replace("\r", "\n")
