"""Register archive formats: a new format is one module and one line here."""

from stssl.archives.base import ArchiveFormat
from stssl.archives.bigearthnet import BigEarthNet1
from stssl.archives.bigearthnet2 import BigEarthNet2
from stssl.archives.eurosat import EuroSat, EuroSatMs
from stssl.archives.manifest import Manifest

ARCHIVES: dict[str, ArchiveFormat] = {
    "bigearthnet-v1": BigEarthNet1,
    "bigearthnet-v2": BigEarthNet2,
    "eurosat": EuroSat,
    "eurosat-ms": EuroSatMs,
    "manifest": Manifest,
}
"""Name of each format, as `stssl convert NAME` takes it, and the class of its archives."""
