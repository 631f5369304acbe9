"""List the licenses (SPDX) of public archives, by the name of the archive that a store records as its source."""

DATA_LICENSES = {
    "BigEarthNet v1.0": "CDLA-Permissive-1.0",
    "BigEarthNet v2.0": "CDLA-Permissive-1.0",
    "EuroSAT RGB": "MIT",
    "EuroSAT multispectral": "MIT",
}
