"""Source formats by name."""

from collections.abc import Callable

from stssl.archives.base import Archive
from stssl.archives.bigearthnet import BigEarthNet1
from stssl.archives.eurosat import EuroSat

ARCHIVES: dict[str, Callable[..., Archive]] = {
    "bigearthnet-v1": BigEarthNet1,
    "eurosat": EuroSat,
}

__all__ = ["ARCHIVES", "Archive"]
