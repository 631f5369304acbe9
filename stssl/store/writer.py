"""Write a store shard by shard. A conversion can stop at any point and resume.

A shard (a file of many patches) is written in three steps: its pixels, a sidecar file with the metadata of its patches,
and a marker file with the hash of the sidecar. When all markers exist, the metadata arrays follow, each in one chunk.
The last step sets `complete` in the attributes of the group, in one atomic write. A repeated step writes the same
bytes.
"""

import csv
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from stssl.base.arrays import AnyArray
from stssl.base.errors import DataError
from stssl.base.hashing import column_hash
from stssl.base.json_types import JsonObject
from stssl.base.remote import is_remote, split_url, zarr_place
from stssl.base.textfiles import parse_json
from stssl.store.band_statistics import statistics, tally
from stssl.store.encode import LEVEL, SHARD_CHECKSUMS, encode_shard, shard_checksum, tail_bytes
from stssl.store.files import files_at
from stssl.store.identities import differing
from stssl.store.schema import ERRORS, SCHEMA_VERSION, UNUSABLE, Column, Patch, PixelArray, printable
from stssl.store.shard_layout import known_layout
from stssl.store.store_plan import CODECS, ColumnArrays, StorePlan, measured_masks, stacked
from stssl.store.zarr_metadata import DESCRIPTION_HASHES, description_hashes, read_array, read_description, read_file


class Writer:
    """Write one store. Several processes can write shards (files of many patches) of it: each gets a pickled copy."""

    def __init__(self, store: str, plan: StorePlan) -> None:
        """Set where to write the store, and what it will contain. Write nothing yet.

        Args:
            store: Path or URL of the store.
            plan: Plan of the store's arrays, columns and splits.
        """
        self.store, self.plan = store.rstrip("/"), plan
        parent, _, name = self.store.rpartition("/")
        self.files, self.work = files_at(self.store), files_at(f"{parent}/.{name}.work")
        self.beside, self.report = files_at(parent), f"{name}.errors.csv"

    def attributes(self) -> JsonObject:
        """Return the attributes of the store's Zarr group. They are empty if the store does not exist yet.

        Raises:
            DataError: The description of the group is damaged.
        """
        content = read_file(self.store, "zarr.json")
        if content is None:
            return {}
        advice = "Remove the store, or choose another path."
        tree: dict[str, Any] = parse_json(content, f"{self.store}/zarr.json is damaged: it", advice=advice)
        attributes = tree.get("attributes", {})
        if not isinstance(attributes, dict) or not isinstance(attributes.get("conversion", {}), dict):
            raise DataError(f"{self.store}/zarr.json is damaged: attributes say no conversion. {advice}")
        return attributes

    def prepare(self) -> None:
        """Create the store with empty pixel arrays.

        If it exists already, check that a conversion with the same plan began it. An unfinished store of an older
        version of this program is emptied, and begins again.

        Raises:
            DataError: The path holds other files or another conversion, or it cannot be written.
        """
        if is_remote(self.store) and not split_url(self.store)[1]:
            raise DataError(f"{self.store} is a whole bucket. Give a path in it, such as {self.store}/NAME.zarr.")
        if not is_remote(self.store) and Path(self.store).is_file():
            raise DataError(f"{self.store} is a file. Choose another path.")
        found: Any = self.attributes().get("conversion")
        if found == self.plan.identity and (self.is_complete() or self._arrays_are_ours()):
            self.files.remove_partial()
            return
        if found is not None and found != self.plan.identity:
            raise DataError(
                f"{self.store} was converted from something else: {differing(found, self.plan.identity)}. Give another "
                "path, or delete the store and convert again."
            )
        strangers = self.files.names()
        if found is None and strangers and "begun" not in self.work.names():
            raise DataError(f"{self.store} is not empty and not a store ({strangers[0]}). Choose another path.")
        self.work.remove()
        self.work.write("begun", b"")
        for array in (*self.plan.arrays, *self.plan.maps):
            (self.files / array.name).remove()
            self._create(array)
        attributes = {"schema_version": SCHEMA_VERSION, "conversion": self.plan.identity, "complete": False}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        self.files.write("zarr.json", json.dumps(group, indent=2).encode())

    def _create(self, array: PixelArray) -> None:
        """Create one pixel array of the store: its `zarr.json` only, without pixels.

        Args:
            array: Description of the array.
        """
        codec = CODECS[self.plan.codec]
        blosc = [BloscCodec(cname=codec, clevel=LEVEL, shuffle="bitshuffle")] if codec else []
        zarr.create_array(
            zarr_place(self.store),
            name=array.name,
            shape=(self.plan.patches, *array.shape),
            chunks=(1, *array.shape),
            shards=(self.plan.shard, *array.shape),
            dtype=array.dtype,
            compressors=[*blosc, Crc32cCodec()],
            fill_value=0,
            dimension_names=array.dimensions,
            attributes=array.attributes,  # type: ignore[arg-type]  # zarr has a name of its own for JSON values
        )

    def _arrays_are_ours(self) -> bool:
        """Return True if the store already has all planned pixel arrays, in a format with a checksum for each patch.

        Older versions of this program wrote no checksums. Their unfinished conversions must begin again.
        """
        found = [read_array(self.store, array.name) for array in (*self.plan.arrays, *self.plan.maps)]
        layouts = [known_layout(about) for about in found if about is not None]
        return len(layouts) == len(found) and all(layout is not None and layout.checked for layout in layouts)

    def is_complete(self) -> bool:
        """Return True if a conversion has finished the store."""
        return self.attributes().get("complete") is True

    def missing(self) -> list[int]:
        """Return a list of the numbers of the shards (files of many patches) that are not written yet, or not whole."""
        if self.is_complete():
            return []
        there = set(self.work.names())
        return [i for i in range(self.plan.shards) if f"{i:06d}.done" not in there or not self._is_whole(i)]

    def _is_whole(self, shard: int) -> bool:
        """Return True if the shard (a file of many patches) with this number was written whole.

        All its files must exist and match their checksums.
        """
        sidecar = self._sidecar(shard)
        if sidecar is None:
            return False
        with np.load(io.BytesIO(sidecar)) as part:
            # Count a sidecar without some columns as not whole: older versions of this program wrote fewer columns, so
            # their shards must be written again.
            return all(column.name in part for column in self.plan.columns) and all(
                f"shard_{array.name}" in part
                and self._checksum_there(array.name, shard) == int(part[f"shard_{array.name}"])
                for array in (*self.plan.arrays, *self.plan.maps)
            )

    def _checksum_there(self, name: str, shard: int) -> int | None:
        """Return the checksum of the end of a shard file, which has its index. Return None if the file is missing.

        Args:
            name: Name of the pixel array.
            shard: Number of the shard.
        """
        tail = self.files.tail(f"{name}/c/{shard}/0/0/0", tail_bytes(self.plan.shard))
        return None if tail is None else shard_checksum(tail)

    def _sidecar(self, shard: int) -> bytes | None:
        """Return the contents of the file (the sidecar) that holds the metadata of a shard's patches, an npz archive.

        Return None if the file is missing, or does not match the hash in the marker file, which is written last.

        Args:
            shard: Number of the shard (a file of many patches).
        """
        marker, sidecar = self.work.read(f"{shard:06d}.done"), self.work.read(f"{shard:06d}.npz")
        return sidecar if sidecar is not None and marker == _digest(sidecar) else None

    def write_shard(self, shard: int, names: Sequence[str], patches: list[Patch]) -> None:
        """Write the pixels and the metadata of a shard (a file of many patches).

        Last, write a marker file, which says that the shard is whole.

        Args:
            shard: Number of the shard.
            names: Names of the patches of the shard.
            patches: The patches, one for each name.
        """
        checksums = {}
        pixels = {array.name: stacked(patches, array) for array in self.plan.arrays}
        maps = {array.name: stacked(patches, array) for array in self.plan.maps}
        for name, block in (pixels | maps).items():
            shard_bytes = encode_shard(block, self.plan.shard, CODECS[self.plan.codec], checked=True)
            self.files.write(f"{name}/c/{shard}/0/0/0", shard_bytes)
            # Compute the checksum from the bytes in memory, not from the file: else it would fit a file that the disk
            # has damaged.
            checksums[f"shard_{name}"] = np.array(shard_checksum(shard_bytes[-tail_bytes(self.plan.shard) :]), np.int64)
        columns = self.plan.metadata(names, patches, pixels)
        sidecar = {
            c.name: columns[c.name].astype(np.str_ if c.dtype == "string" else c.dtype) for c in self.plan.columns
        }
        counted = self.plan.counted(columns)
        for array in self.plan.arrays:
            for key, value in tally(
                pixels[array.name][counted], array.nodata, measured_masks(patches, array, counted)
            ).items():
                sidecar[f"{key}_{array.name}"] = value
        problems = [[name, *problem] for name, patch in zip(names, patches, strict=True) for problem in patch.problems]
        buffer = io.BytesIO()
        sidecar |= checksums
        # Ignore the type: mypy takes every keyword for the argument `allow_pickle`, because of numpy's type hints.
        np.savez_compressed(buffer, problems=np.array(json.dumps(problems)), **sidecar)  # type: ignore[arg-type]
        self.work.write(f"{shard:06d}.npz", buffer.getvalue())
        # Write the marker last: after a crash, a shard without a marker is written again.
        self.work.write(f"{shard:06d}.done", _digest(buffer.getvalue()))

    def require_usable(self) -> None:
        """Check that at least one patch of the store can be used. If none can, remove the store and its working files.

        Check nothing if shards are missing (`finish` reports these), or if the store is finished.

        Raises:
            DataError: No patch can be used. The message has the problem of the first one.
        """
        if self.is_complete():
            return
        first = ""
        for shard in range(self.plan.shards):
            sidecar = self._sidecar(shard)
            if sidecar is None:
                return  # raise no error here: `finish` tells the user which shards are missing
            with np.load(io.BytesIO(sidecar)) as part:
                if not np.isin(part["error_code"], UNUSABLE).all():
                    return
                for name, code, words in json.loads(str(part["problems"])):
                    if ERRORS[code] in UNUSABLE:
                        first = first or f"{printable(name)}: {code}: {printable(words, 300)}"
        self.files.remove()
        self.work.remove()
        raise DataError(
            f"no patch can be used (0 of {self.plan.patches:,}), so no store is written. The first: {first}"
        )

    def finish(self) -> dict[str, int]:
        """Finish a store after its last shard (a file of many patches): write columns, statistics and the error report.

        Then mark the store as complete, and remove the working files.

        Returns:
            For the name of each error, the number of problems of this kind that patches have.

        Raises:
            DataError: Some shards are missing. For example, another node wrote them to its own disk.
        """
        if not self.is_complete():
            lost = self.missing()
            if lost:
                raise DataError(
                    f"{len(lost)} of {self.plan.shards} shards of {self.store} were written and are not here "
                    f"(the first: {lost[0]}). Give a folder that all nodes see, or a URL, and convert again."
                )
            # Open the sidecars without reading all of them: the histograms of an archive take a gigabyte, and each step
            # needs one array.
            parts = [np.load(io.BytesIO(self._sidecar(shard) or b"")) for shard in range(self.plan.shards)]
            group = zarr.open_group(zarr_place(self.store), mode="r+", use_consolidated=False)
            columns = {c.name: np.concatenate([part[c.name] for part in parts]) for c in self.plan.columns}
            columns["location_id"] = location_ids(columns)
            for column in self.plan.columns:
                _write_column(group, column, columns[column.name])
            self._write_statistics(group, parts)
            for array in (*self.plan.arrays, *self.plan.maps):
                group[array.name].attrs[SHARD_CHECKSUMS] = [int(part[f"shard_{array.name}"]) for part in parts]
            hashes = {c.name: column_hash(columns[c.name]) for c in self.plan.columns}
            self._mark_complete(self._write_report(parts), hashes)
        self.work.remove()
        return dict(read_description(self.store).attributes.get("errors", {}))

    def _write_statistics(self, group: Any, parts: list[NpzFile]) -> None:
        """Compute the statistics of all image bands from the pixel counts of the shards. Write them into the store.

        Args:
            group: Open Zarr group of the store.
            parts: Metadata file (sidecar) of each shard, which has its pixel counts.
        """
        split = self.plan.statistics_split
        source = f"{split}:train" if split in self.plan.splits else "all"
        for array in self.plan.arrays:
            tallies = [{key: part[f"{key}_{array.name}"] for key in ("sums", "bins")} for part in parts]
            group[array.name].attrs["statistics"] = statistics(tallies, array.dtype, source)

    def _write_report(self, parts: list[NpzFile]) -> dict[str, int]:
        """Write a CSV file with the problems of all patches beside the store.

        Args:
            parts: Metadata file (sidecar) of each shard, which has the problems of its patches.

        Returns:
            For the name of each error, the number of problems of this kind.
        """
        problems = [row for part in parts for row in json.loads(str(part["problems"]))]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["patch", "error", "details"], *problems])
        self.beside.write(self.report, text.getvalue().encode("utf-8", "backslashreplace"))
        return dict(sorted(Counter(code for _, code, _ in problems).items()))

    def _mark_complete(self, errors: dict[str, int], hashes: dict[str, str]) -> None:
        """Write the attributes of the store, and copies of the arrays' descriptions.

        The last write says that the store is complete: readers need this mark.

        Args:
            errors: For the name of each error, the number of problems of this kind.
            hashes: Hash of each metadata column, by its name.
        """
        about: JsonObject = {
            "schema_version": SCHEMA_VERSION,
            "conversion": self.plan.identity,
            "complete": False,
            "pixel_arrays": [array.name for array in self.plan.arrays],
            "maps": [array.name for array in self.plan.maps],
            "label_sets": [*self.plan.label_sets],
            "splits": [*self.plan.splits],
            "patches": self.plan.patches,
            "column_hashes": {**hashes},
            "errors": {**errors},
            "error_codes": {**ERRORS},
        }
        zarr.open_group(zarr_place(self.store), mode="r+", use_consolidated=False).attrs.update(
            about | self.plan.attributes
        )
        with warnings.catch_warnings():
            # Write consolidated metadata although zarr warns that Zarr v3 does not specify them yet: without them,
            # opening a remote store takes one request for each array.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(zarr_place(self.store))
        whole = json.loads(self.files.read("zarr.json") or b"{}")
        arrays = whole["consolidated_metadata"]["metadata"]
        whole["attributes"][DESCRIPTION_HASHES] = description_hashes(whole["attributes"], arrays)
        whole["attributes"]["complete"] = True
        self.files.remove_partial()
        self.files.write("zarr.json", json.dumps(whole, indent=2).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).hexdigest().encode()


def location_ids(columns: ColumnArrays) -> NDArray[np.int32]:
    """Return a number for the place on earth of each of N patches, [N]. Patches of one place have equal numbers.

    Two patches show one place if they have equal UTM corners. A patch without known corners gets -1. If the store has
    no columns of corners, return the archive's own numbers.

    Args:
        columns: Metadata columns of all patches, by name.
    """
    if "ulx" not in columns:
        return np.asarray(columns["location_id"], np.int32)
    corner = np.stack([columns["utm_epsg"], columns["ulx"], columns["uly"]], 1)
    known = np.isfinite(corner).all(1) & (columns["utm_epsg"] > 0)
    ids = np.full(len(corner), -1, np.int32)
    ids[known] = np.unique(corner[known], axis=0, return_inverse=True)[1].reshape(-1)
    return ids


def _write_column(group: Any, column: Column, values: AnyArray) -> None:
    """Write one metadata column into the store, as an array with a single chunk, so that readers open few files.

    Args:
        group: Open Zarr group of the store.
        column: Description of the column.
        values: Values of the column, one row for each patch. Missing values are already replaced by the fill value.
    """
    dimensions = ("patch", f"{column.name}_entry")[: values.ndim]
    options: dict[str, Any] = {"dtype": column.dtype, "fill_value": column.fill}
    array = group.create_array(
        column.name,
        shape=values.shape,
        chunks=tuple(max(1, size) for size in values.shape),
        dimension_names=dimensions,
        attributes=column.attributes,
        overwrite=True,
        **options,
    )
    array[:] = values.astype(object) if column.dtype == "string" else values
