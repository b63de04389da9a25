"""How text looks on a terminal: tables and lines as wide as it is, with words whole and paths folded at `/`.

Where the width is not known it is 80 columns; COLUMNS sets it. Colours and bold are for terminals alone, and NO_COLOR
turns them off. rich is imported on use: `hpt-trl --help` answers without it.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Between columns.
_GAP = 2
# In front of what stands below a row or goes on in another line.
_INDENT = 4
# A name before its text: `Model:   outputs/x`; what goes on in another line stands below the text.
_LABEL = re.compile(r"\s*\S[^:\n]{0,22}:\s+(?=\S)")
# Where a word that is wider than its place may be folded, in the order in which that is tried.
_FOLDS = ("/", "/.,:;=&?_-|+")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head; empty for none.
        right: Numbers stand at the right edge.
        below: Where the table is too wide for the terminal, the cell moves below the row, with the title before it.
        whole: Cells are not wrapped as long as there is room, as for names that are copied.
    """

    title: str
    right: bool = False
    below: bool = False
    whole: bool = False


def width() -> int:
    """Columns of the terminal."""
    from rich.console import Console

    return max(Console(force_jupyter=False).width, 1)


def has_style(stream: IO[str] | None = None) -> bool:
    """Whether what is written to a stream (stdout) may be bold or coloured."""
    terminal = (sys.stdout if stream is None else stream).isatty()
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def printable(text: str) -> str:
    """A text whose control characters, by which a terminal could be told to do something, are written out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def flow(lines: Iterable[str], columns: int | None = None) -> str:
    """Lines, each cut into as many as the terminal's width asks for; what goes on stands below its beginning."""
    room = width() if columns is None else columns
    return "\n".join(part for line in lines for one in line.split("\n") for part in _hanging(one, room))


def pairs(facts: Iterable[tuple[str, str]], columns: int | None = None, *, least: int = 0) -> str:
    """Names and texts, a line each and all texts below each other, in column `least` or further right."""
    facts, room = list(facts), width() if columns is None else columns
    lead = max([least, *(len(name) + 2 for name, _ in facts)])
    if lead > room // 2:
        return flow((f"{name}: {text}" for name, text in facts), room)
    lines = []
    for name, text in facts:
        parts = wrapped(text, room - lead)
        lines += [f"{f'{name}:':<{lead}}{parts[0]}", *(" " * lead + part for part in parts[1:])]
    return "\n".join(line.rstrip() for line in lines)


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[str]], *, room: int | None = None) -> str:
    """A table as wide as the terminal at most.

    Cells are wrapped. Columns marked `below` go below their row, the first of them first, where that takes fewer lines
    or where there is no room otherwise; where there is still none, every cell has a line of its own.

    Args:
        columns: A text is a plain column's title.
        rows: Cells of each row; an empty cell is left out where it would stand below.
        room: Columns of the terminal.
    """
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    cells, limit = [[printable(cell) for cell in row] for row in rows], width() if room is None else room
    movable = [place for place, head in enumerate(heads) if head.below]
    layouts = [_laid_out(heads, cells, movable[:count], limit) for count in range(len(movable) + 1)]
    found = [layout for layout in layouts if layout is not None]
    return "\n".join(line.rstrip() for line in (min(found, key=len) if found else _stacked(heads, cells, limit)))


def wrapped(text: str, columns: int) -> list[str]:
    """A text in lines of at most so many columns, broken at spaces and, of words that are wider, inside of them."""
    return [part for line in text.expandtabs(4).split("\n") for part in _cut(line, max(columns, 2))]


def _cut(line: str, room: int, lead: int | None = None) -> list[str]:
    """The parts of a line; all but the first are indented by `lead`, or as the line is."""
    if _size(line) <= room:
        return [line.rstrip()]
    own = len(line) - len(line.lstrip())
    lead = own if lead is None else lead
    rest = " " * (lead if lead <= room // 2 else 0)
    parts, current, filled = [], " " * (own if own <= room // 2 else 0), False
    for space, word in re.findall(r"(\s*)(\S+)", line):
        gap = space if filled else ""
        if _size(current + gap + word) <= room:
            current, filled = current + gap + word, True
            continue
        if filled and _size(rest + word) <= room:
            parts.append(current)
            current, gap = rest, ""
        before = current + gap
        pieces = _folded(word, room - _size(before), room - _size(rest))
        if not pieces[0]:
            parts.append(current)
            before = ""
            pieces[:2] = [rest + pieces[1]]
        *others, last = [before + pieces[0], *(rest + piece for piece in pieces[1:])]
        parts += others
        current, filled = last, True
    return [*parts, current]


def _folded(word: str, first: int, room: int) -> list[str]:
    """A word in parts, cut behind `/`, else behind other marks, else anywhere.

    Args:
        first: columns for the first part, which is empty where none fits.
        room: columns for each other.
    """
    for marks in _FOLDS:
        pieces = _pieces(word, marks)
        if max(map(_size, pieces)) <= room:
            return _joined(pieces, first, room)
    return _joined([part for piece in _pieces(word, _FOLDS[-1]) for part in _chopped(piece, room)], first, room)


def _pieces(word: str, marks: str) -> list[str]:
    return re.findall(f"[^{re.escape(marks)}]*[{re.escape(marks)}]+|[^{re.escape(marks)}]+", word)


def _chopped(piece: str, room: int) -> list[str]:
    from rich.cells import chop_cells

    return chop_cells(piece, max(room, 2))


def _joined(pieces: list[str], first: int, room: int) -> list[str]:
    parts = [""]
    for piece in pieces:
        if _size(parts[-1] + piece) <= (first if len(parts) == 1 else room):
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts


def _hanging(line: str, room: int) -> list[str]:
    label = _LABEL.match(line)
    beside = label is not None and label.end() <= room // 3
    return _cut(printable(line), room, label.end() if label and beside else len(line) - len(line.lstrip()) + 2)


@lru_cache(maxsize=4096)
def _size(text: str) -> int:
    """Columns that a text takes; some characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _least(cell: str) -> int:
    """Columns that a cell takes at least with its words whole and its paths folded."""
    return max((_size(piece) for word in cell.split() for piece in _pieces(word, "/")), default=0)


def _laid_out(heads: list[Column], rows: list[list[str]], moved: list[int], limit: int) -> list[str] | None:
    """Lines of a table with some of the columns below each row; None where there is no room."""
    places = [place for place in range(len(heads)) if place not in moved]
    columns = [[heads[place].title, *(row[place] for row in rows)] for place in places]
    widths = _widths(columns, [heads[place].whole for place in places], limit)
    if widths is None:
        return None
    lines: list[str] = []
    if any(heads[place].title for place in places):
        lines += _drawn([heads[place].title for place in places], heads, places, widths, style="bold")
    for row in rows:
        lines += _drawn([row[place] for place in places], heads, places, widths)
        said = [f"{heads[place].title.lower()} {row[place]}".strip() for place in moved if row[place] not in ("", "-")]
        lines += [" " * _INDENT + part for part in _listed(said, limit - _INDENT)]
    return lines


def _listed(items: list[str], room: int) -> list[str]:
    """Items behind each other, in lines that end between two of them wherever that is possible."""
    lines: list[str] = []
    for place, item in enumerate(items):
        text = item if place == len(items) - 1 else f"{item},"
        if lines and _size(f"{lines[-1]} {text}") <= room:
            lines[-1] += f" {text}"
        else:
            lines += wrapped(text, room)
    return lines


def _widths(columns: list[list[str]], whole: list[bool], limit: int) -> list[int] | None:
    """Columns of the terminal for each column: as much as it needs, or its share of what is there."""
    room = limit - _GAP * (len(columns) - 1)
    needed = [max(_size(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    least = [max(map(_least, cells)) for cells in columns]
    widths = [need if keep else low for need, low, keep in zip(needed, least, whole, strict=True)]
    widths = widths if sum(widths) <= room else least
    if sum(widths) > room:
        return None
    # The column that would have the most lines gets the next place.
    while sum(widths) < min(room, sum(needed)):
        place = max(range(len(widths)), key=lambda place: (needed[place] - widths[place]) / max(widths[place], 1))
        widths[place] += 1
    return widths


def _drawn(cells: list[str], heads: list[Column], places: list[int], widths: list[int], style: str = "") -> list[str]:
    """The lines of one row."""
    from rich.table import Table
    from rich.text import Text

    row = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    for place, wide in zip(places, widths, strict=True):
        row.add_column(width=wide, justify="right" if heads[place].right else "left", no_wrap=True, overflow="crop")
    row.add_row(*(Text("\n".join(wrapped(cell, wide)), style=style) for cell, wide in zip(cells, widths, strict=True)))
    return _rendered(row, sum(widths) + _GAP * (len(widths) - 1))


def _rendered(row: "Table", columns: int) -> list[str]:
    import io

    from rich.console import Console

    file = io.StringIO()
    # In a notebook rich would show a table of its own beside the text, and style what is kept as text: Jupyter asks for
    # colours by FORCE_COLOR.
    console = Console(
        file=file,
        width=max(columns, 1),
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=has_style(),
        color_system="standard" if has_style() else None,
    )
    console.print(row)
    return file.getvalue().rstrip("\n").split("\n")


def _stacked(heads: list[Column], rows: list[list[str]], limit: int) -> list[str]:
    """A line for each cell, where even the narrowest table is too wide."""
    lines: list[str] = []
    for row in rows:
        for place, (head, cell) in enumerate(zip(heads, row, strict=True)):
            if cell and place == 0:
                lines += wrapped(cell, limit)
            elif cell:
                lead = " " * min(_INDENT, limit // 4)
                said = f"{head.title.lower()}: {cell}" if head.title else cell
                lines += [lead + part for part in wrapped(said, limit - len(lead))]
    return lines


def side_by_side(left: Sequence[str], right: Sequence[str], columns: int) -> list[str]:
    """Two blocks of lines beside each other, each in half of the columns and cut by whoever calls."""
    half = (columns - 3) // 2
    height = max(len(left), len(right))
    rows = zip([*left, *[""] * (height - len(left))], [*right, *[""] * (height - len(right))], strict=True)
    return [f"{one}{' ' * (half - _size(one))} | {other}".rstrip() for one, other in rows]
