"""Read many patches at once from a store into batch buffers.

Arrays in the layout that `convert` writes are read from their shard files (`shards`), or from an object store through
a cache on disk (`fetched`). Any other layout or codec is read through zarr-python, with equal results.
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
from stssl.store.disk import DiskCache
from stssl.store.encode import tail_bytes
from stssl.store.fetched import FetchedArray, fetched_array
from stssl.store.files import files_at
from stssl.store.remote import explained_if_remote, is_remote, zarr_place
from stssl.store.shards import RawPixels, ShardedArray, ZarrTree, known_layout, parse_tail
from stssl.store.zarr_metadata import read_array

__all__ = ["RawPixels", "StoreReader", "Stored", "ZarrArray"]
SIZE_UNKNOWN = 2**62
"""Size of a shard of which only the end is read; zarr itself finds spans beyond the file."""


class ZarrArray:
    """Read patches of any array through zarr-python."""

    def __init__(self, store: str, name: str, meta: ZarrTree) -> None:
        """Refer to the array `name` of a store, whose checked description is `meta`; it is opened at the first read."""
        self.store, self.name, self.meta = store, name, meta
        self._array: Any = None
        self._layout = known_layout(meta)
        self._seen: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the open array."""
        return self.__dict__ | {"_array": None}

    def read(self, rows: Ints, bands: slice, out: RawPixels) -> None:
        """Fill `out` with patches `rows`.

        Args:
            rows: [n] store rows.
            bands: Span of bands.
            out: [n, bands, H, W] to fill.

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
        """Make sure that the shards of these rows exist and are the converted ones; zarr reads a lost shard as zeros.

        Raises:
            DataError: A shard is lost or another one.
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
        """Forget the open array."""
        self._array, self._seen = None, set()


def open_array(store: str, name: str, meta: ZarrTree) -> Any:
    """Open an array by its checked description, so that zarr reads no description of its own.

    Args:
        store: Path or URL of the store.
        name: Name of the array.
        meta: Its description.
    """
    place = zarr_place(store, read_only=True)
    # zarr's overloads name two dictionaries of its own, which a checked description has no type of.
    array = zarr.AsyncArray(metadata=dict(meta), store_path=StorePath(place, name))  # type: ignore[call-overload]
    return zarr.Array(array)


@dataclass(frozen=True)
class Stored:
    """Describe one pixel array of a store to a reader.

    Attributes:
        bands: All its bands in stored order.
        shape: [N, bands, H, W].
        dtype: Type of its values.
        meta: The array's checked description; if None, the reader reads it.
        root: Digest of the store's description.
    """

    bands: tuple[str, ...]
    shape: tuple[int, int, int, int]
    dtype: np.dtype[np.generic]
    meta: ZarrTree | None = None
    root: str = ""


@dataclass(frozen=True)
class _Part:
    """Select bands of one array: a contiguous span, and which bands of the span are wanted (None for all)."""

    array: ShardedArray | ZarrArray
    span: slice
    picked: list[int] | None
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]


def _opened(store: str, name: str, about: Stored, direct: bool, cache: DiskCache | None) -> ShardedArray | ZarrArray:
    """Open an array: read directly or through a cache if its layout is known, else by zarr.

    Raises:
        DataError: It has no description, or a damaged one.
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
    """Read chosen bands of many patches: row numbers in, one array for each band group out."""

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
        """Prepare to read `bands` of the arrays `stored`.

        Args:
            store: Path or URL of the store.
            stored: Its pixel arrays by name.
            bands: Wanted bands.
            threads: Number of threads that share a batch.
            direct: True to read shard files directly if their layout is known.
            cache: Cache for shards of an object store; without it, zarr reads there.
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
        """Return the state without threads, which another process starts for itself."""
        return self.__dict__ | {"_pool": None, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over the state; threads are started at the first read."""
        self.__dict__.update(state, _lock=threading.Lock())

    def shapes(self, count: int) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Return shape and type of the arrays that hold `count` patches, for buffers."""
        return {name: ((count, *part.shape), part.dtype) for name, part in self._parts.items()}

    def read(self, indices: Ints, out: dict[str, RawPixels] | None = None) -> dict[str, RawPixels]:
        """Read the pixels of store rows, in the given order; a row may occur more than once.

        Args:
            indices: [n] store rows.
            out: Contiguous buffers to fill, of the shapes and types that `shapes(n)` returns.

        Returns:
            For each band group [n, wanted bands, H, W], in the stored order of bands (`layout`).

        Raises:
            DataError: There is no such row, or a shard cannot be read; names file and patch.
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
        """Bring the shards of these rows from the object store into the cache.

        Args:
            indices: [n] store rows.
            wait: True to wait for them; False to fetch them in the background, where errors are left to the later read.

        Raises:
            DataError: The object store cannot be read.
        """
        for array in self._fetched():
            array.fetch(indices, wait)

    @property
    def shard(self) -> int | None:
        """Return the patches of a shard if all arrays come through a cache on disk; else None."""
        fetched = self._fetched()
        return fetched[0].layout.shard if fetched and len(fetched) == len(self._parts) else None

    def shard_bytes(self) -> int:
        """Return the stored size in bytes of one shard of all arrays that come through a cache on disk."""
        return sum(array.shard_bytes() for array in self._fetched())

    def _fetched(self) -> list[FetchedArray]:
        """List the arrays that come through a cache on disk."""
        return [part.array for part in self._parts.values() if isinstance(part.array, FetchedArray)]

    def _fill(self, rows: Ints, out: dict[str, RawPixels], piece: slice) -> None:
        """Read one piece of a batch."""
        for name, part in self._parts.items():
            target = out[name][piece]
            if part.picked is None:
                part.array.read(rows[piece], part.span, target)
            else:
                # Bands apart from each other come with those between them, since a patch is one chunk.
                spanned = np.empty((len(target), part.span.stop - part.span.start, *part.shape[1:]), part.dtype)
                part.array.read(rows[piece], part.span, spanned)
                target[:] = spanned[:, part.picked]

    def _workers(self) -> ThreadPoolExecutor:
        """Return the pool of threads, started at the first call."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "stssl-reader")
            return self._pool

    def close(self) -> None:
        """Stop threads and close files; the next read opens them again."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
        for part in self._parts.values():
            part.array.close()
