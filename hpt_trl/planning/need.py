"""One thing that a recipe needs of a machine."""

from typing import NamedTuple

from hpt_trl.recipes.packages import installed

# Seconds that a service has to answer: the Hub, or a vLLM server.
TIMEOUT = 3.0

GATED = "gated: accept its conditions"


class Need(NamedTuple):
    """One thing that a recipe needs.

    Attributes:
        what: it, as messages name it.
        met: whether it is here.
        said: how it is met, or what is missing.
        remedy: what helps; empty where it is met.
        package: the package that is missing, where it is one.
        is_read: whether it is a model, rows or an index, which are read before a run.
    """

    what: str
    met: bool
    said: str
    remedy: str = ""
    package: str = ""
    is_read: bool = False

    @property
    def can_be_had(self) -> bool:
        """Whether something is told that helps: a package, a command, or the network."""
        return self.met or bool(self.remedy or self.package) or GATED in self.said


def package_need(what: str, *names: str) -> Need:
    """Returns the need of a package, which may be there under any of several names."""
    found = installed(*names)
    if found is not None:
        return Need(what, True, f"{names[0]} {found}")
    return Need(what, False, f"{names[0]} is not installed", package=names[0])
