"""Settings that must stand before torch and the Hub client are imported, and the model that the tests share."""

import gc
import os
import signal

# One thread each: the models are tiny, and `make test` runs one worker per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest

# What is imported stays: the collector need not go through it, neither while it comes nor whenever a trainer asks for a
# full collection, which would be half of the time of a tiny run.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


# Fixtures that several wings' tests share: `vlm_path`, `qwen_path`, `evaluation`, `searched`, and `recipe` of
# `stage_runs`, which a module may replace, `hub`, and `pictures_drawn_anew`.
pytest_plugins = [
    "tests.helpers.images",
    "tests.helpers.qwen_vl",
    "tests.helpers.stage_runs",
    "tests.helpers.evaluations",
    "tests.helpers.searching",
    "tests.helpers.hub",
    "tests.helpers.pictures",
]

# A shell's background jobs ignore Ctrl-C, and so would what the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch) -> None:
    """What is printed is compared as it is written, not as a narrow terminal would wrap it."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory) -> str:
    """Folder of a real two-layer Llama with tokenizer and chat template (see tests/helpers/tiny.py); read only."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def reference_model_path(tmp_path_factory) -> str:
    """The same with other weights, for what compares two models; read only."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "reference", seed=1)
