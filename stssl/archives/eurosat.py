"""EuroSAT (Helber et al. 2019, arXiv:1709.00029): 27,000 patches of 64x64 in ten class folders, in a folder or zip.

RGB images are JPEGs without georeference: places come from a table. Multispectral ones are GeoTIFFs of 13 bands. Splits
follow the code of "Context Matters" (arXiv:2404.18583): in each class, sorted by name, the first 80 % train and the
last 20 % test; the last eighth of the training part validates here, so that no choice is made on test patches.
"""

import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stssl.archives.base import degrees, good_place
from stssl.archives.images import open_picture, read_bytes, read_image
from stssl.archives.nomenclature import EUROSAT
from stssl.archives.sentinel2 import EUROPE, RESOLUTION, grid_place, keep_pixels
from stssl.archives.tables import ABOUT, NAMES, columns_of, read_table
from stssl.archives.tiff import georeference
from stssl.archives.zips import check_directory
from stssl.base.errors import ConfigError, DataError
from stssl.base.hashing import digest_of
from stssl.store.schema import (
    COMMON,
    GEOREFERENCE,
    SPLIT_CODES,
    BadPatchError,
    Column,
    Patch,
    PixelArray,
    label_columns,
    split_column,
)

SIZE = 64
MOST_MEMBER = 16 << 20
"""Bytes that no image of EuroSAT has; a zip may claim any number."""
MS_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Bands in the files: B8A is last, and there is a B10, which BigEarthNet lacks."""
MS_ARRAYS = {"b10": RESOLUTION["b10"], "b20": RESOLUTION["b20"], "b60": (*RESOLUTION["b60"], "B10")}


class _Images:
    """List the images of either EuroSAT archive with classes and splits, and read their bytes."""

    label_sets = ("label",)
    splits = ("official",)
    statistics_split = "official"
    maps: tuple[PixelArray, ...] = ()
    notes: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, archive: Path, endings: tuple[str, ...], example: str) -> None:
        self.archive = archive
        self.members = sorted(_list_images(archive, endings), key=lambda path: (Path(path).stem, path))
        if not self.members:
            raise DataError(f"{archive} has no EuroSAT images ({example})")
        self.names = tuple(Path(member).stem for member in self.members)
        self.codes = _split_codes(self.names)
        self._zip: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open zip, which another process opens for itself."""
        return self.__dict__ | {"_zip": None}

    def _begin(self, row: int) -> Patch:
        """A patch with its class and split; complains of a name that was there before."""
        name = self.names[row]
        label = EUROSAT.index(name.rpartition("_")[0])
        patch = Patch(values={"label": label, "split_official": self.codes[row]})
        if row and self.names[row - 1] == name:
            patch.complain(BadPatchError("duplicate", f"{self.members[row]} has the name of {self.members[row - 1]}"))
        return patch

    def _bytes(self, member: str) -> bytes:
        try:
            if self.archive.is_dir():
                return read_bytes(self.archive / member, member)
            if self._zip is None:
                self._zip = zipfile.ZipFile(self.archive)
            info = self._zip.getinfo(member)
            if info.file_size > MOST_MEMBER:
                raise BadPatchError("unreadable", f"{member} claims {info.file_size:,} bytes: no image of EuroSAT has")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # Others unpack without a bound.
                raise BadPatchError("unreadable", f"{member} is packed by method {info.compress_type}, not deflated")
            return self._zip.read(info)
        except (OSError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, ValueError) as error:
            raise BadPatchError("unreadable", f"{member}: {error}") from None


class EuroSat(_Images):
    """EuroSAT RGB with a table of coordinates."""

    arrays = (PixelArray("rgb", ("B04", "B03", "B02"), SIZE, SIZE, "uint8", 10.0),)

    def __init__(self, archive: Path, coordinates: Path | None = None) -> None:
        """List the images.

        Args:
            archive: The zip, or the folder that holds `2750/`, `EuroSAT_RGB/` or the class folders.
            coordinates: CSV with a name column (filepath) and latitude and longitude columns.

        Raises:
            DataError: No images there, or the table lacks a column or names none of them.
        """
        super().__init__(archive, (".jpg", ".jpeg"), "Class/Class_1.jpg, in a folder 2750 or EuroSAT_RGB")
        self.places = read_coordinates(coordinates) if coordinates else {}
        if coordinates and self.places.keys().isdisjoint(self.names):
            raise DataError(f"{coordinates} names none of the {len(self.names):,} images of {archive}")
        self.columns: tuple[Column, ...] = (*COMMON, label_columns("label", EUROSAT, False), split_column("official"))
        self.about: Mapping[str, Any] = {"source": "EuroSAT RGB", "coordinates": self._places_digest()}

    def _places_digest(self) -> str | None:
        """Hash the places of all images: a conversion with another table of places is another conversion."""
        missing = (float("nan"),) * 2
        return digest_of(np.array([self.places.get(name, missing) for name in self.names])) if self.places else None

    def read(self, row: int) -> Patch:
        """One image with its class, place and split."""
        patch = self._begin(row)
        try:
            patch.arrays["rgb"] = self._pixels(self.members[row])
            patch.valid_bands = 0b111
        except BadPatchError as problem:
            patch.complain(problem)
        if self.places:
            place = self.places.get(self.names[row], (float("nan"),) * 2)
            (south, north), (west, east) = EUROPE
            if good_place(*place) and south <= place[0] <= north and west <= place[1] <= east:
                patch.values["lat"], patch.values["lon"] = place
            else:
                patch.complain(BadPatchError("bad_coordinates", f"latitude, longitude {place} are not in Europe"))
        return patch

    def _pixels(self, member: str) -> NDArray[np.uint8]:
        try:
            with open_picture(self._bytes(member)) as image:
                if image.size != (SIZE, SIZE):
                    words = f"{member} is {image.width}x{image.height}, not {SIZE}x{SIZE}"
                    raise BadPatchError("wrong_size", words)
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadPatchError("unreadable", f"{member}: {str(error).split(' <')[0]}") from None
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class EuroSatMs(_Images):
    """EuroSAT multispectral: 13 bands resampled to 10 m, georeferenced."""

    def __init__(self, archive: Path, bands: str = "all") -> None:
        """List the images.

        Args:
            archive: The zip, or the folder that holds the class folders.
            bands: `all` or `rgb`.

        Raises:
            ConfigError: `bands` is neither.
            DataError: No images there.
        """
        if bands not in ("all", "rgb"):
            raise ConfigError(f"bands must be all or rgb, not '{bands}'")
        super().__init__(archive, (".tif", ".tiff"), "Class/Class_1.tif")
        kept = MS_ARRAYS if bands == "all" else {"b10": RESOLUTION["b10"][:3]}
        self.arrays = tuple(PixelArray(name, names, SIZE, SIZE, "uint16", 10.0) for name, names in kept.items())
        label = label_columns("label", EUROSAT, False)
        self.columns: tuple[Column, ...] = (*COMMON, *GEOREFERENCE, label, split_column("official"))
        self.about: Mapping[str, Any] = {"source": "EuroSAT multispectral", "bands": bands}

    def read(self, row: int) -> Patch:
        """One image with its class, place and split."""
        patch, member = self._begin(row), self.members[row]
        try:
            data = self._bytes(member)
            picture = read_image(io.BytesIO(data), member)
            image = picture.pixels
            if image.shape != (len(MS_ORDER), SIZE, SIZE) or image.dtype != np.uint16:
                shape = "x".join(map(str, image.shape))
                raise BadPatchError("wrong_size", f"{member} is {shape} {image.dtype}, not 13x{SIZE}x{SIZE} uint16")
            places = {array.name: [MS_ORDER.index(band) for band in array.bands] for array in self.arrays}
            keep_pixels(patch, {name: image[bands] for name, bands in places.items()}, self.arrays)
            if picture.measured is not None:
                patch.measured = {name: picture.measured[bands] for name, bands in places.items()}
            patch.values |= _grid_values(data, member)
        except BadPatchError as problem:
            patch.complain(problem)
        return patch


def _grid_values(data: bytes, member: str) -> dict[str, Any]:
    """Place columns of a GeoTIFF in memory."""
    frame = georeference(io.BytesIO(data), member)
    epsg = frame.projection if isinstance(frame.projection, int) else 0
    try:
        return grid_place(frame.projection, frame.upper_left, frame.lower_right) | {"utm_epsg": epsg}
    except ValueError as error:
        raise BadPatchError("bad_coordinates", f"{member}: {error}") from None


def _list_images(archive: Path, endings: tuple[str, ...]) -> list[str]:
    """Paths inside the archive of `<Class>/<Class>_<number>` with one of these endings."""
    if archive.is_dir():
        found = [str(path.relative_to(archive)) for path in archive.rglob("*") if path.suffix in endings]
    else:
        try:
            check_directory(archive)
            with zipfile.ZipFile(archive) as file:
                found = file.namelist()
        except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:  # as of damaged listings
            raise DataError(f"{archive} is neither a folder nor a readable zip: {error}") from None
    return [name for name in found if name.endswith(endings) and Path(name).stem.rpartition("_")[0] in EUROSAT]


def read_coordinates(table: Path) -> dict[str, tuple[float, float]]:
    """Image stem to (latitude, longitude) in degrees, from a CSV; unreadable numbers become NaN.

    Raises:
        DataError: The table cannot be read or lacks a column.
    """
    wanted = {"name": NAMES, "lat": ABOUT["lat"], "lon": ABOUT["lon"]}
    read = read_table(table)
    found = columns_of(read, wanted, table)
    if len(found) < len(wanted):
        known = ", ".join(read.column_names)
        raise DataError(f"{table} must have columns filepath, latitude and longitude. It has: {known or 'nothing'}.")
    rows = zip(*(found[name] for name in wanted), strict=True)
    return {Path(str(name or "")).stem: (degrees(lat), degrees(lon)) for name, lat, lon in rows}


def _split_codes(names: tuple[str, ...]) -> list[int]:
    """Code of each image: 70 % train, 10 % validation, 20 % test of each class in sorted order."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        by_class[name.rpartition("_")[0]].append(name)
    code_of = dict.fromkeys(names, SPLIT_CODES["train"])
    for members in by_class.values():
        training = int(0.8 * len(members))
        code_of |= dict.fromkeys(members[training:], SPLIT_CODES["test"])
        code_of |= dict.fromkeys(members[training - training // 8 : training], SPLIT_CODES["validation"])
    return [code_of[name] for name in names]
