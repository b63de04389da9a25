"""The one exception that stands for a mistake of the user: it is printed as a message, never as a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend.

    The message says what is wrong, where (file, row, key or line) and what to write instead. The command line
    prints it without a traceback and exits with code 2. Raise it before anything is loaded or written wherever
    that is possible.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it, by IPython's convention."""
        return [f"{type(self).__name__}: {self}"]
