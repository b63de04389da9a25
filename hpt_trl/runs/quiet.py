"""What users of a command cannot act on is not shown to them."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Settings of each process that runs a recipe, before it imports the libraries."""
    # Usage data goes to the Hub only where the user asks for it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Bars of libraries that are over at once are not shown; where there is no terminal, others are seldom drawn anew.
    delay, interval = ("1", "0.1") if sys.stderr.isatty() else ("10", "30")
    os.environ.setdefault("TQDM_DELAY", delay)
    os.environ.setdefault("TQDM_MININTERVAL", interval)
    # Warnings of torch's C++ threads, which Python's filters do not reach: DDP tells that it looked for parameters
    # without gradient, as Trainer has it do by default, and found none. Errors are still told.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # It warns of an optional CPU kernel whenever it is imported, also where nothing is quantized.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # tqdm draws plain bars in a notebook without ipywidgets.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # It is imported wherever it is installed, and says in each process that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def say(doing: str) -> None:
    """Says in the first process what takes its time now, beside what the command prints as its result."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{doing} ...", file=sys.stderr, flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what users of a command cannot act on; the libraries' own settings come back after."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logger = logging.getLogger("transformers.generation")
    level = logger.level
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        # The data loader's pinned memory on a machine without accelerator.
        warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
