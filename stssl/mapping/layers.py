"""Read regions of a scene from its files. Bands of one pixel size form a layer; a layer may be a mosaic of files."""

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window as FileWindow

from stssl.archives.band_numbers import BandNumbers
from stssl.archives.raster_files import explained_raster
from stssl.base.arrays import AnyArray, Ints
from stssl.mapping.rasters import SETTINGS, quiet

MOST_OPEN = 64
"""Largest number of files that a reader keeps open."""


@dataclass(frozen=True)
class Source:
    """Say which band of a layer (bands of one pixel size) is read from which band of a file, and how.

    Attributes:
        band: Position of the band in its layer.
        index: Number of the band in its file, from 1.
        masked: True if the file marks pixels that are not measured.
        numbers: How to convert the file's numbers to those that students expect.
    """

    band: int
    index: int
    masked: bool
    numbers: BandNumbers


@dataclass(frozen=True)
class Piece:
    """Describe one file of a layer: its place on the layer's grid of pixels, and the bands to read.

    Attributes:
        path: The file.
        driver: GDAL driver that opens it. No other driver is tried.
        row: Row of its upper edge in the layer.
        column: Column of its left edge in the layer.
        height: Height in pixels.
        width: Width in pixels.
        sources: Bands to read.
    """

    path: Path
    driver: str
    row: int
    column: int
    height: int
    width: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Layer:
    """Describe the bands of a scene that have one pixel size.

    Positions in a scene are counted in pixels of its finest layer, from that layer's upper left corner.

    Attributes:
        bands: Names of the bands.
        dtype: Type of the values, such as `uint16`.
        height: Height in pixels of the layer.
        width: Width in pixels of the layer.
        row: Position of the upper edge in the scene.
        column: Position of the left edge in the scene.
        rows: Height of a pixel of the layer in pixels of the scene.
        columns: Width of a pixel of the layer in pixels of the scene.
        pieces: Files of the layer. If two overlap, the first with a measured pixel counts.
    """

    bands: tuple[str, ...]
    dtype: str
    height: int
    width: int
    row: float
    column: float
    rows: float
    columns: float
    pieces: tuple[Piece, ...]

    def own_row(self, row: float) -> int:
        """Return the number of this layer's row that begins nearest to a row of the scene.

        The scene has the finest pixels.
        """
        return round((row - self.row) / self.rows)

    def own_column(self, column: float) -> int:
        """Return the number of this layer's column that begins nearest to a column of the scene.

        The scene has the finest pixels.
        """
        return round((column - self.column) / self.columns)


@dataclass(frozen=True)
class Region:
    """Hold the pixel values of a rectangle of a layer (bands of one pixel size).

    Attributes:
        values: [bands, height, width] values; 0 where nothing is measured.
        measured: [bands, height, width] True where the value is measured; None if all are.
    """

    values: AnyArray
    measured: NDArray[np.bool_] | None


def reflected(first: int, last: int, size: int) -> Ints:
    """Return for each of the positions first..last-1 the position inside 0..size-1 that it is reflected to.

    Positions inside stay unchanged. The mirror is the outer border of the edge pixel, so this pixel comes twice. Layers
    of all pixel sizes end at this border, so their reflections fit together.
    """
    places = np.arange(first, last, dtype=np.int64) % (2 * size)
    return np.where(places < size, places, 2 * size - 1 - places)


class LayerReader:
    """Read rectangles of layers from their files, and keep the files open.

    Use a reader in one thread only, and close it at the end.
    """

    def __init__(self) -> None:
        """Create a reader without open files."""
        self._open: OrderedDict[Path, tuple[DatasetReader, contextlib.ExitStack]] = OrderedDict()

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1][1].close()

    def read(self, layer: Layer, row: int, column: int, height: int, width: int) -> Region:
        """Read a rectangle of a layer, and return its values. Outside the layer, pixels are reflected at the edges.

        Args:
            layer: The layer.
            row: First row of the rectangle in the layer; may be negative.
            column: First column of the rectangle in the layer; may be negative.
            height: Number of rows.
            width: Number of columns.

        Raises:
            DataError: A file cannot be read.
        """
        rows, columns = reflected(row, row + height, layer.height), reflected(column, column + width, layer.width)
        top, left = int(rows.min()), int(columns.min())
        inner = self._inner(layer, top, left, int(rows.max()) + 1, int(columns.max()) + 1)
        if (row, column) == (top, left) and inner.values.shape[1:] == (height, width):
            return inner
        chosen = np.ix_(np.arange(len(layer.bands)), rows - top, columns - left)
        measured = None if inner.measured is None else inner.measured[chosen]
        return Region(inner.values[chosen], measured)

    def _inner(self, layer: Layer, top: int, left: int, bottom: int, right: int) -> Region:
        """Return the values of a rectangle that lies inside a layer, from all files that have a part of it.

        Args:
            layer: The layer.
            top: First row of the rectangle in the layer.
            left: First column of the rectangle.
            bottom: Row after its last row.
            right: Column after its last column.
        """
        whole = self._whole(layer, FileWindow(left, top, right - left, bottom - top))
        if whole is not None:
            return Region(whole, None)
        values = np.zeros((len(layer.bands), bottom - top, right - left), layer.dtype)
        measured = np.zeros(values.shape, np.bool_)
        for piece in layer.pieces:
            high, low = max(top, piece.row), min(bottom, piece.row + piece.height)
            first, last = max(left, piece.column), min(right, piece.column + piece.width)
            if high < low and first < last:
                place = (slice(high - top, low - top), slice(first - left, last - left))
                window = FileWindow(first - piece.column, high - piece.row, last - first, low - high)
                self._fill(piece, window, values[:, *place], measured[:, *place])
        return Region(values, None if measured.all() else measured)

    def _whole(self, layer: Layer, window: FileWindow) -> AnyArray | None:
        """Read a window of a layer from its only file, and return the values [bands, height, width] as they are stored.

        Return None if the layer has several files, if pixels may be not measured, if numbers must be converted, or if
        the file has the bands in another sequence.
        """
        piece = layer.pieces[0]
        plain = all(not one.masked and one.numbers.nodata is None and one.numbers.plain for one in piece.sources)
        if len(layer.pieces) > 1 or not plain or [one.band for one in piece.sources] != [*range(len(layer.bands))]:
            return None
        with explained_raster(piece.path), rasterio.Env(**SETTINGS):
            values: AnyArray = self._file(piece).read([one.index for one in piece.sources], window=window)
        return values

    def _fill(self, piece: Piece, window: FileWindow, values: AnyArray, measured: NDArray[np.bool_]) -> None:
        """Read a rectangle of a file, and write its measured pixels into the arrays `values` and `measured`.

        Leave pixels unchanged that an earlier file has measured.

        Args:
            piece: The file.
            window: Rectangle in the file.
            values: [bands, height, width] values of the rectangle; changed in place.
            measured: [bands, height, width] True where a file has measured the value; changed in place.
        """
        with explained_raster(piece.path), rasterio.Env(**SETTINGS):
            file = self._file(piece)
            found = file.read([source.index for source in piece.sources], window=window)
            for source, plane in zip(piece.sources, found, strict=True):
                seen = file.read_masks(source.index, window=window) > 0 if source.masked else None
                known = source.numbers.measured(plane)
                if known is not None:
                    seen = known if seen is None else seen & known
                fresh = ~measured[source.band]
                fresh &= True if seen is None else seen
                np.copyto(values[source.band], source.numbers.converted(plane), where=fresh, casting="same_kind")
                measured[source.band] |= fresh

    def _file(self, piece: Piece) -> DatasetReader:
        if piece.path in self._open:
            self._open.move_to_end(piece.path)
            return self._open[piece.path][0]
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1][1].close()
        stack = contextlib.ExitStack()
        with quiet():
            file = stack.enter_context(rasterio.open(piece.path, driver=piece.driver, sharing=False))
        self._open[piece.path] = (file, stack)
        return file
