"""Write a map as a Cloud Optimized GeoTIFF (COG), and check that the disk took all of it."""

import contextlib
import errno
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window as FileWindow

from stssl.archives.raster_files import READ_ERRORS
from stssl.base.arrays import AnyArray
from stssl.base.errors import RunError, first_line
from stssl.base.whole_files import cannot_write, free_room, put_whole
from stssl.mapping.map_bands import MapBands
from stssl.mapping.rasters import quiet

TILE = 512
"""Width and height of the tiles of a map."""
LEAST_ROOM = 1 << 20
"""If fewer bytes are free after an error of writing, the disk counts as full."""
MAP_REQUEST = "STSSL_REQUEST"
"""Name of the metadata entry with the hash of what was asked for: models, scene and options."""
_EXTRA_SAMPLES, _SHORT = 338, 3


class MapFile:
    """Write the pixels of a map into a temporary GeoTIFF, then convert it to a COG."""

    def __init__(self, folder: Path, out: Path, bands: MapBands) -> None:
        """Choose the paths of the temporary files. Write nothing yet.

        Args:
            folder: Folder of the temporary files, on the same disk as the map.
            out: Path of the map.
            bands: Description of the map's bands.
        """
        self.plain, self.finished, self.out, self.bands = folder / "plain.tif", folder / "cog.tif", out, bands
        self._digests: dict[tuple[int, int], bytes] = {}

    @contextlib.contextmanager
    def writing(
        self, crs: str, transform: Affine, shape: tuple[int, int], tags: Mapping[str, str]
    ) -> Iterator[DatasetWriter]:
        """Return a context in which the temporary GeoTIFF is open for writing.

        Args:
            crs: Coordinate system as WKT.
            transform: Affine transform from pixels to coordinates.
            shape: Height and width in pixels.
            tags: Metadata to store in the file: text by name.

        Raises:
            RunError: The file cannot be written.
        """
        bands = self.bands
        self._require_room(LEAST_ROOM // 16)
        settings: dict[str, object] = {"photometric": "palette" if bands.colors else "minisblack"}
        settings |= {"height": shape[0], "width": shape[1], "count": len(bands.names), "dtype": bands.dtype}
        settings |= {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "zlevel": 1}
        settings |= {"crs": crs, "transform": transform, "nodata": bands.nodata, "bigtiff": "if_safer", "alpha": "no"}
        with self._explained(), quiet(), rasterio.open(self.plain, "w", driver="GTiff", **settings) as file:
            for index, name in enumerate(bands.names, 1):
                file.set_band_description(index, name)
            file.scales = bands.scales
            if bands.colors:
                file.write_colormap(1, {number: (*color, 255) for number, color in enumerate(bands.colors)})
            file.update_tags(**tags)
            try:
                yield file
            except BaseException:
                with _silent(), contextlib.suppress(*READ_ERRORS):
                    file.close()
                raise

    def write(self, file: DatasetWriter, row: int, column: int, values: AnyArray) -> None:
        """Write a rectangle of the map.

        Args:
            file: Temporary file that `writing` opened.
            row: First row of the rectangle.
            column: First column of the rectangle.
            values: [bands, h, w] values of its pixels.

        Raises:
            RunError: The disk is full, or cannot be written.
        """
        self._require_room(values.nbytes)
        with self._explained(), quiet():
            file.write(values, window=FileWindow(column, row, values.shape[2], values.shape[1]))
        self._digests[row, column] = _digest(values)

    def finish(self) -> None:
        """Convert the temporary GeoTIFF to a COG, check it by reading it, and give it the map's name.

        Raises:
            RunError: The disk is full, or cannot be written.
        """
        classes = not self.bands.probabilities
        # The COG fits into this room: its pixels are packed better than in the temporary file, and its overviews
        # (smaller copies) take a third more.
        self._require_room(self.plain.stat().st_size * 4 // 3)
        with self._explained(), quiet():
            copy_raster(
                self.plain,
                self.finished,
                driver="COG",
                COMPRESS="DEFLATE",
                PREDICTOR="FLOATING_POINT" if self.bands.dtype == "float32" else "NO",
                BLOCKSIZE=TILE,
                BIGTIFF="IF_SAFER",
                RESAMPLING="NEAREST" if classes else "AVERAGE",
            )
            _without_alpha(self.finished)
            self._check()
        self.plain.unlink(missing_ok=True)
        put_whole(self.finished, self.out)

    def _check(self) -> None:
        """Compare the pixels of the COG with those that were written. GDAL does not report all failures of a full disk.

        Raises:
            RunError: They differ.
        """
        with rasterio.open(self.finished, driver="GTiff") as file:
            for (row, column), digest in self._digests.items():
                if _digest(_read(file, row, column, self._digests)) != digest:
                    raise RunError(
                        f"{self.out} could not be written whole ({free_room(self.out)}). Make room there; then the "
                        "same command continues."
                    )

    def _require_room(self, size: int) -> None:
        """Raise a `RunError` if fewer than `size` bytes are free on the map's disk.

        Without this check, GDAL would find the disk full, and write its own lines to the terminal.
        """
        if _room(self.out) < size:
            raise RunError(cannot_write(self.out, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Return a context that turns GDAL's errors of writing into a `RunError` whose message is one line."""
        try:
            yield
        except READ_ERRORS as error:
            if isinstance(error, OSError) and error.errno:
                raise RunError(cannot_write(self.out, error)) from None
            if _room(self.out) < LEAST_ROOM:
                raise RunError(cannot_write(self.out, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) from None
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise RunError(
                f"cannot write {self.out}: {first_line(cause)} ({free_room(self.out)}). Make room, or give a folder "
                "that may be written; then the same command continues."
            ) from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Return a context that hides what C libraries write to stderr.

    On a full disk, libtiff writes a line of its own when a file is closed, beside the message of stssl.
    """
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def request_of(path: Path) -> str | None:
    """Return the hash of the request (models, scene, options) that made a map, from the metadata of the map's file.

    Return None if the file `path` is no map of this program, or is damaged.
    """
    try:
        with quiet(), rasterio.open(path, driver="GTiff", sharing=False) as file:
            found: str | None = file.tags().get(MAP_REQUEST)
            # Read the whole file to find damage: a map that was cut off later must not count as finished.
            for _, window in file.block_windows(1) if found else ():
                file.read(window=window)
            return found
    except READ_ERRORS:
        return None


def _room(path: Path) -> int:
    """Return the number of free bytes on the disk where the file `path` lies or will lie."""
    about = os.statvfs(path.parent)
    return about.f_bavail * about.f_frsize


def _digest(values: AnyArray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest() + bytes(
        str(values.shape), "ascii"
    )


def _read(file: DatasetReader, row: int, column: int, all_of: Mapping[tuple[int, int], bytes]) -> AnyArray:
    """Read the pixels of one rectangle of a map, and return them as [bands, h, w].

    The rectangle ends where the next rectangle begins, or at the map's edge.

    Args:
        file: Open file of the map.
        row: First row of the rectangle.
        column: First column of the rectangle.
        all_of: Dict whose keys are the first row and column of every rectangle of the map.
    """
    bottom = min([other for other, _ in all_of if other > row], default=file.height)
    right = min([other for _, other in all_of if other > column], default=file.width)
    values: AnyArray = file.read(window=FileWindow(column, row, right - column, bottom - row))
    return values


def _without_alpha(path: Path) -> None:
    """Change the tag `ExtraSamples` of a map with a color table, so that the confidence does not count as transparency.

    GDAL calls the second of two bands transparency if the first has a color table. Programs would then draw unsure
    pixels as transparent. The tag has one number: 2 means transparency, 0 means any other band.
    """
    with path.open("r+b") as file:
        for position, order in _entries(file.fileno(), _EXTRA_SAMPLES):
            file.seek(position)
            kind = struct.unpack(f"{order}H", file.read(2))[0]
            value = position + 2 + (8 if _is_big(file.fileno()) else 4)
            file.seek(value)
            if kind == _SHORT and struct.unpack(f"{order}H", file.read(2))[0] == 2:
                file.seek(value)
                file.write(struct.pack(f"{order}H", 0))


def _is_big(handle: int) -> bool:
    """Return True if an open TIFF (`handle` is its file descriptor) is a BigTIFF, with file positions of 8 bytes."""
    return os.pread(handle, 2, 2) in (b"+\0", b"\0+")


def _entries(handle: int, tag: int) -> Iterator[tuple[int, str]]:
    """Find a tag in each directory of an open TIFF, which has one directory for each of its images.

    Args:
        handle: File descriptor of the TIFF.
        tag: Number of the tag.

    Yields:
        Position in the file of the tag's field type, and the file's byte order: `<` or `>`.
    """
    order = "<" if os.pread(handle, 2, 0) == b"II" else ">"
    big = _is_big(handle)
    word, count, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    width, own = struct.calcsize(f"{order}{word}"), struct.calcsize(f"{order}{count}")
    (at,) = struct.unpack(f"{order}{word}", os.pread(handle, width, 8 if big else 4))
    while at:
        (entries,) = struct.unpack(f"{order}{count}", os.pread(handle, own, at))
        for number in range(entries):
            position = at + own + number * size
            if struct.unpack(f"{order}H", os.pread(handle, 2, position))[0] == tag:
                yield position + 2, order
        (at,) = struct.unpack(f"{order}{word}", os.pread(handle, width, at + own + entries * size))
