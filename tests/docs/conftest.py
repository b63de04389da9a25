"""The folder in which commands, recipes and Python of the documentation are run."""

from tests.helpers.reader import reader, reader_files  # noqa: F401
