"""Source formats by name."""

from collections.abc import Callable

from stssl.archives.base import Archive
from stssl.archives.bigearthnet import BigEarthNet1
from stssl.archives.bigearthnet2 import BigEarthNet2
from stssl.archives.eurosat import EuroSat, EuroSatMs
from stssl.archives.manifest import Manifest

ARCHIVES: dict[str, Callable[..., Archive]] = {
    "bigearthnet-v1": BigEarthNet1,
    "bigearthnet-v2": BigEarthNet2,
    "eurosat": EuroSat,
    "eurosat-ms": EuroSatMs,
    "manifest": Manifest,
}

__all__ = ["ARCHIVES", "Archive"]
