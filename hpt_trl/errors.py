"""The exception that stands for a mistake of the user, or for several: printed as a message, never as a traceback."""

import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# Libraries may stand between a fault and who made it, as wandb's `sys.exit` does.
_INSTALLED = (
    os.path.dirname(__file__),
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


# Letters of a key that messages quote.
_QUOTED = 200


@dataclass(frozen=True)
class Place:
    """Where a user has set a key.

    Attributes:
        file: the recipe's file, as messages name it.
        key: the key; empty for a line that has none.
        line: of the key in the file, counted from 1; None on the command line, and where the key is not set.
        on_command_line: whether it is set there.
        note: what messages say of the place behind it.
    """

    file: str
    key: str
    line: int | None = None
    on_command_line: bool = False
    note: str = ""

    def __str__(self) -> str:
        key = self.key[:_QUOTED]
        if self.on_command_line:
            return f"--{key} on the command line ({self.file}){self.note}"
        where = [self.file, *([] if self.line is None else [f"line {self.line}"]), *([f"`{key}`"] if key else [])]
        return f"{', '.join(where)}{self.note}"

    def error(self, message: str) -> "UserError":
        """Returns (does not raise) the error about the key, with its place in front of the message."""
        return UserError(f"{self}: {message}", self)


class UserError(ValueError):
    """A mistake that the user can mend.

    The message says what is wrong, where (file, row, key or line) and what to write instead. The command line
    prints it without a traceback and exits with code 2. Raise it before anything is loaded or written wherever
    that is possible.

    Args:
        message: the text.
        place: of the key that it is about, where it is about one; the text begins with it.
        about: a key whose place is not known here, and the names of what it is about inside of the key's value; the
            key is put in front of the message.
    """

    def __init__(self, message: str = "", place: Place | None = None, about: tuple[str, ...] = ()):
        super().__init__(f"{about[0]}: {message}" if about else message)
        self.place = place
        self.about = about

    @property
    def every(self) -> "tuple[UserError, ...]":
        """The single mistakes that it tells of."""
        return (self,)

    @property
    def said(self) -> str:
        """The message without the place, or the key, in front of it."""
        before = self.place or next(iter(self.about), None)
        return str(self) if before is None else str(self).removeprefix(f"{before}: ")

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it, by IPython's convention."""
        return [f"{type(self).__name__}: {self}"]


class Mistakes(UserError):
    """Several mistakes, told together.

    Args:
        errors: two or more, in the order in which they are told.
    """

    def __init__(self, errors: Sequence[UserError]):
        ValueError.__init__(self, errors)
        self.place, self.about = None, ()
        self._every = tuple(errors)

    @property
    def every(self) -> tuple[UserError, ...]:
        return self._every

    def __str__(self) -> str:
        files = {error.place.file for error in self.every if error.place is not None}
        alone = len(files) == 1 and all(error.place is not None for error in self.every)
        head = f"{len(self.every)} mistakes{f' in {files.pop()}' if alone else ''}:"
        return "\n  ".join([head, *("\n    ".join(str(error).splitlines()) for error in self.every)])


class Collector:
    """Gathers mistakes that do not depend on each other, to tell them in one answer."""

    def __init__(self) -> None:
        self._noted: dict[str, UserError] = {}

    @property
    def errors(self) -> list[UserError]:
        """What was noted, each text once.

        Those of a file by its lines, then keys that are not set, then the command line's, then what names no key.
        """
        found = list(self._noted.values())
        files = list(dict.fromkeys(error.place.file for error in found if error.place is not None))
        return sorted(found, key=lambda error: _order(error, files))

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a mistake ends the block alone: it is kept."""
        try:
            yield
        except UserError as error:
            self.note(error)

    def note(self, error: UserError) -> None:
        """Keeps a mistake."""
        for one in error.every:
            self._noted.setdefault(str(one), one)

    def settle(self) -> None:
        """Ends the gathering.

        Raises:
            UserError: the mistake that was noted; of several `Mistakes`.
        """
        errors = self.errors
        if errors:
            raise errors[0] if len(errors) == 1 else Mistakes(errors)


def _order(error: UserError, files: list[str]) -> tuple[float, ...]:
    place = error.place
    if place is None:
        return (len(files), 0.0, 0.0)
    line = float("inf") if place.line is None else place.line
    return (files.index(place.file), float(place.on_command_line), line)


def place_of_fault(error: BaseException) -> str:
    """Where a user's code raised, in brackets: its innermost line outside of installed packages, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    return next((f" ({frame.filename}, line {frame.lineno})" for frame in reversed(own or frames)), "")
