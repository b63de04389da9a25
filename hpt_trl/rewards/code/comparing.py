"""Whether what a program wrote is what it should have written."""


def same_output(given: str, expected: str) -> bool:
    """Compares outputs line by line, the words of each line without the space around and between them.

    Empty lines at the end count for nothing. This is done outside of the sandbox, where no program sees what is
    expected.
    """
    return _words(given) == _words(expected)


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]
