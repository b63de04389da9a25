"""Settings for the CPU engine, and the model that it is tested with. Run by `make test-vllm`, never by `make test`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pytest


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    """Folder of the tests' tiny Llama, wide enough for heads of 32, the least that the CPU engine takes; read only."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", hidden_size=128)
