"""EuroSAT RGB: 27,000 JPEG patches of 64x64 in ten class folders, in a folder or the official zip.

The images have no georeference: places come from a table. Splits follow the code of "Context Matters"
(arXiv:2404.18583): in each class, sorted by name, the first 80 % train and the last 20 % test; the last eighth of the
training part validates here, so that no choice is made on test patches.
"""

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stssl.archives.base import good_place
from stssl.errors import DataError
from stssl.nomenclature import EUROSAT
from stssl.schema import COMMON, SPLIT_CODES, BadPatchError, Column, Patch, PixelArray, label_columns, split_column

SIZE = 64


class EuroSat:
    """EuroSAT RGB with a table of coordinates."""

    arrays = (PixelArray("rgb", ("B04", "B03", "B02"), SIZE, SIZE, "uint8", 10.0),)
    label_sets = ("label",)
    splits = ("official",)
    statistics_split = "official"
    maps: tuple[PixelArray, ...] = ()
    attributes: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, archive: Path, coordinates: Path | None = None) -> None:
        """List the images.

        Args:
            archive: The zip, or the folder that holds `2750/`, `EuroSAT_RGB/` or the class folders.
            coordinates: CSV with a name column (filepath) and latitude and longitude columns.

        Raises:
            DataError: No images there, or the table lacks a column.
        """
        self.archive = archive
        self.members = sorted(_list_images(archive))
        if not self.members:
            raise DataError(f"{archive} has no EuroSAT images (Class/Class_1.jpg, in a folder 2750 or EuroSAT_RGB)")
        self.names = tuple(Path(member).stem for member in self.members)
        self.places = read_coordinates(coordinates) if coordinates else {}
        self.codes = _split_codes(self.names)
        self.columns: tuple[Column, ...] = (*COMMON, label_columns("label", EUROSAT, False), split_column("official"))
        self.about: Mapping[str, Any] = {"source": "EuroSAT RGB", "coordinates": bool(coordinates)}
        self._zip: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open zip, which another process opens for itself."""
        return self.__dict__ | {"_zip": None}

    def read(self, row: int) -> Patch:
        """One image with its class, place and split."""
        name = self.names[row]
        values: dict[str, Any] = {"label": EUROSAT.index(name.rpartition("_")[0]), "split_official": self.codes[row]}
        patch = Patch(values=values)
        place = self.places.get(name)
        if place is not None and good_place(*place):
            values["lat"], values["lon"] = place
        elif self.places:
            patch.problems.append(("bad_coordinates", f"no usable coordinates in the table: {place}"))
        try:
            patch.arrays["rgb"] = self._pixels(self.members[row])
            patch.valid_bands = 0b111
        except BadPatchError as problem:
            patch.problems.insert(0, (problem.code, str(problem)))
        return patch

    def _pixels(self, member: str) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(self._bytes(member))) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise BadPatchError("unreadable", f"{member}: {error}") from None
        if pixels.shape != (SIZE, SIZE, 3):
            raise BadPatchError("wrong_size", f"{member} is {pixels.shape[1]}x{pixels.shape[0]}, not {SIZE}x{SIZE}")
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _bytes(self, member: str) -> bytes:
        if self.archive.is_dir():
            return (self.archive / member).read_bytes()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.archive)
        return self._zip.read(member)


def _list_images(archive: Path) -> list[str]:
    """Paths inside the archive of `<Class>/<Class>_<number>.jpg`."""
    if archive.is_dir():
        found = [str(path.relative_to(archive)) for path in archive.rglob("*.jp*g")]
    else:
        try:
            with zipfile.ZipFile(archive) as file:
                found = file.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{archive} is neither a folder nor a readable zip: {error}") from None
    return [
        name for name in found if name.endswith((".jpg", ".jpeg")) and Path(name).stem.rpartition("_")[0] in EUROSAT
    ]


def read_coordinates(table: Path) -> dict[str, tuple[float, float]]:
    """Image stem to (latitude, longitude) in degrees, from a CSV; unreadable numbers become NaN.

    Raises:
        DataError: The table cannot be read or lacks a column.
    """
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the table of coordinates {table}: {error}") from None
    found = rows[0].keys() if rows else ()
    name, lat, lon = (
        next((key for key in found if key.lower() in known), None)
        for known in (
            ("filepath", "filename", "name", "path", "image"),
            ("latitude", "lat"),
            ("longitude", "lon", "lng"),
        )
    )
    if name is None or lat is None or lon is None:
        raise DataError(f"{table} must have columns filepath, latitude and longitude. It has: {', '.join(found)}")
    return {Path(row[name]).stem: (_number(row[lat]), _number(row[lon])) for row in rows}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _split_codes(names: tuple[str, ...]) -> list[int]:
    """Code of each image: 70 % train, 10 % validation, 20 % test of each class in sorted order."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        by_class[name.rpartition("_")[0]].append(row)
    codes = [SPLIT_CODES["train"]] * len(names)
    for rows in by_class.values():
        rows.sort(key=lambda row: names[row])
        training = int(0.8 * len(rows))
        for row in rows[training:]:
            codes[row] = SPLIT_CODES["test"]
        for row in rows[training - training // 8 : training]:
            codes[row] = SPLIT_CODES["validation"]
    return codes
