"""Find real data for tests that need it, in the folder that STSSL_REAL_DATA names."""

import os
from pathlib import Path

import pytest


def real_data(part: str) -> Path:
    """Return the folder with one part of the real data. Skip the test if it does not exist."""
    folder = os.environ.get("STSSL_REAL_DATA")
    if not folder or not (Path(folder) / part).exists():
        pytest.skip(f"STSSL_REAL_DATA names no folder with {part}")
    return Path(folder) / part
