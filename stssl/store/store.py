"""Open a store: its description, its metadata columns, and readers of its pixels."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Ints
from stssl.base.errors import ConfigError, DataError
from stssl.base.hashing import column_hash
from stssl.base.remote import explained_if_remote, zarr_place
from stssl.store.disk import DiskCache
from stssl.store.encode import SHARD_CHECKSUMS
from stssl.store.reader import Stored, StoreReader, open_array
from stssl.store.schema import ColumnArray
from stssl.store.shard_layout import ZarrTree
from stssl.store.zarr_metadata import COLUMN_HASHES, DESCRIPTION_HASHES, Description, read_description

if TYPE_CHECKING:
    import xarray

__all__ = ["BandGroup", "Store", "StoreReader"]
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""Exceptions that zarr raises if a chunk of a column is damaged."""
_TOLD: set[str] = set()
"""Stores without checksums that this process has warned about."""


@dataclass(frozen=True)
class BandGroup:
    """Describe one pixel array of an open store: the bands of one resolution, or a map.

    Attributes:
        name: `b10`, `b20`, `b60` or `rgb`; other names for maps.
        bands: Names of the bands, sorted as in the array.
        height: Height in pixels.
        width: Width in pixels.
        dtype: Type of the stored values.
        statistics: Lists `mean`, `std`, `min`, `max` and `count`, each with a number for each band. The text `split`
            names the patches from which they were computed, such as `official:train`. Empty for maps.
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    dtype: np.dtype[np.generic]
    statistics: Mapping[str, Any]


class Store:
    """Give access to the description, the metadata columns and the pixels of a store.

    A metadata column has one row for each patch. It is read at its first use.
    """

    def __init__(self, path: str, description: Description) -> None:
        """Make a store object from a checked description.

        Users call `Store.open` instead, which reads the description itself.

        Args:
            path: Path or URL of the store.
            description: Checked description of the store.
        """
        self.path, self.description = path, description
        self.attrs = description.attributes
        self._columns: dict[str, ColumnArray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a finished store, and return it. If it is so old that it has no checksums, log one warning.

        Args:
            path: Path or URL of the store.

        Raises:
            DataError: The store does not exist, its conversion did not finish, it has another schema version, or its
                description is damaged or changed since the conversion.
        """
        store = cls(str(path), read_description(str(path)))
        if store.unprotected and store.path not in _TOLD:
            _TOLD.add(store.path)
            logging.getLogger("stssl").warning(
                "%s was written before stores had checksums of their %s: what changes there is not noticed. "
                "Convert the archive again to have them.",
                store.path,
                " and ".join(store.unprotected),
            )
        return store

    @property
    def unprotected(self) -> tuple[str, ...]:
        """Return which of `columns`, `pixels` and `descriptions` have no checksums.

        Only older stores lack some of them.
        """
        parts = {
            "columns": COLUMN_HASHES in self.attrs,
            "pixels": all(SHARD_CHECKSUMS in self.description.about(name) for name in self.description.images),
            "descriptions": DESCRIPTION_HASHES in self.attrs,
        }
        return tuple(part for part, compared in parts.items() if not compared)

    @property
    def size(self) -> int:
        """Return N, the number of patches in the store. Unreadable patches count too."""
        return int(self.attrs["patches"])

    @cached_property
    def groups(self) -> dict[str, BandGroup]:
        """Return a description of each image array of the store, by name. There is one array for each resolution."""
        return {name: self._band_group(name) for name in self.attrs["pixel_arrays"]}

    @cached_property
    def maps(self) -> dict[str, BandGroup]:
        """Return a description of each map of the store, by name. Maps are pixel arrays without image bands."""
        return {name: self._band_group(name) for name in self.attrs.get("maps", ())}

    def _band_group(self, name: str) -> BandGroup:
        meta, about = self.description.arrays[name], self.description.about(name)
        _, _, height, width = meta["shape"]
        dtype = np.dtype(meta["data_type"])
        return BandGroup(name, tuple(about["bands"]), height, width, dtype, dict(about.get("statistics", {})))

    @property
    def bands(self) -> tuple[str, ...]:
        """Return the names of all bands of the store, sorted by image array. Bands of maps are not among them."""
        return tuple(band for group in self.groups.values() for band in group.bands)

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Return the names of the store's label sets. Each is a metadata column with classes of its own."""
        return tuple(self.attrs["label_sets"])

    @property
    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits into train, validation and test that the store has."""
        return tuple(self.attrs["splits"])

    def classes(self, label_set: str) -> tuple[str, ...]:
        """Return the class names of a label set. Their indexes are the class numbers in its column.

        Args:
            label_set: Name of the label set.

        Raises:
            DataError: The store has no such column.
        """
        return tuple(self.column_attributes(label_set)["classes"])

    def multilabel(self, label_set: str) -> bool:
        """Return True if a patch may have any number of classes of a label set, False if it has one.

        Args:
            label_set: Name of the label set.

        Raises:
            DataError: The store has no such column.
        """
        return bool(self.column_attributes(label_set)["kind"] == "multi-label")

    def has_column(self, name: str) -> bool:
        """Return True if the store has a metadata column with this name."""
        return name in self.description.arrays and name not in self.description.images

    def column(self, name: str) -> ColumnArray:
        """Read a column of metadata, such as `lat`, and check that it did not change since the conversion.

        Args:
            name: Name of a column, such as `lat` and `lon` (degrees; NaN if missing), `day_of_year` (1 to 366), `time`
                (seconds since 1970 in UTC) or a label set.

        Returns:
            Array [N], or [N, values] for a column with several values for each patch, where N is the number of patches.

        Raises:
            DataError: The store has no such column, or the column changed since the conversion. In the first case, the
                message lists all columns.
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

    def unchecked(self, name: str) -> ColumnArray:
        """Read a column of metadata, such as `lat`, without a check that it did not change since the conversion.

        Args:
            name: Name of the column.

        Returns:
            Array [N], or [N, values] for a column with several values for each patch, where N is the number of patches.

        Raises:
            DataError: The store has no such column, or the column cannot be read.
        """
        try:
            with explained_if_remote(self.path):
                values = np.asarray(open_array(self.path, name, self._meta(name))[:])
        except DAMAGE as error:
            raise DataError(f"{self.path}: column {name} cannot be read ({error}). Convert again.") from None
        # Convert NumPy's variable-length strings to Python's: callers cast texts to fixed-width types, and NumPy cannot
        # cast its own variable-length strings.
        return values.astype(object) if values.dtype.kind == "T" else values

    def is_converted(self, name: str, values: AnyArray) -> bool:
        """Return True if the values of a column did not change since the conversion.

        zarr reads a lost chunk as missing values. The hash of the column finds this. For older stores, which have no
        hashes, return True if the column has one row for each patch.

        Args:
            name: Name of the column.
            values: Values of the column, as the store has them now.
        """
        hashed = self.attrs.get(COLUMN_HASHES, {}).get(name)
        return len(values) == self.size and (hashed is None or column_hash(values) == hashed)

    def column_attributes(self, name: str) -> dict[str, Any]:
        """Return the Zarr attributes of a metadata column by name: units, class names, meanings of codes.

        Args:
            name: Name of the column.

        Raises:
            DataError: The store has no such column.
        """
        return dict(self._meta(name).get("attributes", {}))

    def _meta(self, name: str) -> ZarrTree:
        if not self.has_column(name):
            known = sorted(key for key in self.description.arrays if self.has_column(key))
            raise DataError(f"{self.path} has no column '{name}'. It has: {', '.join(known)}.")
        return self.description.arrays[name]

    def statistics(self, bands: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return two arrays [bands]: the mean and the standard deviation of each band.

        For a constant band, return the deviation 1 instead of 0, because pixels are divided by it.

        Args:
            bands: Names of bands. The arrays have their sequence.

        Raises:
            DataError: The store has no statistics for a band.
        """
        known: dict[str, tuple[float, float]] = {}
        for group in self.groups.values():
            none = [None] * len(group.bands)
            means, deviations = (group.statistics.get(key, none) for key in ("mean", "std"))
            for band, mean, deviation in zip(group.bands, means, deviations, strict=True):
                if mean is not None and deviation is not None:
                    known[band] = (mean, deviation if deviation > 0 else 1.0)
        missing = [band for band in bands if band not in known]
        if missing:
            raise DataError(f"{self.path} has no statistics of {', '.join(missing)}: no training patch has them")
        found = np.array([known[band] for band in bands], np.float32)
        return found[:, 0], found[:, 1]

    def published_statistics(self) -> dict[str, tuple[float, float]]:
        """Return the band statistics that the makers of the archive published.

        Returns:
            (mean, standard deviation) of each band by its name; empty if the store has no published statistics.

        Raises:
            DataError: The store's attribute `published_statistics` does not hold numbers for bands.
        """
        held = self.attrs.get("published_statistics")
        if held is None:
            return {}
        try:
            rows = zip(held["bands"], map(float, held["mean"]), map(float, held["std"]), strict=True)
            found = {str(band): (mean, std) for band, mean, std in rows}
        except (TypeError, KeyError, ValueError):
            found = {}
        if not found or not all(math.isfinite(mean) and 0 < std < math.inf for mean, std in found.values()):
            raise DataError(
                f"{self.path}: its attribute published_statistics does not hold a mean and std of each band"
            )
        return found

    def constant(self, bands: Sequence[str]) -> list[str]:
        """Return a list of those bands that are constant: all pixels that count for their statistics have one value.

        Args:
            bands: Names of the bands to look at.
        """
        return [
            band
            for group in self.groups.values()
            for band, deviation in zip(group.bands, group.statistics.get("std", ()), strict=False)
            if band in bands and deviation == 0
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the store's pixels, labels, bands and schema version, as hexadecimal text.

        A run records it. So it is noticed later if the store has changed.
        """
        digest = hashlib.blake2b(json.dumps([self.attrs["schema_version"], self.bands]).encode(), digest_size=16)
        for name in ("content_hash", *self.label_sets):
            digest.update(np.ascontiguousarray(self.column(name)).tobytes())
        return digest.hexdigest()

    def about(self) -> dict[str, str]:
        """Return the store's path and its fingerprint (a hash of the contents) by name, for the record of a run."""
        return {"path": self.path, "fingerprint": self.fingerprint}

    def read(self, rows: Sequence[int] | Ints, bands: Sequence[str] | None = None) -> NDArray[Any]:
        """Read the stored pixels of patches, given their rows in the store.

        Args:
            rows: n store rows. They need not be sorted. The result has their sequence.
            bands: Names of bands of one resolution. The result has their sequence. None reads all bands of the first
                pixel array.

        Returns:
            [n, bands, height, width] array with the type of the stored values.

        Raises:
            ConfigError: A band is unknown, or the bands have different resolutions.
            DataError: The store has no such row, or a shard is damaged.
        """
        wanted = tuple(next(iter(self.groups.values())).bands if bands is None else bands)
        unknown = [band for band in wanted if band not in self.bands]
        if unknown or not wanted:
            missing = ", ".join(unknown) or "(none given)"
            raise ConfigError(f"{self.path} has no band {missing}. It has: {', '.join(self.bands)}.")
        groups = [group for group in self.groups.values() if set(group.bands) & set(wanted)]
        if len(groups) > 1:
            sizes = "; ".join(f"{group.height} pixels: {', '.join(group.bands)}" for group in groups)
            raise ConfigError(f"bands of one call must have one size ({sizes}). Read them in several calls.")
        reader = self.reader(wanted)
        found = reader.read(np.asarray(rows, np.int64))[groups[0].name]
        stored = reader.layout[groups[0].name]
        return found[:, [stored.index(band) for band in wanted]]

    def to_xarray(self) -> "xarray.Dataset":
        """Open the store with xarray, which reads each array at its first use.

        Returns:
            A data set with pixel arrays [N, bands, height, width], such as `b10` for bands of 10 m, and columns [N], by
            name. The first dimension is `patch`.

        Raises:
            ConfigError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise ConfigError("Store.to_xarray() needs xarray: pip install 'stssl[xarray]'") from None
        opened: xarray.Dataset = xarray.open_zarr(zarr_place(self.path, read_only=True), consolidated=False)
        return opened

    def reader(
        self, bands: Sequence[str], threads: int = 1, direct: bool = True, *, cache: DiskCache | None = None
    ) -> StoreReader:
        """Return a reader, which reads the pixels of some bands for many patches at once.

        Args:
            bands: Names of the wanted bands.
            threads: Number of threads that share the work of reading a batch.
            direct: True to read shard files directly if their layout is known. False reads them with zarr-python.
            cache: Cache on disk for shards of an object store. Without a cache, zarr-python reads the object store.

        Raises:
            DataError: A pixel array has no description, or a damaged one.
        """
        return StoreReader(self.path, self._stored(self.groups), bands, threads, direct, cache=cache)

    def map_reader(self, cache: DiskCache | None = None) -> StoreReader:
        """Return a reader of the pixels of all maps.

        Maps are pixel arrays without image bands, such as one of land cover.

        Args:
            cache: Cache on disk for a store in an object store; without it, zarr reads the object store. Not used
                for a store on disk.
        """
        bands = [band for group in self.maps.values() for band in group.bands]
        return StoreReader(self.path, self._stored(self.maps), bands, cache=cache)

    def _stored(self, groups: dict[str, BandGroup]) -> dict[str, Stored]:
        return {
            name: Stored(
                group.bands,
                (self.size, len(group.bands), group.height, group.width),
                group.dtype,
                self.description.arrays[name],
                self.description.digest,
            )
            for name, group in groups.items()
        }
