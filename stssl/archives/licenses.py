"""Name the licenses of public archives (SPDX), by the source that their stores name."""

DATA_LICENSES = {
    "BigEarthNet v1.0": "CDLA-Permissive-1.0",
    "BigEarthNet v2.0": "CDLA-Permissive-1.0",
    "EuroSAT RGB": "MIT",
    "EuroSAT multispectral": "MIT",
}
