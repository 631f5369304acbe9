"""List the archive formats.

A new format is one file in this folder and one line here. The command line takes the format's options from its class,
and the conformance test tries it. This module imports nothing: `stssl --help` must not wait for rasterio.
"""

FORMATS = {
    "bigearthnet-v1": "bigearthnet:BigEarthNet1",
    "bigearthnet-v2": "bigearthnet2:BigEarthNet2",
    "eurosat": "eurosat:EuroSat",
    "eurosat-ms": "eurosat:EuroSatMs",
    "manifest": "manifest:Manifest",
    "scenes": "scenes:Scenes",
}
"""Name of each format, as in `stssl convert NAME`, and its module and class."""
