"""List the archive formats.

A new format is one file in this folder and one line here: the command line takes its options from the class, and the
conformance test tries it. Nothing is imported here, so that `stssl --help` need not wait for rasterio.
"""

FORMATS = {
    "bigearthnet-v1": "bigearthnet:BigEarthNet1",
    "bigearthnet-v2": "bigearthnet2:BigEarthNet2",
    "eurosat": "eurosat:EuroSat",
    "eurosat-ms": "eurosat:EuroSatMs",
    "manifest": "manifest:Manifest",
}
"""Name of each format, as `stssl convert NAME` takes it, and the module and class of its archives."""
