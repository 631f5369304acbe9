"""Write a synthetic archive in BigEarthNet v1.0's real layout: patches of 12 GeoTIFFs and one JSON file, and lists.

rasterio writes only one TIFF for each image size, projection and pixel size. All other files are copies of these TIFFs
with other pixels and another corner, since rasterio would need milliseconds for each file.
"""

import json
import struct
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from stssl.archives.base import OnProgress
from stssl.archives.bigearthnet import CLOUD, SNOW
from stssl.archives.locations import from_table
from stssl.archives.nomenclature import LABELS_43
from stssl.archives.places import crs_of
from stssl.archives.scenery import Painter, Subject, SyntheticStream
from stssl.archives.sentinel2 import GSD, RESOLUTION
from stssl.archives.world import CELL, COUNTRIES, World, generate
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import cannot_write

FOLDER, RECORD = "BigEarthNet-v1.0", "synthetic.json"
LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
VERSION = 1
MIDSUMMER, MIDDLE = 182, 50.0
"""Day of the year and latitude by which all patches of a placeless or misleading archive are painted."""


def synthesize_archive(
    out: str | Path,
    patches: int = 2000,
    seed: int = 0,
    *,
    locations: str | Path | None = None,
    confounded: bool = True,
    placeless: bool = False,
    misleading: str | None = None,
    progress: OnProgress | None = None,
) -> Path:
    """Write a synthetic (made-up) archive. If the folder has a complete one from the same arguments, change nothing.

    Args:
        out: Folder to write. It gets `BigEarthNet-v1.0/` with the patches, the lists train.csv, val.csv and test.csv, a
            list of patches with snow, a list of patches with clouds, and countries.csv. The three lists of the split
            divide whole places at random.
        patches: Number of patches.
        seed: Seed of all random choices. The same seed gives the same bytes.
        locations: Table of real places, dates and classes to choose from (see `locations.from_table`). If it is None,
            they are made up.
        confounded: True to take the images of each made-up country mostly in a season of its own.
        placeless: True to choose classes by chance alone, and to let pixels depend on nothing but classes and chance.
            Place and date then tell nothing about classes.
        misleading: Country in which dates tell about classes the opposite of what they tell in all other countries.
            Pixels then depend on nothing but classes and chance, so images do not show the date. Dates do not depend on
            the country, whatever `confounded` says. None lets dates tell nothing by themselves.
        progress: Called with the number of written patches and of all patches.

    Returns:
        Path of the folder `out`.

    Raises:
        ConfigError: `patches` is below 1; `misleading` is not one of the made-up countries; or `placeless`,
            `misleading` and a table of places are given together.
        DataError: `out` holds other files or cannot be written, or the table is wrong.
    """
    folder = Path(out)
    record = _record_of(patches, seed, confounded, locations=locations, placeless=placeless, misleading=misleading)
    if _is_there(folder, record):
        return folder
    rule = (confounded, placeless, misleading)
    world = from_table(Path(locations), patches, seed) if locations else generate(patches, seed, *rule)
    names = patch_names(world)
    lat, _ = world.degrees()
    painter = Painter(seed)
    try:
        # Write the record first: the next call sees that an interrupted archive is not complete, and writes it again.
        (folder / RECORD).write_text(json.dumps(record | {"complete": False}))
        for row, name in enumerate(names):
            bands = painter.paint(synthetic_subject(world, row, float(lat[row]), seed, placeless or bool(misleading)))
            _write_patch(folder / FOLDER / name, world, row, bands)
            if progress and (row % 100 == 99 or row == patches - 1):
                progress(row + 1, patches)
        _write_lists(folder, world, names, seed)
        (folder / RECORD).write_text(json.dumps(record | {"complete": True}))
    except OSError as error:
        raise DataError(cannot_write(error.filename or folder / FOLDER, error)) from None
    return folder


def _record_of(
    patches: int,
    seed: int,
    confounded: bool,
    *,
    locations: str | Path | None,
    placeless: bool,
    misleading: str | None,
) -> JsonObject:
    """Check the arguments of a synthetic archive, and return them as its record file has them.

    Raises:
        ConfigError: `patches` is below 1, several of the last three arguments are given, or there is no country of the
            name `misleading`.
    """
    if patches < 1:
        raise ConfigError(f"patches must be 1 or more, not {patches}")
    if placeless and locations:
        raise ConfigError(f"placeless draws classes by chance, and {locations} gives them: leave out one of the two")
    if misleading and (placeless or locations):
        other = f"{locations} gives them" if locations else "placeless draws them by chance"
        raise ConfigError(f"misleading draws classes by place and date, and {other}: leave out one of the two")
    if misleading is not None and misleading not in COUNTRIES:
        raise ConfigError(f"misleading: there is no country '{misleading}'. There are: {', '.join(COUNTRIES)}.")
    record: JsonObject = {"version": VERSION, "patches": patches, "seed": seed, "confounded": confounded}
    record["locations"] = Path(locations).name if locations else None
    # Write these keys only if they are set: records of earlier versions lack them, and must still be equal.
    return record | {key: value for key, value in (("placeless", placeless), ("misleading", misleading)) if value}


def _is_there(folder: Path, record: JsonObject) -> bool:
    """Return True if a folder has a complete archive from the arguments in `record`. Make the folder if it is missing.

    Raises:
        DataError: The folder has other files or an archive of other arguments, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}. Choose another.") from None
    if not (folder / RECORD).exists():
        if any(folder.iterdir()):
            raise DataError(f"{folder} is not empty and not a synthetic archive. Choose another folder.")
        return False
    try:
        found = dict(json.loads((folder / RECORD).read_text()))
    except ValueError:
        found = {}
    complete = found.pop("complete", False)
    if found != record:
        raise DataError(f"{folder} holds another synthetic archive ({found}). Choose another folder.")
    return bool(complete)


def patch_names(world: World) -> list[str]:
    """Return names for patches like those of BigEarthNet, from satellite, time, and column and row in a 100 km tile."""
    columns = (world.ulx % 100_000 // CELL).astype(int)
    rows = ((-world.uly) % 100_000 // CELL).astype(int)
    when = world.when.astype(object)
    names: dict[str, None] = {}
    for second, column, row in zip(when, columns, rows, strict=True):
        satellite, taken = "AB"[second.timetuple().tm_yday // 5 % 2], row
        # Places in two tiles may have the same column and row. A tile's rows end at 83, so a higher number gives a name
        # that no real row has.
        while (name := f"S2{satellite}_MSIL2A_{second:%Y%m%dT%H%M%S}_{column}_{taken}") in names:
            taken += 84
        names[name] = None
    return list(names)


def synthetic_subject(world: World, row: int, lat: float, seed: int, classes_only: bool) -> Subject:
    """Return what one patch shows: its ground, season and weather.

    Args:
        world: Places, dates and classes.
        row: Number of the patch.
        lat: Latitude of the patch in degrees.
        seed: Seed of the archive.
        classes_only: True to let images show nothing of place and date, as in placeless and misleading archives. All
            patches then get the same latitude and day, and the map of a patch's classes depends on the patch's number,
            not on its place.
    """
    when: datetime = world.when[row].astype(object)
    day, lat = (MIDSUMMER, MIDDLE) if classes_only else (when.timetuple().tm_yday, lat)
    return Subject(
        np.flatnonzero(world.labels[row]),
        day,
        lat,
        bool(world.snow[row]),
        bool(world.cloud[row]),
        place=(seed, SyntheticStream.PLACE, row if classes_only else int(world.place[row])),
        visit=(seed, SyntheticStream.VISIT, row),
    )


def _write_patch(folder: Path, world: World, row: int, bands: Mapping[str, NDArray[np.uint16]]) -> None:
    """Write the band files and the JSON file of one patch.

    Args:
        folder: Folder of the patch.
        world: Places, dates and classes of all patches.
        row: Number of the patch in `world`.
        bands: Pixels [bands, H, W] by name of the array, such as `b10`.
    """
    when: datetime = world.when[row].astype(object)
    labels = np.flatnonzero(world.labels[row])
    folder.mkdir(parents=True, exist_ok=True)
    epsg, ulx, uly = int(world.epsg[row]), float(world.ulx[row]), float(world.uly[row])
    for array, names in RESOLUTION.items():
        for band, pixels in zip(names, bands[array], strict=True):
            (folder / f"{folder.name}_{band}.tif").write_bytes(tiff(pixels, epsg, ulx, uly, GSD[array]))
    corners = {"ulx": int(ulx), "uly": int(uly), "lrx": int(ulx + CELL), "lry": int(uly - CELL)}
    about = {
        "labels": [LABELS_43[label] for label in labels],
        "coordinates": corners,
        "projection": _wkt(epsg),
        "tile_source": f"{folder.name.rsplit('_', 2)[0].replace('L2A', 'L1C')}_N0205_R022_T{epsg % 100:02d}UUP.SAFE",
        "acquisition_date": f"{when:%Y-%m-%d %H:%M:%S}",
    }
    (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(about))


@lru_cache(maxsize=64)
def _wkt(epsg: int) -> str:
    """Return the definition of a projection as WKT text, given its EPSG code."""
    return str(crs_of(epsg).to_wkt())


_CORNER = (123456.0, 7654321.0)


class _Template(NamedTuple):
    """Hold the bytes of a TIFF to copy, and the positions of its corner's coordinates and first pixel in them."""

    data: bytes
    corner: int
    start: int


@lru_cache(maxsize=256)
def _template(size: int, epsg: int, gsd: float) -> _Template:
    """Encode a TIFF with rasterio to copy it for many patches. Find the bytes of its corner and of its pixels.

    Args:
        size: Width and height in pixels.
        epsg: EPSG code of the projection.
        gsd: Pixel size in meters.
    """
    marked = np.arange(1, size * size + 1, dtype=np.uint16).reshape(size, size)
    with rasterio.MemoryFile() as memory:
        transform = Affine(gsd, 0, _CORNER[0], 0, -gsd, _CORNER[1])
        options = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint16"}
        with memory.open(crs=crs_of(epsg), transform=transform, **options) as file:
            file.write(marked, 1)
        data = bytes(memory.read())
    return _Template(data, data.index(struct.pack("<2d", *_CORNER)), data.index(marked.astype("<u2").tobytes()))


def tiff(pixels: NDArray[np.uint16], epsg: int, ulx: float, uly: float, gsd: float) -> bytes:
    """Return the bytes of a GeoTIFF of one band in uncompressed strips, like the files of BigEarthNet.

    Args:
        pixels: [H, W] values.
        epsg: EPSG code of the projection.
        ulx: Easting of the upper left corner in meters.
        uly: Northing of the upper left corner in meters.
        gsd: Pixel size in meters.
    """
    data, corner, start = _template(len(pixels), epsg, gsd)
    body = pixels.astype("<u2").tobytes()
    head = bytearray(data[:start])
    struct.pack_into("<2d", head, corner, ulx, uly)
    return bytes(head) + body + data[start + len(body) :]


def _write_lists(folder: Path, world: World, names: list[str], seed: int) -> None:
    """Write lists of a random split, lists of patches with snow and with clouds, and the table of countries."""
    parts = world.split(seed)
    for part, file in LISTS.items():
        _write_list(folder / file, [name for name, own in zip(names, parts, strict=True) if own == part])
    for stem, flags in ((SNOW, world.snow), (CLOUD, world.cloud)):
        _write_list(folder / f"{stem}.csv", [name for name, flag in zip(names, flags, strict=True) if flag])
    rows = [f"{name},{country}" for name, country in zip(names, world.country, strict=True)]
    _write_list(folder / "countries.csv", ["patch_id,country", *rows])


def _write_list(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
