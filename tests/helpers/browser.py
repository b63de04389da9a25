"""A real browser without a window: what a page looks like, as pixels."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser() -> str:
    """Returns the browser's path; without one the test is skipped, but where CI is set it fails."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        missing = f"no browser here; one of {', '.join(_NAMES)} is needed, as by: apt-get install chromium"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def seen(page: Path, picture: Path, *, width: int = 1000, height: int = 1600, dark: bool = False) -> np.ndarray:
    """Opens a page and returns its pixels, (height, width, 3) from 0 to 255; the picture stays."""
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={picture.parent / 'profile'}", f"--window-size={width},{height}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += [f"--screenshot={picture}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert picture.exists(), done.stderr[-2000:]
    return np.rint(imread(picture)[..., :3] * 255).astype(int)


def near(pixels: np.ndarray, color: tuple[int, int, int], reach: int = 12) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(pixels - np.array(color)).max(-1) <= reach).sum())
