"""How the help of commands is laid out."""

import argparse


class HelpText(argparse.RawDescriptionHelpFormatter):
    """Text of one line is wrapped to the terminal's width; text of several, as examples are, is left as it stands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)
