"""Read EuroSAT (Helber et al. 2019, arXiv:1709.00029): 27,000 patches of 64x64 in ten class folders or their zip.

RGB images are JPEGs without georeference, so places come from a table. Multispectral images are GeoTIFFs of 13 bands.
The split `published` is that of the code of "Context Matters" (arXiv:2404.18583). That code sorts the patches of each
class by name. It trains on the first 80 % and tests on the last 20 %. In the split `official`, the last eighth of this
training part is the validation part, so that checkpoints and settings can be chosen without test patches.
"""

import csv
import io
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stssl.archives.base import Example, ExamplePatch, Option, degrees, good_place
from stssl.archives.examples import grid_around, write_bands
from stssl.archives.images import open_picture, read_bytes, read_image
from stssl.archives.nomenclature import EUROSAT
from stssl.archives.sentinel2 import EUROPE, RESOLUTION, grid_place, keep_pixels
from stssl.archives.tables import ABOUT, ID_NAMES, columns_of, read_table
from stssl.archives.tiff import georeference
from stssl.archives.zips import check_directory
from stssl.base.errors import ConfigError, DataError
from stssl.base.hashing import digest_of
from stssl.base.json_types import JsonMapping
from stssl.store.schema import (
    COMMON,
    GEOREFERENCE,
    SPLIT_CODES,
    BadPatchError,
    Column,
    Patch,
    PixelArray,
    Values,
    label_columns,
    split_column,
)

SIZE = 64
MOST_MEMBER = 16 << 20
"""Largest size of an image in bytes. All real images are smaller, but the header of a zip file may claim any number."""
MS_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Bands of a file, from first to last. B8A is last. BigEarthNet has no B10."""
EXAMPLE_PARTS = {f"Forest_{number}": "train" for number in range(11, 21)} | {"River_11": "test"}
EXAMPLE_PARTS |= {"Forest_18": "validation", "Forest_19": "test", "Forest_20": "test"}
"""Images of the example archives, and their parts by the rule of the split."""
MS_ARRAYS = {"b10": RESOLUTION["b10"], "b20": RESOLUTION["b20"], "b60": (*RESOLUTION["b60"], "B10")}


class _Images:
    """List the images of an EuroSAT archive (RGB or multispectral) with classes and splits, and read their bytes."""

    label_sets = ("label",)
    splits = ("official", "published")
    statistics_split = "official"
    maps: tuple[PixelArray, ...] = ()
    notes: tuple[str, ...] = ()
    attributes: JsonMapping = MappingProxyType({})

    def __init__(self, archive: Path, endings: tuple[str, ...], example: str) -> None:
        self.archive = archive
        self.members = sorted(_list_images(archive, endings), key=lambda path: (Path(path).stem, path))
        if not self.members:
            raise DataError(f"{archive} has no EuroSAT images ({example})")
        self.names = tuple(Path(member).stem for member in self.members)
        self.codes = _split_codes(self.names)
        self._zip: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the dict of attributes to pickle, without the open zip file: another process opens the file itself."""
        return self.__dict__ | {"_zip": None}

    def _begin(self, row: int) -> Patch:
        """Return a new patch for the image in a row of the store, with class and splits, but without pixels.

        If an earlier image has the same name, the patch has this error in its list of problems.
        """
        name = self.names[row]
        label = EUROSAT.index(name.rpartition("_")[0])
        code = self.codes[row]
        published = SPLIT_CODES["train"] if code == SPLIT_CODES["validation"] else code
        patch = Patch(values={"label": label, "split_official": code, "split_published": published})
        if row and self.names[row - 1] == name:
            patch.complain(BadPatchError("duplicate", f"{self.members[row]} has the name of {self.members[row - 1]}"))
        return patch

    def _bytes(self, member: str) -> bytes:
        """Return the bytes of the image file `member` in the archive's folder or zip.

        Raises:
            BadPatchError: The file cannot be read, or is larger than any image of EuroSAT.
        """
        try:
            if self.archive.is_dir():
                return read_bytes(self.archive / member, member)
            if self._zip is None:
                self._zip = zipfile.ZipFile(self.archive)
            info = self._zip.getinfo(member)
            if info.file_size > MOST_MEMBER:
                raise BadPatchError("unreadable", f"{member} claims {info.file_size:,} bytes: no image of EuroSAT has")
            # For other compression methods, Python could unpack more bytes than this limit allows.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadPatchError("unreadable", f"{member} is packed by method {info.compress_type}, not deflated")
            return self._zip.read(info)
        except (OSError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, ValueError) as error:
            raise BadPatchError("unreadable", f"{member}: {error}") from None


class EuroSat(_Images):
    """Read EuroSAT's RGB images, with places from a table of coordinates."""

    arrays = (PixelArray("rgb", ("B04", "B03", "B02"), SIZE, SIZE, "uint8", 10.0),)

    def __init__(
        self,
        archive: Path,
        coordinates: Annotated[Path | None, Option("CSV with filepath, latitude, longitude.")] = None,
    ) -> None:
        """Find the images of the archive, and read the table of their places.

        Args:
            archive: The zip file, or the folder with `2750/`, `EuroSAT_RGB/` or the class folders.
            coordinates: CSV file with the columns filepath, latitude and longitude. If it is None, patches have no
                place.

        Raises:
            DataError: The archive has no images, the table lacks a column, or the table names none of the images.
        """
        super().__init__(archive, (".jpg", ".jpeg"), "Class/Class_1.jpg, in a folder 2750 or EuroSAT_RGB")
        self.places = read_coordinates(coordinates) if coordinates else {}
        if coordinates and self.places.keys().isdisjoint(self.names):
            raise DataError(f"{coordinates} names none of the {len(self.names):,} images of {archive}")
        label = label_columns("label", EUROSAT, False)
        self.columns: tuple[Column, ...] = (*COMMON, label, *map(split_column, self.splits))
        self.about: JsonMapping = {"source": "EuroSAT RGB", "coordinates": self._places_digest()}

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write a tiny archive for tests, and return its description with the values that its store must hold.

        It has eleven JPEGs of two classes, and a table of their coordinates.

        Args:
            folder: Empty folder to write into.
        """
        rows = [["filepath", "latitude", "longitude"]]
        patches = []
        for number, (name, part) in enumerate(EXAMPLE_PARTS.items()):
            label = name.rpartition("_")[0]
            pixels = {"B04": 60 + number, "B03": 120 + number, "B02": 180 + number}
            place = (48.2 + number / 10, 14.5)
            file = folder / "2750" / label / f"{name}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIZE, SIZE), tuple(pixels.values())).save(file, quality=95)
            rows.append([f"{label}/{name}.jpg", str(place[0]), str(place[1])])
            patches.append(ExamplePatch(name, file, pixels, (label,), place, part=part))
        table = folder / "coordinates.csv"
        with table.open("w", newline="") as text:
            csv.writer(text).writerows(rows)
        return Example(folder / "2750", tuple(patches), "label", {"coordinates": table}, tolerance=3)

    def _places_digest(self) -> str | None:
        """Return a hash of the places of all images, as text; None if there is no table of places.

        It tells conversions with different tables apart.
        """
        missing = (float("nan"),) * 2
        return digest_of(np.array([self.places.get(name, missing) for name in self.names])) if self.places else None

    def read(self, row: int) -> Patch:
        """Read one image, and return it as a patch with its class, place and splits.

        If the image or its place is unusable, this is an error in the patch's list of problems.

        Args:
            row: Row of the image in the store.
        """
        patch = self._begin(row)
        try:
            patch.arrays["rgb"] = self._pixels(self.members[row])
            patch.valid_bands = 0b111
        except BadPatchError as problem:
            patch.complain(problem)
        if self.places:
            place = self.places.get(self.names[row], (float("nan"),) * 2)
            # Check that the place is in Europe. If the table swaps latitude and longitude, the place lies elsewhere.
            (south, north), (west, east) = EUROPE
            if good_place(*place) and south <= place[0] <= north and west <= place[1] <= east:
                patch.values["lat"], patch.values["lon"] = place
            else:
                patch.complain(BadPatchError("bad_coordinates", f"latitude, longitude {place} are not in Europe"))
        return patch

    def _pixels(self, member: str) -> NDArray[np.uint8]:
        """Decode a JPEG of the archive, and return its pixels: red, green and blue, [3, 64, 64].

        Args:
            member: Path of the JPEG in the archive's folder or zip.

        Raises:
            BadPatchError: The file cannot be decoded, or the image has another size.
        """
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
    """Read EuroSAT's multispectral images: georeferenced, with 13 bands at 10 m."""

    def __init__(self, archive: Path, bands: Annotated[str, Option("all or rgb.")] = "all") -> None:
        """Find the images of the archive.

        Args:
            archive: The zip file, or the folder with the class folders.
            bands: `all` or `rgb`.

        Raises:
            ConfigError: `bands` is neither `all` nor `rgb`.
            DataError: The archive has no images.
        """
        if bands not in ("all", "rgb"):
            raise ConfigError(f"bands must be all or rgb, not '{bands}'")
        super().__init__(archive, (".tif", ".tiff"), "Class/Class_1.tif")
        kept = MS_ARRAYS if bands == "all" else {"b10": RESOLUTION["b10"][:3]}
        self.arrays = tuple(PixelArray(name, names, SIZE, SIZE, "uint16", 10.0) for name, names in kept.items())
        label = label_columns("label", EUROSAT, False)
        self.columns: tuple[Column, ...] = (*COMMON, *GEOREFERENCE, label, *map(split_column, self.splits))
        self.about: JsonMapping = {"source": "EuroSAT multispectral", "bands": bands}

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write a tiny archive for tests, and return its description with the values that its store must hold.

        It has eleven GeoTIFFs of two classes.

        Args:
            folder: Empty folder to write into.
        """
        patches = []
        for number, (name, part) in enumerate(EXAMPLE_PARTS.items()):
            label = name.rpartition("_")[0]
            values = [100 * (band + 1) + number for band in range(len(MS_ORDER))]
            place = (48.2 + number / 10, 14.5)
            file = folder / label / f"{name}.tif"
            write_bands(file, values, SIZE, grid_around(*place, side=10.0 * SIZE))
            pixels = dict(zip(MS_ORDER, values, strict=True))
            patches.append(ExamplePatch(name, file, pixels, (label,), place, part=part))
        return Example(folder, tuple(patches), "label")

    def read(self, row: int) -> Patch:
        """Read one image, and return it as a patch with its class, place and splits.

        If the image or its place is unusable, this is an error in the patch's list of problems.

        Args:
            row: Row of the image in the store.
        """
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


def _grid_values(data: bytes, member: str) -> Values:
    """Return the place of a GeoTIFF as a dict of store columns: center in degrees, upper left corner, EPSG code.

    Args:
        data: Bytes of the file.
        member: Path of the file in the archive, for messages.

    Raises:
        BadPatchError: The file has no georeference, or lies outside of Europe.
    """
    frame = georeference(io.BytesIO(data), member)
    epsg = frame.projection if isinstance(frame.projection, int) else 0
    try:
        return grid_place(frame.projection, frame.upper_left, frame.lower_right) | {"utm_epsg": epsg}
    except ValueError as error:
        raise BadPatchError("bad_coordinates", f"{member}: {error}") from None


def _list_images(archive: Path, endings: tuple[str, ...]) -> list[str]:
    """Return the paths of the images in a folder or zip, relative to it, such as `Forest/Forest_1.jpg`.

    Files whose name has no known class are left out.

    Args:
        archive: The folder or zip file.
        endings: Endings of image files, such as `.jpg`.

    Raises:
        DataError: The archive is neither a folder nor a readable zip file.
    """
    if archive.is_dir():
        found = [str(path.relative_to(archive)) for path in archive.rglob("*") if path.suffix in endings]
    else:
        try:
            check_directory(archive)
            with zipfile.ZipFile(archive) as file:
                found = file.namelist()
        # A damaged list of files in the zip makes `zipfile` raise any of these, not only BadZipFile.
        except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
            raise DataError(f"{archive} is neither a folder nor a readable zip: {error}") from None
    return [name for name in found if name.endswith(endings) and Path(name).stem.rpartition("_")[0] in EUROSAT]


def read_coordinates(table: Path) -> dict[str, tuple[float, float]]:
    """Read the latitudes and longitudes of images from a CSV file.

    Returns:
        A dict from file name without ending to (latitude, longitude) in degrees. A value is NaN if its cell holds no
        number.

    Raises:
        DataError: The table cannot be read or lacks a column.
    """
    wanted = {"name": ID_NAMES, "lat": ABOUT["lat"], "lon": ABOUT["lon"]}
    read = read_table(table)
    found = columns_of(read, wanted, table)
    if len(found) < len(wanted):
        known = ", ".join(read.column_names)
        raise DataError(f"{table} must have columns filepath, latitude and longitude. It has: {known or 'nothing'}.")
    rows = zip(*(found[name] for name in wanted), strict=True)
    return {Path(str(name or "")).stem: (degrees(lat), degrees(lon)) for name, lat, lon in rows}


def _split_codes(names: tuple[str, ...]) -> list[int]:
    """Return for each EuroSAT image the code (`SPLIT_CODES`) of its part of the split: train, validation or test.

    The names of each class are sorted as texts. Of these, the first 70 % are train, the next 10 % validation, and the
    last 20 % test.

    Args:
        names: Names of all images, such as `Forest_1`.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    # Sort names as texts, so that Forest_10 comes before Forest_2: the code of the paper does so, and the split must be
    # the same.
    for name in sorted(set(names)):
        by_class[name.rpartition("_")[0]].append(name)
    code_of = dict.fromkeys(names, SPLIT_CODES["train"])
    for members in by_class.values():
        training = int(0.8 * len(members))
        code_of |= dict.fromkeys(members[training:], SPLIT_CODES["test"])
        code_of |= dict.fromkeys(members[training - training // 8 : training], SPLIT_CODES["validation"])
    return [code_of[name] for name in names]
