"""Read BigEarthNet v1.0 (Sumbul et al. 2019, arXiv:1902.06148): Sentinel-2, 120x120 pixels at 10 m.

Each patch is a folder of 12 GeoTIFFs and one JSON file with labels, time and place. Text files beside the archive list
the parts of the recommended split, the patches with snow, and the patches with clouds.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from stssl.archives.base import Example, ExamplePatch, Option, season_of, time_values
from stssl.archives.examples import EPSG, write_patch_folder
from stssl.archives.nomenclature import LABELS_19, LABELS_43, TO_19
from stssl.archives.places import crs_of, epsg_of
from stssl.archives.sentinel2 import grid_place, read_bands, sentinel_arrays
from stssl.archives.split_lists import find_list, listed_splits, split_codes, split_notes
from stssl.archives.tables import ABOUT, ID_NAMES, columns_of, read_table
from stssl.base.arrays import AnyArray
from stssl.base.errors import DataError
from stssl.base.hashing import digest_of
from stssl.base.json_types import JsonMapping, JsonObject, JsonValue
from stssl.base.textfiles import parse_json, read_bounded, read_names
from stssl.store.lists import V1_NAME, V2_NAME
from stssl.store.schema import (
    COMMON,
    CONDITIONS,
    GEOREFERENCE,
    REGION,
    BadPatchError,
    Column,
    Patch,
    PixelArray,
    Values,
    label_columns,
    split_column,
)

SNOW, CLOUD = "patches_with_seasonal_snow", "patches_with_cloud_and_shadow"
COUNTRY_TABLES = ("countries", "metadata")
PATCH_BYTES = 1 << 20
"""Largest size of a patch's JSON file in bytes. A real file has about 600 bytes, so a larger file is something else."""
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""Bands of an archive, in the order in which its makers list them."""
PUBLISHED_STATISTICS: JsonObject = {
    "source": "BigEarthNet v1.0, its makers' model repository",
    "bands": [*BANDS],
    "mean": [
        *(340.76769064, 429.9430203, 614.21682446, 590.23569706, 950.68368468, 1792.46290469),
        *(2075.46795189, 2218.94553375, 2266.46036911, 2246.0605464, 1594.42694882, 1009.32729131),
    ],
    "std": [
        *(554.81258967, 572.41639287, 582.87945694, 675.88746967, 729.89827633, 1096.01480586),
        *(1273.45393088, 1365.45589904, 1356.13789355, 1302.3292881, 1079.19066363, 818.86747235),
    ],
}
"""Statistics of the makers. A store keeps them beside its own ones: `data.statistics: published` takes these."""


_COLUMNS: tuple[Column, ...] = (
    *COMMON,
    *GEOREFERENCE,
    *REGION,
    *CONDITIONS,
    label_columns("labels_43", LABELS_43, True),
    label_columns("labels_19", LABELS_19, True),
)
"""Columns of every store, without the columns of its splits."""


class BigEarthNet1:
    """Read BigEarthNet v1.0: a folder of patches, each with 12 GeoTIFFs and one JSON file."""

    label_sets = ("labels_43", "labels_19")
    statistics_split = "official"
    maps: tuple[PixelArray, ...] = ()
    attributes: JsonMapping = MappingProxyType({"published_statistics": {**PUBLISHED_STATISTICS}})

    def __init__(
        self,
        archive: Path,
        bands: Annotated[str, Option("all or rgb.")] = "all",
        metadata: Annotated[Path | None, Option("table with countries, or folder with v2.0's tables.")] = None,
        splits: Annotated[
            Mapping[str, Path] | None,
            Option("NAME=FOLDER of lists train, val, test, or NAME=TABLE; repeatable.", "split"),
        ] = None,
    ) -> None:
        """Find the patches of the archive, and read the lists and tables beside it.

        Args:
            archive: `BigEarthNet-v1.0`, or the folder that holds it.
            bands: `all` or `rgb`.
            metadata: CSV or Parquet file with a name column (patch_id or s2v1_name) and a column country, or a folder
                with the tables of v2.0. The default is a file `countries.csv` or `metadata.csv` beside the archive.
            splits: Name and folder of further splits. A folder holds the lists train, val and test (txt, csv,
                csv.bz2). A table with the columns patch and split may stand for the folder.
                The lists beside the archive are the split `official`.

        Raises:
            ConfigError: `bands` is neither `all` nor `rgb`.
            DataError: The archive has no patches, a list cannot be read, or `metadata` has none of the patches.
        """
        self.archive = archive
        # Sort by name: each file system lists folders in its own sequence, and rows must not depend on it.
        self.folders = sorted(list_patches(archive), key=lambda path: (Path(path).name, path))
        if not self.folders:
            raise DataError(f"{archive} has no patches of BigEarthNet v1.0 (S2A_MSIL2A_20170613T101031_0_45, ...)")
        self.names = tuple(Path(path).name for path in self.folders)
        # Without this check, the conversion would report an error for each patch in place of one clear error.
        if all(map(V2_NAME.fullmatch, self.names)):
            raise DataError(f"the patches in {archive} are of BigEarthNet v2.0. Convert them as bigearthnet-v2.")
        self.arrays = sentinel_arrays(bands)
        beside = (archive, archive / "BigEarthNet-v1.0", archive.parent)
        found = split_codes(self.names, beside)
        self._codes = {} if found is None else {"official": found}
        self._codes |= listed_splits(self.names, splits)
        self.notes = split_notes(self.names, splits)
        self.splits = tuple(self._codes)
        self._flags = {
            column: _flags(self.names, find_list(beside, stem))
            for column, stem in (("seasonal_snow", SNOW), ("cloud_or_shadow", CLOUD))
        }
        self._countries = _countries(self.names, metadata or find_list(beside, *COUNTRY_TABLES))
        if metadata and not any(self._countries):
            needed = "the columns patch_id (or s2v1_name) and country"
            raise DataError(f"{metadata} tells the country of none of the patches: it needs {needed}")
        self.columns = (*_COLUMNS, *map(split_column, self.splits))
        self.about: JsonMapping = {
            "source": "BigEarthNet v1.0",
            "bands": bands,
            "lists": digest_of(*self._codes.values(), *self._flags.values(), self._countries),
            **({"splits": list(self.splits)} if splits else {}),
        }

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write a tiny archive for tests, and return its description with the values that its store must hold.

        It has six patches and the lists of a split. The last patch has no labels and is in no list.

        Args:
            folder: Empty folder to write into.
        """
        archive, parts = folder / "BigEarthNet-v1.0", ("train", "train", "train", "validation", "test", "")
        patches = []
        for row, part in enumerate(parts):
            target = archive / f"S2A_MSIL2A_20170613T101031_{row}_45"
            patch = ExamplePatch(
                name=target.name,
                file=target / f"{target.name}_B02.tif",
                pixels={band: 100 * number + row for number, band in enumerate(BANDS, 1)},
                classes=("Pastures", LABELS_43[row]) if part else (),
                place=(48.2 + row / 10, 14.5),
                time=datetime(2017, 6, 13 + row, 10, 10, 31, tzinfo=UTC),
                part=part,
                error="ok" if part else "no_label",
            )
            _write_example_patch(target, patch)
            patches.append(patch)
        for part, list_name in (("train", "train.csv"), ("validation", "val.csv"), ("test", "test.csv")):
            (folder / list_name).write_text("".join(f"{patch.name}\n" for patch in patches if patch.part == part))
        return Example(archive, tuple(patches), "labels_43")

    def read(self, row: int) -> Patch:
        """Read one patch, and return its bands, labels, place, time, and its values in the archive's lists.

        Labels, place and time are in the patch's JSON file. The lists give splits, country, snow and clouds. A patch of
        v2.0, a second patch of one name, or a damaged patch is returned with an error in its list of problems.

        Args:
            row: Row of the patch in the store.
        """
        name, folder = self.names[row], self.archive / self.folders[row]
        patch = Patch(values={f"split_{split}": codes[row] for split, codes in self._codes.items()})
        patch.values |= {column: flags[row] for column, flags in self._flags.items()}
        patch.values["country"] = self._countries[row]
        if V2_NAME.fullmatch(name):
            # Do not skip the patch: a conversion never removes rows, and its report must name each patch of v2.0.
            patch.complain(BadPatchError("foreign", f"{name} is of BigEarthNet v2.0: convert it as bigearthnet-v2"))
            return patch
        # Names are sorted, so equal names are neighbors. Only the first patch with a name keeps its pixels.
        if row and self.names[row - 1] == name:
            patch.complain(BadPatchError("duplicate", f"{self.folders[row]} has the name of {self.folders[row - 1]}"))
            return patch
        try:
            read_patch_json(patch, folder / f"{name}_labels_metadata.json")
        except BadPatchError as problem:
            patch.complain(problem)
        read_bands(patch, folder, name, self.arrays)
        return patch


def list_patches(folder: str | Path, prefix: str = "", depth: int = 2) -> Iterator[str]:
    """Yield the paths of patch folders as texts, relative to the archive.

    Three levels of folders are searched by default. Patch folders of v2.0 are listed too, so that the conversion
    reports them and does not skip them silently.

    Args:
        folder: Folder to search: the archive, or a folder in it.
        prefix: Path of `folder` relative to the archive, with a slash at its end; empty for the archive itself.
        depth: How many levels of folders below those in `folder` to search.
    """
    for entry in folders_in(folder):
        if V1_NAME.fullmatch(entry.name) or V2_NAME.fullmatch(entry.name) or _holds_bands(entry.path):
            yield prefix + entry.name
        elif depth:
            yield from list_patches(entry.path, f"{prefix}{entry.name}/", depth - 1)


def folders_in(path: str | Path) -> Iterator["os.DirEntry[str]"]:
    """Yield a directory entry for each folder in the folder `path`, except hidden ones.

    Raises:
        DataError: The path is no folder, or the folder cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except NotADirectoryError:
        raise DataError(f"{path} is not a folder") from None
    except OSError as error:
        raise DataError(f"cannot list {path}: {error.strerror}") from None


def _holds_bands(path: str) -> bool:
    """Return True if the folder `path` has a file named like those of a BigEarthNet patch.

    Such a name ends in `_B02.tif` or `_labels_metadata.json`. The folder's own name does not matter.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return any(entry.name.endswith(("_B02.tif", "_labels_metadata.json")) for entry in entries)
    except OSError as error:
        raise DataError(f"cannot list {path}: {error.strerror}") from None


def _flags(names: tuple[str, ...], path: Path | None) -> NDArray[np.bool_]:
    """Return for each patch whether a list names it. Such a list has the names of patches with snow, for example.

    Args:
        names: Names of all patches.
        path: File of the list. If it is None, the result is False for all patches.

    Returns:
        Booleans [patches].
    """
    listed = read_names(path) if path else frozenset()
    return np.array([name in listed for name in names])


def _countries(names: tuple[str, ...], path: Path | None) -> AnyArray:
    """Return the country of each patch as a table states it: an array [patches] of texts.

    The text is empty for a patch without a country in the table.

    Args:
        names: Names of all patches.
        path: Table, or folder with the tables of BigEarthNet v2.0; None if there is no table.
    """
    known: dict[str, str] = {}
    for file in sorted(path.glob("metadata*.parquet")) if path and path.is_dir() else [path] if path else []:
        table = columns_of(read_table(file), {name: (name,) for name in ID_NAMES} | {"country": ABOUT["country"]}, file)
        for key in ID_NAMES:
            for name, country in zip(table.get(key, ()), table.get("country", ()), strict=False):
                known[str(name)] = "" if country is None else str(country)
    return np.array([known.get(name) or "" for name in names], object)


def read_patch_json(patch: Patch, path: Path) -> None:
    """Read labels, place and time of a v1.0 patch from its JSON file, and add them to `patch.values`.

    If one of these is unusable, add an error to the problems of `patch` instead. The time comes from the JSON file
    only, since the time in many patch names is wrong.

    Args:
        patch: Patch to change.
        path: The JSON file.

    Raises:
        BadPatchError: The file is missing, is no JSON file, or has no list of labels.
    """
    if not path.is_file():
        raise BadPatchError("no_metadata", f"{path.name} is missing")
    try:
        about = parse_json(read_bounded(path, PATCH_BYTES), path.name)
    except DataError as error:
        raise BadPatchError("bad_metadata", str(error).replace(str(path), path.name)) from None
    labels, corners = about.get("labels"), about.get("coordinates")
    if not isinstance(labels, list):
        raise BadPatchError("bad_metadata", f"{path.name} has no list 'labels'")
    parts: tuple[Callable[[], Values], ...] = (
        lambda: label_values(labels, LABELS_43),
        lambda: _place(str(about.get("projection")), corners if isinstance(corners, dict) else {}),
        lambda: _date(about.get("acquisition_date")),
    )
    for part in parts:
        try:
            patch.values |= part()
        except BadPatchError as problem:
            patch.complain(problem)


def label_values(labels: Sequence[object], known: tuple[str, ...]) -> Values:
    """Return the label columns of a store for one patch, made from the names of its classes.

    Args:
        labels: Names of the patch's classes.
        known: All class names of the data set: `LABELS_43` or `LABELS_19`.

    Returns:
        A dict with the column `labels_19`, and also `labels_43` if `known` is `LABELS_43`. A column is an array with
        one entry for each class: 1 if the patch has the class, else 0.

    Raises:
        BadPatchError: The patch has no label, or a label that is not in `known`.
    """
    if not labels:
        raise BadPatchError("no_label", "the list of labels is empty")
    strangers = [str(label) for label in labels if label not in known]
    if strangers:
        raise BadPatchError("unknown_label", f"unknown label {', '.join(strangers)}")
    # Match classes by name, never by number: published tables number the 43 classes in three different ways.
    coarse = {TO_19.get(name, name) for name in known if name in labels}
    values: Values = {"labels_19": np.array([name in coarse for name in LABELS_19], np.uint8)}
    if known is LABELS_43:
        values["labels_43"] = np.array([name in labels for name in LABELS_43], np.uint8)
    return values


def _date(text: object) -> Values:
    """Return the time and season of a patch as a dict of store columns, from the text of the time in its JSON file.

    Raises:
        BadPatchError: `text` is no text of the form YYYY-MM-DD HH:MM:SS.
    """
    try:
        when = datetime.strptime(text if isinstance(text, str) else "", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise BadPatchError("bad_time", f"acquisition_date {text!r} is not YYYY-MM-DD HH:MM:SS") from None
    return time_values(when) | {"season": season_of(when)}


def _place(projection: str, corners: JsonMapping) -> Values:
    """Return the place of a patch as a dict of store columns, from the corners in its JSON file.

    These columns are latitude and longitude of the center in degrees, the upper left corner in the projected grid, and
    the EPSG code of this grid.

    Args:
        projection: Coordinate system of the corners, as WKT.
        corners: Coordinates `ulx`, `uly`, `lrx` and `lry` of the upper left and lower right corner.

    Raises:
        BadPatchError: A corner or the projection is missing or unusable.
    """
    try:
        ulx, uly, lrx, lry = (_number(corners[key]) for key in ("ulx", "uly", "lrx", "lry"))
        return grid_place(projection, (ulx, uly), (lrx, lry)) | {"utm_epsg": epsg_of(projection)}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadPatchError("bad_coordinates", f"{corners}: {error}") from None


def _number(value: JsonValue) -> float:
    """Return a JSON value, a number or a text with a number, as a float.

    Raises:
        TypeError: The value is neither a number nor a text.
        ValueError: The text is no number.
    """
    if isinstance(value, str | int | float):
        return float(value)
    raise TypeError(f"{value!r} is no number")


def _write_example_patch(folder: Path, patch: ExamplePatch) -> None:
    """Write one patch of the example archive: its GeoTIFFs and its JSON file.

    Args:
        folder: Folder of the patch to write.
        patch: Values that the files must have.
    """
    grid = write_patch_folder(folder, patch.pixels, patch.place or (0.0, 0.0))
    about = {
        "labels": list(patch.classes),
        "coordinates": {
            "ulx": grid.ulx,
            "uly": grid.uly,
            "lrx": grid.ulx + grid.side,
            "lry": grid.uly - grid.side,
        },
        "projection": crs_of(EPSG).to_wkt(),
        "acquisition_date": f"{patch.time:%Y-%m-%d %H:%M:%S}",
    }
    (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(about))
