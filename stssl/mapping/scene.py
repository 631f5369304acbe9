"""Describe a scene: its grid of pixels on the ground, and its layers (bands of one pixel size)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import hypot
from pathlib import Path

import numpy as np
from affine import Affine

from stssl.archives.grids import degree_meters
from stssl.archives.places import to_degrees
from stssl.base.errors import ConfigError, DataError
from stssl.mapping.layers import Layer, Piece, Source
from stssl.mapping.needs import SceneNeeds
from stssl.mapping.rasters import Raster

SIZE_TOLERANCE = 0.02
"""Largest relative difference between a scene's pixel size and the student's."""
ALIGNED = 0.1
"""Largest shift between the grids of two files, in pixels."""
LEAST_WINDOW, MOST_WINDOW = 4, 4096
"""Fewest and most pixels of a window along each axis, in pixels of the scene."""


@dataclass(frozen=True)
class Chosen:
    """Describe a file of a scene, and the bands to read from it.

    Attributes:
        raster: Description of the file.
        bands: How to read each band, by the band's name. `Source.band` is still 0; `arrange` sets it.
    """

    raster: Raster
    bands: dict[str, Source]


@dataclass(frozen=True)
class Scene:
    """Describe a scene that is ready to be read.

    Attributes:
        name: Name of the scene for metadata and messages.
        crs: Coordinate system as WKT.
        transform: Affine transform from pixels of the finest layer to coordinates.
        height: Height in pixels of the finest layer.
        width: Width in pixels of the finest layer.
        layers: Layers (bands of one pixel size), the finest first.
        window: Height and width of a window in pixels of the finest layer.
        date: Time of acquisition, UTC; None if unknown.
        files: All files that are read.
    """

    name: str
    crs: str
    transform: Affine
    height: int
    width: int
    layers: tuple[Layer, ...]
    window: tuple[int, int]
    date: datetime | None
    files: tuple[Path, ...]

    @property
    def bands(self) -> tuple[str, ...]:
        """Return the names of all bands, layer by layer, the finest layer first."""
        return tuple(band for layer in self.layers for band in layer.bands)


def arrange(
    name: str, chosen: Sequence[Chosen], needs: SceneNeeds, *, resample: bool, date: datetime | None = None
) -> Scene:
    """Put the files of a scene on a common grid, check that they fit the students, and return the scene.

    Args:
        name: Name of the scene.
        chosen: Files and their bands.
        needs: Requirements of the students.
        resample: True to accept another pixel size: windows then have the student's size on the ground.
        date: Time of acquisition, UTC; None if unknown.

    Raises:
        ConfigError: The pixel size differs from the student's although `resample` is False, or it differs so much that
            a window would have too few or too many pixels.
        DataError: The files do not fit together.
    """
    _same_projection([one.raster for one in chosen])
    groups = _by_pixel_size(chosen)
    grids = [_grid(group) for group in groups]
    finest = grids[0]
    layers = tuple(_layer(group, grid, finest, needs) for group, grid in zip(groups, grids, strict=True))
    _aligned(layers, finest)
    _once(layers)
    crs = chosen[0].raster.crs
    meters = pixel_meters(crs, finest.transform, finest.height, finest.width)
    sizes = {band: layer.columns * meters[1] for layer in layers for band in layer.bands}
    scene = Scene(
        name=name,
        crs=crs,
        transform=finest.transform,
        height=finest.height,
        width=finest.width,
        layers=layers,
        window=(needs.window, needs.window),
        date=date,
        files=tuple(dict.fromkeys(one.raster.path for one in chosen)),
    )
    if _fits(meters, sizes, needs):
        return scene
    if not resample:
        raise ConfigError(_other_size(meters, sizes, needs))
    window = (round(needs.ground / meters[0]), round(needs.ground / meters[1]))
    if not LEAST_WINDOW <= min(window) <= max(window) <= MOST_WINDOW:
        raise ConfigError(
            f"{name}: a window of the student ({needs.ground:g} m) has {window[0]} x {window[1]} pixels here, and "
            f"a map needs {LEAST_WINDOW} to {MOST_WINDOW}. Give a scene whose pixels are nearer to {needs.pixel:g} m."
        )
    return replace(scene, window=window)


def _same_projection(rasters: Sequence[Raster]) -> None:
    first = rasters[0]
    for one in rasters[1:]:
        if one.crs != first.crs:
            raise DataError(
                f"{one.path} has another coordinate system than {first.path}. Warp them to one with gdalwarp -t_srs."
            )


def _by_pixel_size(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """Group the files of a scene by their pixel size. Return the groups, the one with the smallest pixels first."""
    groups: list[list[Chosen]] = []
    for one in sorted(chosen, key=lambda own: own.raster.transform.a):
        size = one.raster.transform
        for group in groups:
            other = group[0].raster.transform
            if abs(size.a / other.a - 1) < 1e-6 and abs(size.e / other.e - 1) < 1e-6:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


@dataclass(frozen=True)
class _Grid:
    """Describe a layer's grid of pixels: affine transform to coordinates, height and width in pixels."""

    transform: Affine
    height: int
    width: int


def _grid(group: Sequence[Chosen]) -> _Grid:
    """Return the smallest grid that contains all files of a group. All these files have the same pixel size."""
    first = group[0].raster.transform
    rasters = [one.raster for one in group]
    left, top = min(one.transform.c for one in rasters), max(one.transform.f for one in rasters)
    right = max(one.transform.c + one.width * one.transform.a for one in rasters)
    bottom = min(one.transform.f + one.height * one.transform.e for one in rasters)
    transform = Affine(first.a, 0, left, 0, first.e, top)
    return _Grid(transform, round((bottom - top) / first.e), round((right - left) / first.a))


def _layer(group: Sequence[Chosen], grid: _Grid, finest: _Grid, needs: SceneNeeds) -> Layer:
    """Return the layer that a group of files with one pixel size forms: its bands, and its place in the scene.

    Args:
        group: Files with one pixel size.
        grid: Grid of the group.
        finest: Grid of the group with the smallest pixels, which is the scene's grid.
        needs: Requirements of the students, which say the type of the stored values.

    Raises:
        DataError: The pixels of two files are shifted against each other.
    """
    bands = tuple(dict.fromkeys(band for one in group for band in one.bands))
    pieces = []
    for one in group:
        own = one.raster.transform
        column, row = (own.c - grid.transform.c) / own.a, (own.f - grid.transform.f) / own.e
        if max(abs(column - round(column)), abs(row - round(row))) > ALIGNED:
            raise DataError(
                f"{one.raster.path} and {group[0].raster.path} have pixels that are shifted against each other. Warp "
                "them to one grid: gdalwarp -tap -tr SIZE SIZE."
            )
        sources = tuple(replace(source, band=bands.index(band)) for band, source in one.bands.items())
        raster = one.raster
        pieces.append(
            Piece(raster.path, raster.driver, round(row), round(column), raster.height, raster.width, sources)
        )
    return Layer(
        bands=bands,
        dtype=needs.dtype,
        height=grid.height,
        width=grid.width,
        row=(grid.transform.f - finest.transform.f) / finest.transform.e,
        column=(grid.transform.c - finest.transform.c) / finest.transform.a,
        rows=grid.transform.e / finest.transform.e,
        columns=grid.transform.a / finest.transform.a,
        pieces=tuple(pieces),
    )


def _aligned(layers: Sequence[Layer], finest: _Grid) -> None:
    """Check that all layers of a scene cover the area of the finest layer.

    Args:
        layers: Layers (bands of one pixel size) of the scene.
        finest: Grid of the finest layer.

    Raises:
        DataError: A layer begins elsewhere than the finest layer, or ends before it, by more than one of its pixels.
    """
    for layer in layers:
        bottom, right = layer.row + layer.height * layer.rows, layer.column + layer.width * layer.columns
        off = (layer.row, layer.column, bottom - finest.height, right - finest.width)
        if abs(off[0]) > layer.rows or abs(off[1]) > layer.columns or off[2] < -layer.rows or off[3] < -layer.columns:
            raise DataError(
                f"the bands {', '.join(layer.bands)} do not cover the same area as {', '.join(layers[0].bands)}. Cut "
                "the files to one area (gdalwarp -te)."
            )


def _once(layers: Sequence[Layer]) -> None:
    """Raise a DataError if a scene has files of two pixel sizes for the same band."""
    names = [band for layer in layers for band in layer.bands]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{', '.join(twice)}: there are files of two pixel sizes. Leave the coarser files out.")


def pixel_meters(crs: str, transform: Affine, height: int, width: int) -> tuple[float, float]:
    """Return the height and width on the ground, in meters, of a pixel in the middle of a scene.

    Args:
        crs: Coordinate system as WKT.
        transform: Affine transform from pixels to coordinates.
        height: Height of the scene in pixels.
        width: Width of the scene in pixels.

    Raises:
        DataError: The middle of the scene has no place on the Earth.
    """
    steps = max(1.0, min(height, width) / 100)
    offsets = [(0.0, 0.0), (0.0, steps), (steps, 0.0)]
    places = [transform @ (width / 2 + column, height / 2 + row) for row, column in offsets]
    try:
        lat, lon = to_degrees(crs, [x for x, _ in places], [y for _, y in places])
    except ValueError as error:
        raise DataError(f"the scene cannot be placed on the Earth: {error}") from None
    if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
        raise DataError("the scene cannot be placed on the Earth: its coordinates lie outside its coordinate system.")
    north, east = degree_meters(float(lat[0]))

    def distance(number: int) -> float:
        across = (float(lon[number] - lon[0]) + 180) % 360 - 180
        return hypot(float(lat[number] - lat[0]) * north, across * east) / steps

    return distance(2), distance(1)


def _fits(meters: tuple[float, float], sizes: dict[str, float], needs: SceneNeeds) -> bool:
    """Return True if a scene has the student's pixel size, and no band is coarser than the student's band.

    Args:
        meters: Height and width of the scene's finest pixels on the ground, in meters.
        sizes: Pixel size of each band in meters, by the band's name.
        needs: Requirements of the students.
    """
    if any(abs(size / needs.pixel - 1) > SIZE_TOLERANCE for size in meters):
        return False
    return all(size <= (needs.bands[band].meters or needs.pixel) * (1 + SIZE_TOLERANCE) for band, size in sizes.items())


def _other_size(meters: tuple[float, float], sizes: dict[str, float], needs: SceneNeeds) -> str:
    """Return the error message about a wrong pixel size: which size differs, and what to do.

    Args:
        meters: Height and width of the scene's finest pixels on the ground, in meters.
        sizes: Pixel size of each band in meters, by the band's name.
        needs: Requirements of the students.
    """
    if all(abs(size / needs.pixel - 1) <= SIZE_TOLERANCE for size in meters):
        coarse = [
            f"{band} ({size:.3g} m)"
            for band, size in sizes.items()
            if size > (needs.bands[band].meters or needs.pixel) * (1 + SIZE_TOLERANCE)
        ]
        what = f"the bands {', '.join(coarse)} have larger pixels than the student was trained on"
    else:
        what = (
            f"the scene has pixels of {meters[1]:.3g} x {meters[0]:.3g} m on the ground, and the student was trained "
            f"on {needs.pixel:g} m"
        )
    warp = f"gdalwarp -tr {needs.pixel:g} {needs.pixel:g}"
    return f"{what}. Give --resample to resize each window, or warp the scene ({warp})."
