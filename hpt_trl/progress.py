"""Progress bars with the time left: one is visible at a time, whatever is printed stands above it.

Where stderr is no terminal there are plain lines instead, one every half a minute.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

# Seconds between two lines where there is no terminal.
EVERY = 30.0
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left"
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left"
_NEVER = 1e9


class Bar(tqdm):
    """A progress bar. One that begins while another goes on takes its place until it is closed.

    Args:
        total: Of what is counted.
        description: What goes on.
        unit: What is counted, in the plural.
        shown: False for a bar that only counts, as in all processes but the first.
        initial: What was done before.
        scaled: Numbers as 1.2k.
    """

    _open: "list[Bar]" = []

    def __init__(
        self, total: int, description: str, unit: str, *, shown: bool = True, initial: int = 0, scaled: bool = False
    ):
        self.is_plain = not sys.stderr.isatty()
        if shown:
            if (other := Bar.visible()) is not None:
                other.hide()
            Bar._open.append(self)
        super().__init__(
            total=total,
            desc=description,
            unit=unit,
            unit_scale=scaled,
            initial=initial,
            disable=not shown,
            file=_under(sys.stderr),
            leave=False,
            position=0,
            dynamic_ncols=True,
            delay=0,
            mininterval=EVERY if self.is_plain else 0.1,
            maxinterval=_NEVER if self.is_plain else 10,
            miniters=1 if self.is_plain else None,
            bar_format=_LINE if self.is_plain else _FORMAT,
        )

    @classmethod
    def visible(cls) -> "Bar | None":
        """The bar that is on the screen."""
        return cls._open[-1] if cls._open else None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, if it is the visible one."""
        if self.disable or Bar.visible() is not self:
            return False
        if not self.is_plain:
            return bool(super().display(msg, pos))
        if msg is None and self.n > self.initial:
            print(self, file=self.fp, flush=True)
        return False

    def hide(self) -> None:
        """Takes the bar from the screen; it is drawn again with its next step."""
        if not self.is_plain and not self.disable:
            self.clear()

    def left(self) -> str:
        """The time left for reading: `1:20`; `?` before the first step."""
        done, values = self.n - self.initial, self.format_dict
        return "?" if done <= 0 else self.format_interval(values["elapsed"] / done * ((self.total or 0) - self.n))

    def close(self) -> None:
        """Takes the bar away; the one that it stood for comes back."""
        if self.disable:
            return
        self.hide()
        super().close()
        # Bars are equal to tqdm where they stand in the same place.
        Bar._open[:] = [bar for bar in Bar._open if bar is not self]
        if (other := Bar.visible()) is not None:
            other.refresh()


class _Above:
    """A stream of the terminal on which the visible bar stands; what is written goes above the bar."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        bar = Bar.visible()
        if bar is None:
            self.flush_begun()
            return self.stream.write(text)
        # A line is written when it is whole: the bar stands below it.
        whole, _, self.begun = (self.begun + text).rpartition("\n")
        if whole or text.endswith("\n"):
            with tqdm.get_lock():
                bar.clear(nolock=True)
                self.stream.write(f"{whole}\n")
                self.stream.flush()
                bar.refresh(nolock=True)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def flush_begun(self) -> None:
        """Writes out what is no whole line yet."""
        if self.begun:
            self.stream.write(self.begun)
            self.begun = ""


@contextmanager
def lines_above_bars() -> Iterator[None]:
    """Inside, prints, warnings and logs leave the visible bar whole; bars that are left over are closed at the end."""
    streams, handlers = {name: getattr(sys, name) for name in ("stdout", "stderr")}, []
    wrapped = {}
    try:
        if sys.stderr.isatty():
            wrapped = {name: _Above(stream) for name, stream in streams.items() if stream.isatty()}
            for name, stream in wrapped.items():
                setattr(sys, name, stream)
                # They keep the stream that they began with.
                for handler in _handlers_on(streams[name]):
                    handlers.append((handler, streams[name]))
                    handler.setStream(stream)  # type: ignore[arg-type]
        yield
    finally:
        for bar in reversed(list(Bar._open)):
            bar.close()
        for handler, stream in handlers:
            handler.setStream(stream)
        for name, above in wrapped.items():
            above.flush_begun()
            setattr(sys, name, above.stream)


def _under(stream: Any) -> Any:
    return stream.stream if isinstance(stream, _Above) else stream


def _handlers_on(stream: Any) -> list["logging.StreamHandler[Any]"]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
