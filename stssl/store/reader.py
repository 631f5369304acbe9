"""Read the pixels of many patches of a store at once, into the arrays of a batch.

Arrays with the layout of `stssl convert` are read from their shard files (`shards`), or from an object store through a
disk cache (`fetched`). zarr-python reads any other layout or codec, with equal results.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath

from stssl.base.arrays import Ints
from stssl.base.errors import DataError
from stssl.base.remote import explained_if_remote, is_remote, zarr_place
from stssl.store.disk import DiskCache
from stssl.store.encode import tail_bytes
from stssl.store.fetched import FetchedArray, fetched_array
from stssl.store.files import files_at
from stssl.store.shard_index import parse_tail
from stssl.store.shard_layout import ZarrTree, known_layout
from stssl.store.shards import RawPixels, ShardedArray
from stssl.store.zarr_metadata import read_array

__all__ = ["RawPixels", "StoreReader", "Stored", "ZarrArray"]
SIZE_UNKNOWN = 2**62
"""Stands for the size of a shard if only its end is read. zarr itself finds patches beyond the end of the file."""


class ZarrArray:
    """Read the pixels of patches of one pixel array through zarr-python.

    This is slower than reading the shard files directly (`ShardedArray`), but works with all layouts of files.
    """

    def __init__(self, store: str, name: str, meta: ZarrTree) -> None:
        """Set the pixel array to read. The first read opens it.

        Args:
            store: Path or URL of the store.
            name: Name of the pixel array.
            meta: Checked description of the array: the contents of its `zarr.json`.
        """
        self.store, self.name, self.meta = store, name, meta
        self._array: Any = None
        self._layout = known_layout(meta)
        self._seen: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, without the open array: the process that reads the pickle opens it again."""
        return self.__dict__ | {"_array": None}

    def read(self, rows: Ints, bands: slice, out: RawPixels) -> None:
        """Read the pixels of n patches into `out`.

        Args:
            rows: [n] store rows of the patches. A row may occur more than once.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] array that gets the pixels.

        Raises:
            DataError: The array cannot be read.
        """
        if len(rows) == 0:
            return
        unique, places = np.unique(rows, return_inverse=True)
        try:
            with explained_if_remote(self.store):
                if self._array is None:
                    self._array = open_array(self.store, self.name, self.meta)
                self._check(unique)
                out[:] = self._array.oindex[unique, bands][places.reshape(-1)]
        except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.store}/{self.name} cannot be read ({error}). Run `stssl verify`.") from None

    def _check(self, rows: Ints) -> None:
        """Check that the shard files of these store rows exist, and did not change since the conversion.

        Without this check, zarr would read a lost file as zeros. Check nothing if the layout of the files is not known.

        Args:
            rows: [n] store rows.

        Raises:
            DataError: A shard is lost, or it changed since the conversion.
        """
        files, layout = files_at(self.store), self._layout
        if layout is None:
            return
        for shard in set(np.unique(rows // layout.shard).tolist()) - self._seen:
            name = f"{self.name}/c/{shard}/0/0/0"
            tail = files.tail(name, tail_bytes(layout.shard, bool(layout.checksums)))
            if tail is None:
                raise DataError(f"{files.path(name)} is missing. Run `stssl verify`.")
            parse_tail(tail, SIZE_UNKNOWN, files.path(name), layout, shard)
            self._seen.add(shard)

    def close(self) -> None:
        """Close the array. The next read opens it again."""
        self._array, self._seen = None, set()


def open_array(store: str, name: str, meta: ZarrTree) -> Any:
    """Open and return a Zarr array, given its checked description. zarr does not read the file `zarr.json` again.

    Args:
        store: Path or URL of the store.
        name: Name of the array.
        meta: Checked description of the array: the contents of its `zarr.json`.
    """
    place = zarr_place(store, read_only=True)
    # Ignore the type: zarr's type hints ask for one of two dictionary types, and a checked description has neither.
    array = zarr.AsyncArray(metadata=dict(meta), store_path=StorePath(place, name))  # type: ignore[call-overload]
    return zarr.Array(array)


@dataclass(frozen=True)
class Stored:
    """Describe one pixel array of a store to a reader.

    Attributes:
        bands: Names of all bands, sorted as in the array.
        shape: Shape of the array: number of patches, bands, height, width.
        dtype: Type of the values.
        meta: Checked description of the array: the contents of its `zarr.json`. If None, the reader reads them.
        root: Hash of the store's `zarr.json`, for the keys of the disk cache.
    """

    bands: tuple[str, ...]
    shape: tuple[int, int, int, int]
    dtype: np.dtype[np.generic]
    meta: ZarrTree | None = None
    root: str = ""


@dataclass(frozen=True)
class _Part:
    """Describe which bands a `StoreReader` reads from one pixel array of the store.

    Attributes:
        array: Reader of the array.
        span: Smallest contiguous range of bands that contains all wanted bands.
        picked: Indexes of the wanted bands in this range; None if all its bands are wanted.
        shape: Shape of one patch: wanted bands, height, width.
        dtype: Type of the values.
    """

    array: ShardedArray | ZarrArray
    span: slice
    picked: list[int] | None
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]


def _opened(store: str, name: str, about: Stored, direct: bool, cache: DiskCache | None) -> ShardedArray | ZarrArray:
    """Return the fastest reader for a pixel array. If the layout of its files is not known, this is a `ZarrArray`.

    A `FetchedArray`, which is also a `ShardedArray`, reads an object store through the cache.

    Args:
        store: Path or URL of the store.
        name: Name of the pixel array.
        about: Description of the array.
        direct: True to read shard files directly, without zarr-python, if their layout is known.
        cache: Cache on disk for an object store; None reads the object store with zarr-python.

    Raises:
        DataError: The array has no description, or a damaged one.
    """
    meta = about.meta if about.meta is not None else read_array(store, name)
    if meta is None:
        raise DataError(f"{store}/{name} has no zarr.json. Run `stssl verify`.")
    if is_remote(store):
        array = fetched_array(store, name, meta, about.root, cache) if direct and cache else None
        return array or ZarrArray(store, name, meta)
    layout = known_layout(meta) if direct else None
    return ShardedArray(Path(store) / name, layout) if layout else ZarrArray(store, name, meta)


class StoreReader:
    """Read chosen bands of many patches, given their rows in a store.

    The pixels come as one array for each band group (the bands of one resolution). `layout` has the names of the bands
    of each group.
    """

    def __init__(
        self,
        store: str,
        stored: dict[str, Stored],
        bands: Sequence[str],
        threads: int = 1,
        direct: bool = True,
        *,
        cache: DiskCache | None = None,
    ) -> None:
        """Find the pixel arrays that have the wanted bands, and open them for reading.

        Args:
            store: Path or URL of the store.
            stored: Descriptions of the store's pixel arrays, by name.
            bands: Names of the wanted bands.
            threads: Number of threads that share the work of reading a batch.
            direct: True to read shard files directly, without zarr-python, if their layout is known.
            cache: Cache on disk for shards of an object store. Without a cache, zarr reads the object store.
        """
        self.layout: dict[str, tuple[str, ...]] = {}
        self._size = next(iter(stored.values())).shape[0]
        self._parts: dict[str, _Part] = {}
        self._threads, self._lock = threads, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        for name, about in stored.items():
            places = sorted(about.bands.index(band) for band in bands if band in about.bands)
            if not places:
                continue
            span = slice(places[0], places[-1] + 1)
            whole = len(places) == span.stop - span.start
            array = _opened(store, name, about, direct, cache)
            self.layout[name] = tuple(about.bands[place] for place in places)
            picked = None if whole else [place - span.start for place in places]
            _, _, height, width = about.shape
            self._parts[name] = _Part(array, span, picked, (len(places), height, width), about.dtype)

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, without threads: the process that reads the pickle starts its own."""
        return self.__dict__ | {"_pool": None, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the reader from the state of a pickle. The first read starts the threads."""
        self.__dict__.update(state, _lock=threading.Lock())

    def shapes(self, count: int) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Return, for the name of each band group, shape and type of an array for the pixels of `count` patches.

        A band group has the bands of one resolution.
        """
        return {name: ((count, *part.shape), part.dtype) for name, part in self._parts.items()}

    def read(self, indices: Ints, out: dict[str, RawPixels] | None = None) -> dict[str, RawPixels]:
        """Read the pixels of n patches of the store.

        Args:
            indices: [n] store rows. The result has their sequence. A row may occur more than once.
            out: For each band group (the bands of one resolution), a contiguous array that gets the pixels, with the
                shape and type of `shapes(n)`. None makes new arrays.

        Returns:
            For each band group, an array [n, wanted bands, height, width]; the arrays of `out` if given. `layout` names
                the bands.

        Raises:
            DataError: The store has no such row, or a shard cannot be read. The message names the file and the patch.
        """
        rows = np.ascontiguousarray(indices, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._size):
            wrong = rows.min() if rows.min() < 0 else rows.max()
            raise DataError(f"patch {int(wrong)} is asked for, and the store has {self._size}")
        if out is None:
            out = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.shapes(len(rows)).items()}
        if self._threads == 1 or len(rows) < 2 * self._threads:
            self._fill(rows, out, slice(0, len(rows)))
        else:
            edges = np.linspace(0, len(rows), self._threads + 1).astype(int)
            pieces = [slice(start, stop) for start, stop in itertools.pairwise(edges.tolist())]
            list(self._workers().map(lambda piece: self._fill(rows, out, piece), pieces))
        return out

    def fetch(self, indices: Ints, wait: bool = True) -> None:
        """Download the shards (files of many patches) that have these rows from the object store into the disk cache.

        Arrays that are not read through a disk cache are left out.

        Args:
            indices: [n] store rows.
            wait: True to wait for the shards. False to download them in the background: errors come at the later read.

        Raises:
            DataError: The object store cannot be read.
        """
        for array in self._fetched():
            array.fetch(indices, wait)

    @property
    def shard(self) -> int | None:
        """Return how many patches a shard file has; None if some array is not read through a disk cache."""
        fetched = self._fetched()
        return fetched[0].layout.shard if fetched and len(fetched) == len(self._parts) else None

    def shard_bytes(self) -> int:
        """Return the sizes in bytes of the first shard file of each array that has a disk cache, added up."""
        return sum(array.shard_bytes() for array in self._fetched())

    def _fetched(self) -> list[FetchedArray]:
        """Return a list of the arrays that are read from an object store through a disk cache."""
        return [part.array for part in self._parts.values() if isinstance(part.array, FetchedArray)]

    def _fill(self, rows: Ints, out: dict[str, RawPixels], piece: slice) -> None:
        """Read the pixels of some patches of a batch into the batch's arrays. Each thread calls this for other patches.

        Args:
            rows: [n] store rows of the batch.
            out: For each band group, the batch's array [n, bands, height, width].
            piece: Range of the patches to read, among those of the batch.
        """
        for name, part in self._parts.items():
            target = out[name][piece]
            if part.picked is None:
                part.array.read(rows[piece], part.span, target)
            else:
                # Read the bands between the wanted ones too, and then pick. This costs little, since a patch is one
                # chunk, which is read whole anyway.
                spanned = np.empty((len(target), part.span.stop - part.span.start, *part.shape[1:]), part.dtype)
                part.array.read(rows[piece], part.span, spanned)
                target[:] = spanned[:, part.picked]

    def _workers(self) -> ThreadPoolExecutor:
        """Return the pool of threads that share the work of reading a batch. The first call starts the threads."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "stssl-reader")
            return self._pool

    def close(self) -> None:
        """Stop the threads and close the files. The next read opens them again."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
        for part in self._parts.values():
            part.array.close()
