"""Write the image files of example archives (tiny archives for tests). All pixels of a band have one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from stssl.archives.places import crs_of, from_degrees
from stssl.archives.sentinel2 import GSD, PATCH_SIDE, RESOLUTION

EPSG = 32633
"""EPSG code of UTM zone 33 N. The places of all examples lie in this zone."""


@dataclass(frozen=True)
class ExampleGrid:
    """Describe the square on the ground that an example patch shows, in UTM zone 33 N.

    Attributes:
        ulx: Easting of the square's upper left corner in meters.
        uly: Northing of the square's upper left corner in meters.
        side: Width and height of the square in meters.
    """

    ulx: float
    uly: float
    side: float


def grid_around(lat: float, lon: float, side: float) -> ExampleGrid:
    """Return the square on the ground around a place, in UTM zone 33 N. Its center is rounded to whole meters.

    Args:
        lat: Latitude of the center in degrees.
        lon: Longitude of the center in degrees.
        side: Width and height of the square in meters.
    """
    x, y = (round(float(value[0])) for value in from_degrees(EPSG, lat, lon))
    return ExampleGrid(x - side / 2, y + side / 2, side)


def write_bands(path: Path, values: Sequence[int], size: int, grid: ExampleGrid) -> None:
    """Write a GeoTIFF of 16-bit unsigned bands. All pixels of a band have one value.

    Args:
        path: File to write. If its folder is missing, it is made.
        values: One value for each band.
        size: Width and height of the image in pixels.
        grid: Square on the ground that the image shows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    step = grid.side / size
    options = {"driver": "GTiff", "width": size, "height": size, "count": len(values), "dtype": "uint16"}
    transform = Affine(step, 0, grid.ulx, 0, -step, grid.uly)
    with rasterio.MemoryFile() as memory:
        with memory.open(crs=crs_of(EPSG), transform=transform, **options) as file:
            for number, value in enumerate(values, 1):
                file.write(np.full((size, size), value, np.uint16), number)
        path.write_bytes(memory.read())


def write_patch_folder(folder: Path, values: Mapping[str, int], place: tuple[float, float]) -> ExampleGrid:
    """Write an example patch as BigEarthNet has it: one file `<folder>/<folder's name>_<band>.tif` for each band.

    Args:
        folder: Folder of the patch to write.
        values: Name of each of the twelve bands, and the one value of all its pixels.
        place: Latitude and longitude of the patch's center in degrees.

    Returns:
        Square on the ground that the patch shows, in UTM zone 33 N.
    """
    grid = grid_around(*place, side=PATCH_SIDE)
    for array, bands in RESOLUTION.items():
        for band in bands:
            path = folder / f"{folder.name}_{band}.tif"
            write_bands(path, [values[band]], int(PATCH_SIDE / GSD[array]), grid)
    return grid
