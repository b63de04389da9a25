"""The folder in which commands, recipes and Python of the documentation are run, and a Hub to push to."""

from tests.helpers.hub import hub  # noqa: F401
from tests.helpers.reader import reader, reader_files  # noqa: F401
