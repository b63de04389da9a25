"""How the help of commands is laid out, and words that are paths."""

import argparse

from hpt_trl.files import path_fault


def path_word(text: str) -> str:
    """Takes a word as a path; for `add_argument(type=...)`.

    Raises:
        argparse.ArgumentTypeError: it is empty, a pipe, leads in a circle or to nothing, too long, or may not be read.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    if fault := path_fault(text):
        raise argparse.ArgumentTypeError(f"{text[:200]!r} {fault}")
    return text


class HelpText(argparse.RawDescriptionHelpFormatter):
    """Text of one line is wrapped to the terminal's width; text of several, as examples are, is left as it stands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)
