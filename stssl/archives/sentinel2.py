"""Assign each Sentinel-2 band to a stored array, and read a patch that has one file for each band."""

from pathlib import Path

import numpy as np

from stssl.archives.base import good_place
from stssl.archives.places import to_degrees
from stssl.archives.tiff import read_band
from stssl.base.arrays import AnyArray
from stssl.base.errors import ConfigError
from stssl.store.schema import BadPatchError, Patch, PixelArray, Values

RESOLUTION = {
    "b10": ("B04", "B03", "B02", "B08"),
    "b20": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "b60": ("B01", "B09"),
}
"""Bands of each stored array. Red, green and blue come first: to read them alone takes one contiguous read."""

GSD = {"b10": 10.0, "b20": 20.0, "b60": 60.0}
"""Pixel size of each stored array in meters."""
PATCH_SIDE = 1200.0
"""Width and height of a patch of BigEarthNet in meters."""
BAND_CHOICES = ("all", "rgb")
EUROPE = ((27.0, 72.0), (-32.0, 46.0))
"""Ranges of latitude and longitude in BigEarthNet and EuroSAT. Swapped coordinates lie outside."""


def sentinel_arrays(bands: str, side_m: float = PATCH_SIDE, nodata: int | None = None) -> tuple[PixelArray, ...]:
    """Return descriptions of the pixel arrays that a store has for Sentinel-2 patches, one for each pixel size.

    Args:
        bands: `all`, or `rgb` for one array of red, green and blue.
        side_m: Width and height of a patch in meters.
        nodata: Stored value that means "not measured"; None if no value means this.

    Raises:
        ConfigError: `bands` is neither `all` nor `rgb`.
    """
    if bands not in BAND_CHOICES:
        raise ConfigError(f"bands must be one of {', '.join(BAND_CHOICES)}, not '{bands}'")
    kept = RESOLUTION if bands == "all" else {"b10": RESOLUTION["b10"][:3]}
    sizes = {name: int(side_m / GSD[name]) for name in kept}
    return tuple(
        PixelArray(name, names, sizes[name], sizes[name], "uint16", GSD[name], nodata) for name, names in kept.items()
    )


def read_bands(patch: Patch, folder: Path, name: str, arrays: tuple[PixelArray, ...]) -> None:
    """Read the band files of a patch, `<folder>/<name>_<band>.tif`, and put their pixels into `patch`.

    If one band is bad, the patch gets no bands at all, since the store would hold zeros for the missing band.

    Args:
        patch: Patch to change. Errors of its bands are added to its list of problems.
        folder: Folder of the band files.
        name: Start of the files' names.
        arrays: Descriptions of the store's pixel arrays, with the bands to read.
    """
    blocks = {array.name: np.empty(array.shape, array.dtype) for array in arrays}
    bad: list[BadPatchError] = []
    for array in arrays:
        for place, band in enumerate(array.bands):
            try:
                blocks[array.name][place] = read_band(folder / f"{name}_{band}.tif", array.height)
            except BadPatchError as problem:
                bad.append(problem)
    missing = sum(one.code == "missing_band" for one in bad)
    if missing == sum(len(array.bands) for array in arrays):
        patch.complain(BadPatchError("no_pixels", f"no band of {name} is there"))
    # If one band is bad, give the patch no bands: a band of zeros beside real bands would look like a dark surface.
    elif bad:
        for one in bad:
            patch.complain(one)
    else:
        keep_pixels(patch, blocks, arrays)


def keep_pixels(patch: Patch, blocks: dict[str, AnyArray], arrays: tuple[PixelArray, ...]) -> None:
    """Put pixels into `patch`, and record which bands have pixels. Add a problem to its list if a band is all 0.

    Args:
        patch: Patch to change.
        blocks: Name of each pixel array, and its pixels [bands, H, W].
        arrays: Descriptions of these pixel arrays.
    """
    patch.arrays = blocks
    places = [(array, place) for array in arrays for place in range(len(array.bands))]
    filled = [bool(blocks[array.name][place].any()) for array, place in places]
    patch.valid_bands = sum(1 << bit for bit, there in enumerate(filled) if there)
    empty = [array.bands[place] for (array, place), there in zip(places, filled, strict=True) if not there]
    if empty:
        patch.complain(BadPatchError("nodata", f"nothing but 0 (no data) in {', '.join(empty)}"))


def grid_place(projection: str | int, upper_left: tuple[float, float], lower_right: tuple[float, float]) -> Values:
    """Return the place of a patch as a dict of store columns, from its corners in a projected grid.

    The columns are `lat` and `lon` of the center in degrees, and `ulx` and `uly` of the upper left corner in meters.

    Args:
        projection: EPSG code or WKT of the grid.
        upper_left: Easting and northing of the upper left corner in meters.
        lower_right: Easting and northing of the lower right corner in meters.

    Raises:
        ValueError: The corners are missing, swapped, or not in Europe.
    """
    (ulx, uly), (lrx, lry) = upper_left, lower_right
    if not (np.isfinite([ulx, uly, lrx, lry]).all() and lrx > ulx and uly > lry):
        raise ValueError("the corners do not span an area")
    lat, lon = (float(values[0]) for values in to_degrees(projection, (ulx + lrx) / 2, (uly + lry) / 2))
    (south, north), (west, east) = EUROPE
    if not (good_place(lat, lon) and south <= lat <= north and west <= lon <= east):
        raise ValueError(f"latitude {lat:.4g}, longitude {lon:.4g} is not in Europe (swapped?)")
    return {"lat": lat, "lon": lon, "ulx": ulx, "uly": uly}
