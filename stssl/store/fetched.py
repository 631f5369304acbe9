"""Read patches of a sharded array in an object store, through a disk cache.

If a batch needs many patches of a shard (a file of many patches), download the whole shard. Else download each patch
alone, by its range of bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Ints
from stssl.base.errors import DataError
from stssl.base.remote import bucket, explained, get_object, split_url
from stssl.store.disk import DiskCache
from stssl.store.encode import EMPTY, tail_bytes
from stssl.store.shard_index import parse_tail
from stssl.store.shard_layout import Layout, ZarrTree, known_layout
from stssl.store.shards import RawPixels, ShardedArray, Wanted

if TYPE_CHECKING:
    from obstore import GetOptions

THREADS = 8
PIECE = 64
WHOLE = 1 / 16
"""If a batch wants at least this share of the patches of a shard, fetch the shard whole."""


class FetchedArray(ShardedArray):
    """Read patches of one pixel array in an object store, through a cache on disk. Threads may share this object.

    A shard is a file of many patches.
    """

    def __init__(self, folder: Path, layout: Layout, store: str, prefix: str, cache: DiskCache) -> None:
        """Set where the array is and which cache to use. Download nothing yet.

        Args:
            folder: URL of the array as a `Path`, for messages and the array's name.
            layout: Description of how the array's files are laid out.
            store: URL of the store.
            prefix: Start of the cache keys of this array.
            cache: Cache on disk.
        """
        super().__init__(folder, layout)
        self.store, self.prefix, self.cache = store, prefix, cache

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, without threads and shard indexes: the process that reads it makes its own."""
        names = ("folder", "layout", "store", "prefix", "cache")
        return {name: getattr(self, name) for name in names}

    def _fresh(self) -> None:
        super()._fresh()
        self._indexes: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint32]]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._coming: set[int] = set()

    def read(self, rows: Ints, bands: slice, out: RawPixels) -> None:
        """Read the pixels of n patches into `out`. Download what the cache does not have.

        If many of a shard's patches are wanted, download the whole shard, otherwise single patches.

        Args:
            rows: [n] store rows of the patches. A row may occur more than once.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] contiguous array that gets the pixels.

        Raises:
            DataError: A shard is missing or damaged, or the object store cannot be read. The message names the shard.
        """
        shards = rows // self.layout.shard
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            # Many requests for single patches take longer than one request for the whole shard. At most providers they
            # also cost more.
            much = len(np.unique(rows[places])) >= max(2, WHOLE * self.layout.shard)
            with self._shard(shard, fetch=much) as file:
                if file is not None:
                    self._take(places, rows[places], bands, out, files=file)
                    # Mark these patches as done, so that the code below downloads only the others, one by one.
                    shards[places] = -1
        singles = np.flatnonzero(shards >= 0)
        # Read at most `PIECE` patches at once: each one needs an open file, and the system limits their number.
        for start in range(0, len(singles), PIECE):
            self._read_singles(singles[start : start + PIECE], rows, bands, out)

    def _read_singles(self, places: Ints, rows: Ints, bands: slice, out: RawPixels) -> None:
        """Download single patches in several threads, and decode them into `out`, the array of a batch.

        Args:
            places: Indexes in the batch of the patches to read.
            rows: Store rows of all patches of the batch.
            bands: Contiguous range of the pixel array's bands.
            out: [n, bands, height, width] array of the batch.
        """
        wanted = np.unique(rows[places])
        list(self._threads().map(self._index_of, np.unique(wanted // self.layout.shard).tolist()))
        there = [row for row in wanted.tolist() if self._span(row)[0] != EMPTY]
        coming = {row: self._threads().submit(self._open_patch, row) for row in there}
        try:
            files = {row: future.result() for row, future in coming.items()}
            self._take(places, rows[places], bands, out, files=files)
        finally:
            for future in coming.values():
                if future.exception() is None:
                    os.close(future.result())

    def _take(self, places: Ints, rows: Ints, bands: slice, out: RawPixels, *, files: dict[int, int] | int) -> None:
        """Decode patches from open cache files into `out`, the array of a batch.

        Args:
            places: Indexes in the batch of the patches to decode.
            rows: Store rows of these patches, one for each index.
            bands: Contiguous range of the pixel array's bands.
            out: [n, bands, height, width] array of the batch.
            files: Descriptor of the open shard that has all these patches, or for each store row, that of the open file
                of its patch.
        """
        spans = np.array([self._span(row) for row in rows.tolist()], np.uint64).reshape(-1, 2)
        there = spans[:, 0] != EMPTY
        out[places[~there]] = self.layout.fill
        found, kept = spans[there].astype(np.int64), rows[there]
        if isinstance(files, int):
            opened = np.full(len(kept), files, np.int64)
        else:
            opened = np.array([files[row] for row in kept.tolist()], np.int64)
            found[:, 0] = 0
        sums = np.array([self._sum(row) for row in kept.tolist()], np.uint32) if self.layout.checksums else None
        self._deliver(Wanted(places[there], kept, opened, found, sums), bands, out)

    def fetch(self, rows: Ints, wait: bool) -> None:
        """Download the whole shards (files of many patches) that have these store rows into the disk cache.

        Args:
            rows: [n] store rows.
            wait: True to wait for the shards; False to download them in the background, and ignore errors.
        """
        shards = np.unique(rows // self.layout.shard).tolist()
        if wait:
            list(self._threads().map(self._bring, shards))
            return
        for shard in shards:
            with self._lock:
                # Skip shards whose download has begun: each training step asks for the shards of several later steps,
                # and most of these are the same as at the step before.
                fresh = shard not in self._coming
                self._coming.add(shard)
            if fresh:
                self._threads().submit(self._bring_quietly, shard)

    def _bring(self, shard: int) -> None:
        """Download a whole shard (a file of many patches), given its number, into the disk cache, if it is not there.

        Raises:
            DataError: The shard is missing or damaged, or the object store cannot be read.
        """
        with self._shard(shard, fetch=True):
            pass

    def _bring_quietly(self, shard: int) -> None:
        """Download a shard (a file of many patches), given its number, in advance.

        Ignore errors: the later read raises them.
        """
        try:
            self._bring(shard)
        except DataError:
            pass
        finally:
            with self._lock:
                self._coming.discard(shard)

    @contextmanager
    def _shard(self, shard: int, fetch: bool) -> Iterator[int | None]:
        """Open a shard (a file of many patches) in the disk cache inside a `with` block. Read the index of its patches.

        Args:
            shard: Number of the shard.
            fetch: True to download the shard if the cache does not have it.

        Yields:
            Descriptor of the open file; None if the cache does not have the shard and `fetch` is False.
        """
        file = self.cache.open(f"{self.prefix}-s{shard}", (lambda: self._get_shard(shard)) if fetch else None)
        try:
            if file is not None and shard not in self._indexes:
                size, length = self.cache.size(file), self._tail_bytes
                tail = os.pread(file, min(length, size), max(0, size - length))
                self._indexes[shard] = parse_tail(tail, size, self._shard_path(shard), self.layout, shard)
            yield file
        finally:
            if file is not None:
                os.close(file)

    def _open_patch(self, row: int) -> int:
        """Open the disk cache's file of one patch, and return its descriptor. Download the patch if the cache lacks it.

        Args:
            row: Store row of the patch.
        """
        file = self.cache.open(f"{self.prefix}-p{row}", lambda: self._get_patch(row))
        assert file is not None  # for mypy: with a fetch function, `open` never returns None
        return file

    def _span(self, row: int) -> NDArray[np.uint64]:
        """Return an array of two numbers: offset and size in bytes of a patch in its shard (a file of many patches).

        Args:
            row: Store row of the patch.
        """
        shard, place = divmod(row, self.layout.shard)
        span: NDArray[np.uint64] = self._index_of(shard)[0][place]
        return span

    def _sum(self, row: int) -> int:
        """Return the expected checksum of a patch, from the list at the end of its shard (a file of many patches).

        Args:
            row: Store row of the patch.
        """
        shard, place = divmod(row, self.layout.shard)
        return int(self._index_of(shard)[1][place])

    @property
    def _tail_bytes(self) -> int:
        return tail_bytes(self.layout.shard, bool(self.layout.checksums))

    def _get_shard(self, shard: int) -> bytes:
        """Download a whole shard (a file of many patches), check its index and every patch in it, and return its bytes.

        Args:
            shard: Number of the shard.

        Raises:
            DataError: The shard is missing or damaged, or the object store cannot be read.
        """
        data = self._get(shard)
        index, sums = parse_tail(data[-self._tail_bytes :], len(data), self._shard_path(shard), self.layout, shard)
        for place in np.flatnonzero(index[:, 0] != EMPTY).tolist() if self.layout.checked else ():
            start, size = (int(value) for value in index[place])
            self._check(
                shard * self.layout.shard + place, data[start : start + size], sums[place] if len(sums) else None
            )
        return data

    def _get_patch(self, row: int) -> bytes:
        """Download one patch, which is a range of bytes in a shard file, check it, and return its bytes.

        Args:
            row: Store row of the patch.

        Raises:
            DataError: The patch or its shard is missing or damaged.
        """
        start, size = (int(value) for value in self._span(row))
        data = self._get(row // self.layout.shard, {"range": (start, start + size)})
        if len(data) != size:
            self._refuse(row, f"{len(data)} of {size} bytes came")
        self._check(row, data, self._sum(row) if self.layout.checksums else None)
        return data

    def _check(self, row: int, data: bytes, listed: int | None) -> None:
        """Check the bytes of a patch against its checksums.

        Args:
            row: Store row of the patch, for the message.
            data: Bytes of the patch, which end with its own checksum.
            listed: Checksum of the patch in the list of its shard; None if the store has no lists.

        Raises:
            DataError: The bytes do not match a checksum.
        """
        if self.layout.checked:
            value = google_crc32c.value(data[:-4])
            if value != int.from_bytes(data[-4:], "little"):
                self._refuse(row, "it fails its checksum")
            if listed is not None and value != listed:
                self._refuse(row, "it is another patch")

    def _index_of(self, shard: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Return where the patches of a shard (a file of many patches) lie in it, and their checksums.

        The first call for a shard downloads the end of its file.

        Args:
            shard: Number of the shard.

        Returns:
            Offsets and sizes [patches, 2] in bytes, and checksums [patches]; the latter are empty for older stores.
        """
        if shard not in self._indexes:
            found: list[int] = []
            tail = self._get(shard, {"range": {"suffix": self._tail_bytes}}, found)
            self._indexes[shard] = parse_tail(tail, found[0], self._shard_path(shard), self.layout, shard)
        return self._indexes[shard]

    def _get(self, shard: int, options: "GetOptions | None" = None, size: list[int] | None = None) -> bytes:
        """Download a shard (a file of many patches), or a range of its bytes, and return the bytes.

        Args:
            shard: Number of the shard.
            options: Dict with the range of bytes, in the form of `obstore`; None downloads all.
            size: List to which this method appends the size of the whole shard in bytes; None if it is not needed.

        Raises:
            DataError: The shard is missing, or the object store cannot be read.
        """
        path = self._shard_path(shard).relative_to(self.folder)
        url, key = split_url(self.store)
        place = "/".join(part for part in (key, self.folder.name, str(path)) if part)
        try:
            data, whole = get_object(url, place, options)
        except FileNotFoundError:
            raise DataError(f"{url}/{place} is missing. Run `stssl verify`.") from None
        if size is not None:
            size.append(whole)
        return data

    def shard_bytes(self) -> int:
        """Return the size in bytes of the array's first shard file, 0 if it is missing.

        Other shards are about as large.
        """
        url, key = split_url(self.store)
        with explained(self.store):
            try:
                place = "/".join(part for part in (key, self.folder.name, "c/0/0/0/0") if part)
                return int(bucket(url).head(place)["size"])
            except FileNotFoundError:
                return 0

    def _threads(self) -> ThreadPoolExecutor:
        """Return the pool of threads that download patches and shards. The first call starts the pool."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, "stssl-fetch")
            return self._pool

    def close(self) -> None:
        """Stop the threads that download, without waiting for them. The next read starts them again."""
        pool = getattr(self, "_pool", None)
        if pool is not None:
            # Do not wait for the threads: if the server gives no answer, the process could not end.
            pool.shutdown(wait=False, cancel_futures=True)
        self._fresh()


def fetched_array(store: str, name: str, meta: ZarrTree, root: str, cache: DiskCache) -> FetchedArray | None:
    """Return a reader of a pixel array in an object store through a disk cache; None if its file layout is not known.

    Args:
        store: URL of the store.
        name: Name of the pixel array.
        meta: Checked description of the array: the contents of its `zarr.json`.
        root: Hash of the store's `zarr.json`. It is part of the cache keys: a store written anew gets new keys.
        cache: Cache on disk.
    """
    layout = known_layout(meta)
    if layout is None:
        return None
    # Put a digest of the descriptions into the cache keys: cached files of an older store must not be used for another
    # store at the same URL, or for this store after a new conversion.
    digest = hashlib.blake2b("\n".join([store, name, root, json.dumps(meta)]).encode(), digest_size=8)
    return FetchedArray(Path(store) / name, layout, store, f"{name}-{digest.hexdigest()}", cache)
