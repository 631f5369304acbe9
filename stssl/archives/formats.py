"""List the archive formats by name.

A new format needs a class in a module of this folder, and one line here. The command line takes the format's options
from the class, and the conformance test tries the class. This module imports nothing, so that `stssl --help` need not
wait for rasterio.
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
