"""Open a converted data set: its facts, its metadata columns, and readers of its pixels."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stssl.base.errors import DataError
from stssl.base.hashing import column_hash
from stssl.base.logs import LOG
from stssl.store.disk import DiskCache
from stssl.store.encode import SHARD_CHECKSUMS
from stssl.store.files import files_at
from stssl.store.reader import Stored, StoreReader
from stssl.store.remote import explained_if_remote, is_remote, zarr_place
from stssl.store.schema import SCHEMA_VERSION
from stssl.store.shards import MOST_PATCHES

__all__ = ["BandGroup", "Store", "StoreReader"]
COLUMN_HASHES = "column_hashes"
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What zarr raises where its metadata is not what it should be."""
_TOLD: set[str] = set()
"""Stores of which this process has told that they are without checksums."""


@dataclass(frozen=True)
class BandGroup:
    """Describe one array of pixels.

    Attributes:
        name: `b10`, `b20`, `b60` or `rgb`.
        bands: Names in stored order.
        height: Height in pixels.
        width: Width in pixels.
        dtype: Type of the stored values.
        statistics: For each band `mean`, `std`, `min`, `max`, `count`, and the split that they were computed on.
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    dtype: np.dtype[Any]
    statistics: dict[str, Any]


class Store:
    """Give access to an open store; each column is read when first asked for."""

    def __init__(self, path: str, group: Any) -> None:
        """Wrap an open Zarr group; use `Store.open`."""
        self.path, self._group = path, group
        self.attrs: dict[str, Any] = dict(group.attrs)
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a finished store.

        Raises:
            DataError: There is no store, its conversion was not finished, it is damaged, or it has another schema
                version.
        """
        text = str(path)
        if files_at(text).read("zarr.json") is None and (is_remote(text) or not Path(text).exists()):
            raise DataError(f"there is no store at {text}. Make one with `stssl convert`.")
        try:
            with explained_if_remote(text):
                group = zarr.open_group(zarr_place(text), mode="r")
        except DAMAGE as error:
            raise DataError(f"{text} is not a Zarr store: {error}") from None
        version = group.attrs.get("schema_version")
        if version is None:
            raise DataError(f"{text} is a Zarr group, but not a store of stssl: it has no schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{text} has schema version {version}, and this program reads {SCHEMA_VERSION}. "
                "Convert the archive again."
            )
        if not group.attrs.get("complete"):
            raise DataError(f"the conversion to {text} was not finished. Run the same `stssl convert` again.")
        store = cls(text, group)
        try:
            store._check_parts()
        except DAMAGE as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{text}: a zarr.json is damaged ({reason}). Copy the store again, or convert again."
            ) from None
        return store

    def _check_parts(self) -> None:
        """Make sure that all arrays are there, and warn once about a store that is older than checksums.

        Raises:
            DataError: An array is lost, or an attribute of the group is not of its type.
        """
        _require_types(self.attrs, f"{self.path}/zarr.json")
        known = (*self._images, *self.attrs.get(COLUMN_HASHES, ()))
        lost = [name for name in known if name not in self._group]
        if lost:
            raise DataError(
                f"{self.path} has lost its array {', '.join(lost)}. Copy the store again, or convert again."
            )
        if not self.has_checksums and self.path not in _TOLD:
            _TOLD.add(self.path)
            LOG.warning(
                "%s was written before stores had checksums of their %s: bytes that change there are not noticed. "
                "Convert the archive again to have them.",
                self.path,
                "columns and pixels" if COLUMN_HASHES not in self.attrs else "pixels",
            )

    @property
    def has_checksums(self) -> bool:
        """Return True if columns, patches and shards can be compared with what was converted."""
        return COLUMN_HASHES in self.attrs and all(SHARD_CHECKSUMS in self._group[name].attrs for name in self._images)

    @property
    def size(self) -> int:
        """Return N, the number of patches; unreadable ones are counted too."""
        return int(self.attrs["patches"])

    @cached_property
    def groups(self) -> dict[str, BandGroup]:
        """Return the pixel arrays by name, in order."""
        return {name: self._band_group(name) for name in self.attrs["pixel_arrays"]}

    @cached_property
    def maps(self) -> dict[str, BandGroup]:
        """Return the arrays of the same patches that are no image bands, by name."""
        return {name: self._band_group(name) for name in self.attrs.get("maps", ())}

    def _band_group(self, name: str) -> BandGroup:
        """Describe one pixel array from its metadata."""
        try:
            array = self._group[name]
            bands, (_, _, height, width) = tuple(array.attrs["bands"]), array.shape
            return BandGroup(name, bands, height, width, array.dtype, dict(array.attrs.get("statistics", {})))
        except DAMAGE as error:
            raise DataError(f"{self.path} has lost its array {name} ({error}). Convert the archive again.") from None

    @property
    def _images(self) -> tuple[str, ...]:
        """Return the names of the arrays that are no columns."""
        return (*self.attrs["pixel_arrays"], *self.attrs.get("maps", ()))

    @property
    def bands(self) -> tuple[str, ...]:
        """Return all bands in the order of the arrays."""
        return tuple(band for group in self.groups.values() for band in group.bands)

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Return the names of the label columns."""
        return tuple(self.attrs["label_sets"])

    @property
    def split_names(self) -> tuple[str, ...]:
        """Return the names of the stored splits."""
        return tuple(self.attrs["splits"])

    def classes(self, label_set: str) -> tuple[str, ...]:
        """Return the class names of a label column, in its order."""
        return tuple(self._array(label_set).attrs["classes"])

    def multilabel(self, label_set: str) -> bool:
        """Return True if a patch may have any number of classes in a label column."""
        return bool(self._array(label_set).attrs["kind"] == "multi-label")

    def has_column(self, name: str) -> bool:
        """Return True if there is a metadata array of that name."""
        return name in self._group and name not in self._images

    def column(self, name: str) -> NDArray[Any]:
        """Read a metadata array [N] or [N, C] and compare it with the hash of what was converted.

        Raises:
            DataError: There is none of that name (the message lists those there are), or it is not the one that was
                converted.
        """
        if name not in self._columns:
            values = self.unchecked(name)
            if not self.is_converted(name, values):
                raise DataError(
                    f"{self.path}/{name} is not the column that was converted: its file is lost, damaged or another "
                    "store's. Copy the store again, or convert again."
                )
            self._columns[name] = values
        return self._columns[name]

    def unchecked(self, name: str) -> NDArray[Any]:
        """Read a metadata array as it is stored, without comparing it with what was converted.

        Raises:
            DataError: There is none of that name, or it cannot be read.
        """
        try:
            with explained_if_remote(self.path):
                values = np.asarray(self._array(name)[:])
        except DAMAGE as error:
            raise DataError(f"{self.path}: column {name} cannot be read ({error}). Convert again.") from None
        # NumPy cannot cast its own variable-length strings to fixed-width ones; it can cast Python's.
        return values.astype(object) if values.dtype.kind == "T" else values

    def is_converted(self, name: str, values: NDArray[Any]) -> bool:
        """Return True if a column's values are those that were converted; zarr reads a lost chunk as missing values.

        Older stores have no hashes to compare with, and count as unchanged.
        """
        hashed = self.attrs.get(COLUMN_HASHES, {}).get(name)
        return len(values) == self.size and (hashed is None or column_hash(values) == hashed)

    def column_attributes(self, name: str) -> dict[str, Any]:
        """Return the attributes of a metadata array: units, class names, meanings."""
        return dict(self._array(name).attrs)

    def _array(self, name: str) -> Any:
        """Return a metadata array.

        Raises:
            DataError: There is none of that name.
        """
        if not self.has_column(name):
            known = sorted(key for key in self._group.array_keys() if key not in self._images)
            raise DataError(f"{self.path} has no column '{name}'. It has: {', '.join(known)}.")
        return self._group[name]

    def statistics(self, bands: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation of each band, in the given order.

        Raises:
            DataError: The store has no statistics of a band.
        """
        known: dict[str, tuple[float, float]] = {}
        for group in self.groups.values():
            values = group.statistics if isinstance(group.statistics, dict) else {}
            for i, band in enumerate(group.bands):
                own = [_number(values.get(key), i, f"{self.path}/{group.name}", key) for key in ("mean", "std")]
                if own[0] is not None and own[1] is not None:
                    known[band] = (own[0], max(own[1], 1e-6))
        missing = [band for band in bands if band not in known]
        if missing:
            raise DataError(f"{self.path} has no statistics of {', '.join(missing)}: no training patch has them")
        mean, std = zip(*(known[band] for band in bands), strict=True)
        return np.array(mean, np.float32), np.array(std, np.float32)

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of pixels, labels and layout for the record of a run."""
        digest = hashlib.blake2b(json.dumps([self.attrs["schema_version"], self.bands]).encode(), digest_size=16)
        for name in ("content_hash", *self.label_sets):
            digest.update(np.ascontiguousarray(self.column(name)).tobytes())
        return digest.hexdigest()

    def about(self) -> dict[str, str]:
        """Return the store's path and fingerprint for the record of a run."""
        return {"path": self.path, "fingerprint": self.fingerprint}

    def reader(
        self, bands: Sequence[str], threads: int = 1, direct: bool = True, *, cache: DiskCache | None = None
    ) -> StoreReader:
        """Make a reader of some bands.

        Args:
            bands: Wanted bands.
            threads: Number of threads that share a batch.
            direct: True to read shard files directly if their layout is known; else zarr reads them.
            cache: Cache for shards of an object store; without it, zarr reads there.
        """
        return StoreReader(self.path, self._stored(self.groups), bands, threads, direct, cache=cache)

    def map_reader(self, cache: DiskCache | None = None) -> StoreReader:
        """Make a reader of all `maps`."""
        bands = [band for group in self.maps.values() for band in group.bands]
        return StoreReader(self.path, self._stored(self.maps), bands, cache=cache)

    def _stored(self, groups: dict[str, BandGroup]) -> dict[str, Stored]:
        return {
            name: Stored(group.bands, (self.size, len(group.bands), group.height, group.width), group.dtype)
            for name, group in groups.items()
        }


def _require_types(attributes: dict[str, Any], where: str) -> None:
    """Refuse attributes of a group that later code could not use: names, the number of patches, hashes.

    Raises:
        DataError: One is of another type or size; names file and key.
    """

    def wrong(key: str, what: str) -> DataError:
        return DataError(f"{where}: attributes.{key} must be {what}. Copy the store again, or convert again.")

    for key in ("pixel_arrays", "maps", "label_sets", "splits"):
        names = attributes.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise wrong(key, "a list of names")
        if len(set(names)) < len(names):
            raise wrong(key, "a list of names that differ")
    if not attributes.get("pixel_arrays"):
        raise wrong("pixel_arrays", "a list of at least one name")
    patches = attributes.get("patches")
    if type(patches) is not int or not 0 <= patches <= MOST_PATCHES:
        raise wrong("patches", f"a whole number from 0 to {MOST_PATCHES:,}")
    hashes = attributes.get(COLUMN_HASHES, {})
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise wrong(COLUMN_HASHES, "a hash for each column")


def _number(values: Any, place: int, where: str, key: str) -> float | None:
    """Return one of a band's statistics; None if there is none.

    Raises:
        DataError: It is no number.
    """
    try:
        value = values[place] if values is not None else None
        number = None if value is None else float(value)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        number = math.nan
    if number is None or math.isfinite(number):
        return number
    raise DataError(f"{where}/zarr.json: statistics.{key} is no list of a number a band. Convert the archive again.")
