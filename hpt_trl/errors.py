"""The one exception that stands for a mistake of the user: it is printed as a message, never as a traceback."""

import os
import sysconfig
import traceback

# Libraries may stand between a fault and who made it, as wandb's `sys.exit` does.
_INSTALLED = (
    os.path.dirname(__file__),
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


class UserError(ValueError):
    """A mistake that the user can mend.

    The message says what is wrong, where (file, row, key or line) and what to write instead. The command line
    prints it without a traceback and exits with code 2. Raise it before anything is loaded or written wherever
    that is possible.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it, by IPython's convention."""
        return [f"{type(self).__name__}: {self}"]


def place_of_fault(error: BaseException) -> str:
    """Where a user's code raised, in brackets: its innermost line outside of installed packages, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    return next((f" ({frame.filename}, line {frame.lineno})" for frame in reversed(own or frames)), "")
