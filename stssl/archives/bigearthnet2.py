"""Read BigEarthNet v2.0 (reBEN; Clasen et al. 2024, arXiv:2407.03653): images, metadata tables, reference maps."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from stssl.archives.base import Example, ExamplePatch, Option, season_of, time_values
from stssl.archives.bigearthnet import BANDS, folders_in, label_values
from stssl.archives.examples import write_patch_folder
from stssl.archives.nomenclature import LABELS_19
from stssl.archives.sentinel2 import PATCH_SIDE, grid_place, read_bands, sentinel_arrays
from stssl.archives.split_lists import listed_splits, split_notes
from stssl.archives.tables import read_table
from stssl.archives.tiff import UtmCorner, georeference, read_band, utm_corner
from stssl.base.arrays import AnyArray
from stssl.base.errors import DataError
from stssl.base.hashing import digest_of
from stssl.base.json_types import JsonMapping
from stssl.store.lists import V1_NAME, V2_NAME
from stssl.store.schema import (
    COMMON,
    CONDITIONS,
    GEOREFERENCE,
    NO_SPLIT,
    REGION,
    BadPatchError,
    Column,
    Patch,
    PixelArray,
    Values,
    label_columns,
    split_column,
)

TABLES = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
REFERENCE = PixelArray("reference_map", ("CLC",), 120, 120, "uint16", 10.0, 0, "CORINE Land Cover code, level 3")


class BigEarthNet2:
    """Read BigEarthNet v2.0: `BigEarthNet-S2/<product>/<patch>/` with 12 GeoTIFFs, and metadata in Parquet tables."""

    label_sets = ("labels_19",)
    statistics_split = "official"
    attributes: JsonMapping = MappingProxyType({})

    def __init__(
        self,
        archive: Path,
        bands: Annotated[str, Option("all or rgb.")] = "all",
        metadata: Annotated[Path | None, Option("metadata.parquet, or the folder of the archive's tables.")] = None,
        reference_maps: Annotated[Path | None, Option("folder Reference_Maps.")] = None,
        splits: Annotated[
            Mapping[str, Path] | None,
            Option("NAME=FOLDER of lists train, val, test, or NAME=TABLE; repeatable.", "split"),
        ] = None,
    ) -> None:
        """Find the patches of the archive, and read its tables and lists.

        Args:
            archive: `BigEarthNet-S2`, or the folder that holds it.
            bands: `all` or `rgb`.
            metadata: `metadata.parquet`, or a folder with both tables of the archive. By default they lie beside the
                archive.
            reference_maps: Folder `Reference_Maps`. The default is the folder of this name beside the archive, if any.
            splits: Name and folder of further splits. A folder holds the lists train, val and test (txt, csv,
                csv.bz2). A table with the columns patch and split may stand for the folder.
                The split in the tables is called `official`.

        Raises:
            ConfigError: `bands` is neither `all` nor `rgb`.
            DataError: Patches, metadata or maps are missing, or a list cannot be read.
        """
        inner = archive / "BigEarthNet-S2"
        self.archive = inner if inner.is_dir() else archive
        self.folders = sorted(_list_patches(self.archive), key=lambda path: (Path(path).name, path))
        if not self.folders:
            raise DataError(f"{archive} has no patches of BigEarthNet v2.0 (BigEarthNet-S2/<product>/<patch>/)")
        self.names = tuple(Path(path).name for path in self.folders)
        if all(map(V1_NAME.fullmatch, self.names)):
            raise DataError(f"the patches in {archive} are of BigEarthNet v1.0. Convert them as bigearthnet-v1.")
        self.arrays = sentinel_arrays(bands, nodata=0)
        beside = [self.archive, self.archive.parent]
        self.reference = self._find_maps(reference_maps, beside)
        self.maps = (REFERENCE,) if self.reference else ()
        self._about = _Table(_tables([metadata] if metadata else beside, archive), self.names)
        self._listed = listed_splits(self.names, splits)
        self.notes = split_notes(self.names, splits)
        self.splits = ("official", *(name for name in self._listed if name != "official"))
        self.columns: tuple[Column, ...] = (
            *COMMON,
            *GEOREFERENCE,
            *REGION,
            *CONDITIONS,
            label_columns("labels_19", LABELS_19, True),
            *(split_column(name) for name in self.splits),
        )
        self.about: JsonMapping = {
            "source": "BigEarthNet v2.0",
            "bands": bands,
            "tables": digest_of(*self._about.arrays(), *self._listed.values()),
            "splits": list(self.splits),
            "reference_maps": bool(self.maps),
        }

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write a tiny archive for tests, and return its description with the values that its store must hold.

        It has six patches of one Sentinel-2 product, and a metadata table that lacks the last patch.

        Args:
            folder: Empty folder to write into.
        """
        product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
        patches, rows = [], []
        for row, part in enumerate(("train", "train", "train", "validation", "test", "")):
            target = folder / "BigEarthNet-S2" / product / f"{product}_{row}_45"
            patch = ExamplePatch(
                name=target.name,
                file=target / f"{target.name}_B02.tif",
                pixels={band: 100 * number + row for number, band in enumerate(BANDS, 1)},
                classes=("Pastures", LABELS_19[row]) if part else (),
                place=(48.2 + row / 10, 14.5),
                time=datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC),
                part=part,
                error="ok" if part else "no_metadata",
            )
            write_patch_folder(target, patch.pixels, patch.place or (0.0, 0.0))
            patches.append(patch)
            about = {"patch_id": patch.name, "labels": list(patch.classes), "split": part, "country": "Austria"}
            rows.append(about | {"contains_seasonal_snow": False, "contains_cloud_or_shadow": False})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:-1]), folder / TABLES[0])
        return Example(folder / "BigEarthNet-S2", tuple(patches), "labels_19")

    def read(self, row: int) -> Patch:
        """Read one patch, and return its bands, place, date, reference map, labels and flags.

        Labels and flags are in the metadata tables. A patch of v1.0, a second patch of one name, or a damaged patch is
        returned with an error in its list of problems.

        Args:
            row: Row of the patch in the store.
        """
        name, folder = self.names[row], self.archive / self.folders[row]
        patch = Patch()
        if V1_NAME.fullmatch(name):
            patch.complain(BadPatchError("foreign", f"{name} is of BigEarthNet v1.0: convert it as bigearthnet-v1"))
            return patch
        if row and self.names[row - 1] == name:
            patch.complain(BadPatchError("duplicate", f"{self.folders[row]} has the name of {self.folders[row - 1]}"))
            return patch
        parts: tuple[Callable[[], Values], ...] = (
            lambda: self._about.values(row),
            lambda: _date(name),
            lambda: _place(folder / f"{name}_B02.tif"),
        )
        for part in parts:
            try:
                patch.values |= part()
            except BadPatchError as problem:
                patch.complain(problem)
        patch.values |= {f"split_{split}": codes[row] for split, codes in self._listed.items()}
        read_bands(patch, folder, name, self.arrays)
        if self.reference is not None:
            self._read_map(patch, self.reference / folder.parent.name / name / f"{name}_reference_map.tif")
        return patch

    def _find_maps(self, given: Path | None, beside: list[Path]) -> Path | None:
        """Return the folder of the reference maps (a map of classes for each patch); None if there is none.

        Args:
            given: Folder that the user gave; None searches `beside`.
            beside: Folders that may have a folder `Reference_Maps`. The first one that has it wins.

        Raises:
            DataError: The given folder has no maps for the archive's products.
        """
        products = {Path(folder).parent.name for folder in self.folders}
        if given and not any((given / product).is_dir() for product in products):
            raise DataError(f"{given} has no maps of the patches in {self.archive} (Reference_Maps/<product>/)")
        found = [path / "Reference_Maps" for path in beside if (path / "Reference_Maps").is_dir()]
        return given or (found[0] if found else None)

    def _read_map(self, patch: Patch, path: Path) -> None:
        """Read the reference map in the file `path` (a map of classes), and add it to `patch.arrays`.

        If the file is missing, leave `patch` unchanged: the store then has zeros for this map. If it is damaged, add an
        error to the problems of `patch`.
        """
        try:
            patch.arrays[REFERENCE.name] = read_band(path, REFERENCE.height)[None]
        except BadPatchError as problem:
            if problem.code != "missing_band":  # a missing map is no error: labels do not come from it
                patch.complain(BadPatchError("bad_map", str(problem)))


def _list_patches(archive: Path) -> Iterator[str]:
    """Yield the paths of all patch folders as texts, relative to the folder `archive`.

    Patches of v1.0 that lie beside the product folders are listed too.
    """
    for product in folders_in(archive):
        if V1_NAME.fullmatch(product.name):
            yield product.name
            continue
        for entry in folders_in(product.path):
            if V1_NAME.fullmatch(entry.name) or V2_NAME.fullmatch(entry.name):
                yield f"{product.name}/{entry.name}"


def _tables(places: list[Path], archive: Path) -> pyarrow.Table:
    """Read the metadata tables of an archive, and return all their rows as one table.

    Args:
        places: Table files, and folders with table files of the usual names (`TABLES`).
        archive: Folder of the archive, for messages.

    Raises:
        DataError: A place does not exist, no table was found, a table lacks a column, or its labels are not lists.
    """
    for place in places:
        if not place.exists():
            raise DataError(f"there is no metadata at {place}")
    paths = [path for place in places for path in ([place] if place.is_file() else [place / name for name in TABLES])]
    found = [read_table(path) for path in paths if path.is_file()]
    if not found:
        raise DataError(f"there is no {TABLES[0]} beside {archive}. Give it with --metadata.")
    needed = ("patch_id", "labels", "split", "country", "contains_seasonal_snow", "contains_cloud_or_shadow")
    for table in found:
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise DataError(f"the metadata of {archive} lacks the columns {', '.join(missing)}")
        # A CSV copy of these tables holds each list of labels as text, and each letter would be taken for a label.
        if not getattr(table.schema.field("labels").type, "value_type", None):
            raise DataError(f"the metadata of {archive} has no lists of labels. Give the archive's own {TABLES[0]}.")
    return pyarrow.concat_tables([table.select(needed) for table in found], promote_options="permissive")


class _Table:
    """Hold the columns of the metadata tables: labels, split, country, flags.

    Each column has one entry for each patch of the archive, in the sequence of these patches.
    """

    def __init__(self, table: pyarrow.Table, names: tuple[str, ...]) -> None:
        place = {name: i for i, name in enumerate(table["patch_id"].to_pylist())}
        where = [place.get(name, -1) for name in names]
        self.known = np.array(where) >= 0
        chosen = table.take([max(i, 0) for i in where])
        part = {"train": 0, "validation": 1, "val": 1, "test": 2}
        self.split = np.array([part.get(name, NO_SPLIT) for name in chosen["split"].to_pylist()], np.uint8)
        self.country = np.array([name or "" for name in chosen["country"].to_pylist()], object)
        flags = [chosen[name].to_pylist() for name in ("contains_seasonal_snow", "contains_cloud_or_shadow")]
        self.flags = np.array(flags, bool)
        self.labels = pyarrow.compute.fill_null(chosen["labels"].combine_chunks(), [])

    def arrays(self) -> tuple[AnyArray, ...]:
        """Return the values of the metadata tables as arrays, each with one entry for each patch (flags: [2, patches]).

        A hash of these arrays tells conversions with other tables apart.
        """
        labels = [";".join(map(str, names)) for names in self.labels.to_pylist()]
        return self.known, self.split, self.flags, self.country.astype(np.str_), np.array(labels, np.str_)

    def values(self, row: int) -> Values:
        """Return labels, split, country, snow and clouds of a patch in the metadata tables, as a dict of store columns.

        Args:
            row: Row of the patch in the store.

        Raises:
            BadPatchError: The tables do not name the patch, or its labels are missing or unknown.
        """
        if not self.known[row]:
            raise BadPatchError("no_metadata", "the tables of metadata do not have it")
        snow, cloud = self.flags[:, row]
        return label_values(self.labels[row].as_py(), LABELS_19) | {
            "split_official": self.split[row],
            "country": self.country[row],
            "seasonal_snow": snow,
            "cloud_or_shadow": cloud,
        }


_SECOND = re.compile(r"_(\d{8}T\d{6})_")


def _date(name: str) -> Values:
    """Return the time and season in the name of a patch as a dict of store columns.

    Raises:
        BadPatchError: The name has no valid time, such as 20170613T101031.
    """
    try:
        found = _SECOND.search(name)
        when = datetime.strptime(found[1] if found else "", "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise BadPatchError("bad_time", "the name has no valid date") from None
    return time_values(when) | {"season": season_of(when)}


def _place(path: Path) -> Values:
    """Return the place of a patch as a dict of store columns, from one of its GeoTIFFs.

    These columns are latitude and longitude of the center, the upper left corner, and the EPSG code of the projection.
    The dict is empty if the file cannot be opened, since `read_bands` reports this.

    Args:
        path: GeoTIFF of one band.

    Raises:
        BadPatchError: The georeference of the file is missing or unusable.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return {}  # This is no error here, since `read_bands` reports the missing file.
    # Try the direct reader first: GDAL needs milliseconds to open a file, which is minutes for 590,326 patches.
    corner = utm_corner(data)
    if corner is None:
        frame = georeference(path, path.name)
        if isinstance(frame.projection, str):
            raise BadPatchError("bad_coordinates", f"{path.name} has a projection without EPSG code")
        corner = UtmCorner(frame.projection, *frame.upper_left)
    epsg, ulx, uly = corner
    try:
        return grid_place(epsg, (ulx, uly), (ulx + PATCH_SIDE, uly - PATCH_SIDE)) | {"utm_epsg": epsg}
    except ValueError as error:
        raise BadPatchError("bad_coordinates", f"{path.name}: {error}") from None
