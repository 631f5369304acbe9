"""Real data for tests that want it: the folder named by STSSL_REAL_DATA."""

import os
from pathlib import Path

import pytest


def real_data(part: str) -> Path:
    """A part of the real data; skips the test where there is none."""
    folder = os.environ.get("STSSL_REAL_DATA")
    if not folder or not (Path(folder) / part).exists():
        pytest.skip(f"STSSL_REAL_DATA names no folder with {part}")
    return Path(folder) / part
