"""Source formats by name."""

from collections.abc import Callable

from stssl.archives.base import Archive
from stssl.archives.eurosat import EuroSat

ARCHIVES: dict[str, Callable[..., Archive]] = {"eurosat": EuroSat}

__all__ = ["ARCHIVES", "Archive"]
