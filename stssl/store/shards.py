"""Read patches of one sharded Zarr array directly from its shard files.

zarr-python needs a millisecond of Python for each chunk. This reader is faster. It reads the index of each shard (a
file of many patches) once and checks its crc32c. It reads each patch with one `preadv`, checks it, and decodes it into
the array of the batch.

The reader knows only the layout that `shard_layout` recognizes, in a local folder.

Each patch is compared with its own crc32c, and with its crc32c in the list of the shard. That list and the index are
compared with the checksum of the shard in the attributes of the array (see `encode`). Arrays of older stores have no
such checksums.
"""

import os
import resource
import struct
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Ints
from stssl.base.errors import DataError
from stssl.store.encode import EMPTY
from stssl.store.shard_index import read_index
from stssl.store.shard_layout import Layout

SPARE_FILES = 256
RESIDUE = 0x48674BC7
"""The crc32c of any bytes followed by their own crc32c."""
_HEADER, _SIZE, _SIZE_AT, _MEMCPYED = struct.Struct("<4B3I"), struct.Struct("<I"), 4, 2
# Turn off the threads of Blosc: they would compete for the cores with the threads that each reader has itself.
blosc.use_threads = False

RawPixels = AnyArray


class Wanted(NamedTuple):
    """Say where the bytes of n wanted patches are, and where their pixels go in a batch.

    Attributes:
        places: [n] indexes of the patches in the batch.
        rows: [n] store rows of the patches.
        files: [n] descriptors of the open files that have the patches.
        spans: [n, 2] offset and size of each patch in its file, in bytes.
        sums: [n] checksums of the patches from the lists of their shards; None if the store has no lists.
    """

    places: Ints
    rows: Ints
    files: Ints
    spans: Ints
    sums: NDArray[np.uint32] | None


class ShardedArray:
    """Read the pixels of patches directly from the shard files of one local array. Threads may share this object.

    A shard is a file of many patches.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Set which array to read. The first read opens its shard files.

        Args:
            folder: Folder of the array.
            layout: Description of how the array's files are laid out.
        """
        self.folder, self.layout = folder, layout
        self._fresh()

    def _fresh(self) -> None:
        """Set this reader to the state of a new one: it has opened no shard file and read no index. Close nothing."""
        self._index: NDArray[np.uint64] | None = None
        self._files: NDArray[np.int64] | None = None
        self._sums = np.zeros(0, np.uint32)
        self._keep = True
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, without open files: the process that reads the pickle opens its own."""
        return {"folder": self.folder, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the reader from the state of a pickle. The first read opens shard files."""
        self.__init__(**state)  # type: ignore[misc]  # mypy forbids a call of __init__

    def read(self, rows: Ints, bands: slice, out: RawPixels) -> None:
        """Read the pixels of n patches into `out`.

        Args:
            rows: [n] store rows of the patches. A row may occur more than once.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] contiguous array that gets the pixels.

        Raises:
            DataError: A shard is missing, truncated or damaged. The message names the file and the patch.
        """
        if len(rows) == 0:
            return
        shards = rows // self.layout.shard
        index, files = self._open(np.unique(shards))
        try:
            there = np.flatnonzero(index[rows, 0] != EMPTY)
            if len(there) < len(rows):
                out[index[rows, 0] == EMPTY] = self.layout.fill
            sums = self._sums[rows[there]] if self.layout.checksums else None
            wanted = Wanted(there, rows[there], files[shards[there]], index[rows[there]].astype(np.int64), sums)
            self._deliver(wanted, bands, out)
        finally:
            if not self._keep:
                for file in np.unique(files[files >= 0]).tolist():
                    os.close(file)

    def _deliver(self, wanted: Wanted, bands: slice, out: RawPixels) -> None:
        """Read, check and decode the wanted patches, and write their pixels into the batch.

        Args:
            wanted: Where the patches are in open files, and where their pixels go in the batch.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] array of the batch.

        Raises:
            DataError: A patch is damaged.
        """
        plain = self._copy_checked if self.layout.checked else self._copy
        found = (self._decode if self.layout.blosc else plain)(wanted, bands, out)
        if wanted.sums is not None and found != wanted.sums.tolist():
            self._refuse(int(wanted.rows[np.flatnonzero(np.array(found) != wanted.sums)[0]]), "it is another patch")

    def _refuse(self, row: int, why: str) -> NoReturn:
        """Raise a DataError that says which patch of which file is damaged.

        Args:
            row: Store row of the patch.
            why: Reason in words, for the message.
        """
        raise DataError(f"patch {row} in {self._path(row)} is damaged: {why}. Run `stssl verify`.")

    def _copy_checked(self, wanted: Wanted, bands: slice, out: RawPixels) -> list[int]:
        """Read uncompressed patches into a batch, check them, and return the list of their checksums.

        Read all bands, even if few are wanted, because a patch's checksum covers all of them.

        Args:
            wanted: Where the patches are in open files, and where their pixels go in the batch.
            bands: Contiguous range of the array's bands that goes into the batch.
            out: [n, bands, height, width] array of the batch.

        Raises:
            DataError: A patch is damaged.
        """
        size, whole, found = out[0].nbytes, self.layout.patch_bytes, []
        first = bands.start * (whole // self.layout.shape[1])
        flat: Any = out.reshape(-1).view(np.uint8)
        head: Any = np.empty(first, np.uint8)
        tail: Any = np.empty(whole - first - size + 4, np.uint8)
        starts, begins = wanted.spans[:, 0].tolist(), (wanted.places * size).tolist()
        for i, (file, start, begin) in enumerate(zip(wanted.files.tolist(), starts, begins, strict=True)):
            target = flat[begin : begin + size]
            got = os.preadv(file, [head, target, tail], start)
            value = google_crc32c.extend(google_crc32c.value(head), target)
            if got != whole + 4 or google_crc32c.extend(value, tail) != RESIDUE:
                self._refuse(int(wanted.rows[i]), "it fails its checksum")
            found.append(_SIZE.unpack_from(tail, len(tail) - 4)[0])
        return found

    def _copy(self, wanted: Wanted, bands: slice, out: RawPixels) -> list[int]:
        """Read uncompressed patches without checksums into a batch, each by one system call. Return an empty list.

        Args:
            wanted: Where the patches are in open files, and where their pixels go in the batch.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] array of the batch.

        Raises:
            DataError: A file ends within a patch.
        """
        flat, size = out.data.cast("B"), out[0].nbytes
        starts = (wanted.spans[:, 0] + bands.start * (self.layout.patch_bytes // self.layout.shape[1])).tolist()
        begins = (wanted.places * size).tolist()
        for file, start, begin in zip(wanted.files.tolist(), starts, begins, strict=True):
            if os.preadv(file, [flat[begin : begin + size]], start) != size:
                row = int(wanted.rows[begins.index(begin)])
                raise DataError(f"{self._path(row)} ends within patch {row}. Run `stssl verify`.")
        return []

    def _decode(self, wanted: Wanted, bands: slice, out: RawPixels) -> list[int]:
        """Decode the wanted bands of compressed patches (Blosc frames) into a batch.

        Args:
            wanted: Where the patches are in open files, and where their pixels go in the batch.
            bands: Contiguous range of the array's bands.
            out: [n, bands, height, width] array of the batch.

        Returns:
            List of the patches' checksums; empty if the array has none.

        Raises:
            DataError: A patch is damaged.
        """
        expected, wants, spans = self.layout.patch_bytes, out[0].nbytes, wanted.spans
        checked, found, places = self.layout.checked, [], wanted.places.tolist()
        room: Any = np.empty(int(spans[:, 1].max()) if len(spans) else 0, np.uint8)
        scratch = memoryview(room)
        whole = np.empty(self.layout.shape[1:], self.layout.dtype)
        for i, (file, (start, size)) in enumerate(zip(wanted.files.tolist(), spans.tolist(), strict=True)):
            data, target = scratch[:size], out[places[i]]
            try:
                got = os.preadv(file, [data], start)
                if got != size:
                    raise ValueError("the file ends within it")
                if checked:
                    body = size - 4
                    data, value = data[:body], google_crc32c.value(room[:body])
                    if value != _SIZE.unpack_from(scratch, body)[0]:
                        raise ValueError("it fails its checksum")
                    found.append(value)
                # Check the header, which Blosc trusts: with a damaged header, it would read beyond the buffer.
                _, _, flags, _, decoded, block, stored = _HEADER.unpack_from(data)
                if stored != len(data) or decoded != expected or not 0 < block <= max(expected, 128):
                    raise ValueError("its header is damaged")
                if wants < expected and bands.start == 0 and wants % block == 0 and not flags & _MEMCPYED:
                    # Decode only the first bands, which is faster. It works because their blocks are a valid frame once
                    # the header has the smaller size.
                    _SIZE.pack_into(data, _SIZE_AT, wants)
                    blosc.decompress(data, target)
                elif wants < expected:
                    blosc.decompress(data, whole)
                    target[:] = whole[bands]
                else:
                    blosc.decompress(data, target)
            except (RuntimeError, ValueError, struct.error) as error:
                row = int(wanted.rows[i])
                path = self._path(row)
                raise DataError(f"patch {row} in {path} cannot be decoded ({error}). Run `stssl verify`.") from None
        return found

    def _path(self, row: int) -> Path:
        return self._shard_path(row // self.layout.shard)

    def _shard_path(self, shard: int) -> Path:
        return self.folder / "c" / str(shard) / "0" / "0" / "0"

    def _open(self, shards: Ints) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Open the shard files with the numbers `shards`, and read from each where its patches lie.

        Returns:
            Two arrays. The first has the offset and the size in bytes of each patch of the array in its file,
                [store rows, 2]; a row is filled once its shard was opened. The second has the file descriptor of each
                shard, or -1 if the shard is not open.
        """
        with self._lock:
            if self._index is None or self._files is None:
                self._index = np.full((self.layout.shards * self.layout.shard, 2), EMPTY - 1, np.uint64)
                if self.layout.checksums:
                    self._sums = np.zeros(len(self._index), np.uint32)
                self._files = np.full(self.layout.shards, -1, np.int64)
                # If the system allows too few open files for all shards, each read opens and closes its shards.
                self._keep = _Files.reserve(self.layout.shards)
            files = self._files if self._keep else np.full_like(self._files, -1)
            for shard in shards[files[shards] < 0].tolist():
                files[shard] = self._open_shard(shard, self._index)
            return self._index, files

    def _open_shard(self, shard: int, index: NDArray[np.uint64]) -> int:
        """Open the file of one shard, and return its descriptor.

        Write the offsets and sizes of its patches into `index`.

        Args:
            shard: Number of the shard.
            index: [store rows, 2] offset and size of each patch of the array in bytes. The rows of this shard are
                changed.

        Raises:
            DataError: The file cannot be read, is truncated or damaged.
        """
        path = self._shard_path(shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}. Run `stssl verify`.") from None
        own = slice(shard * self.layout.shard, (shard + 1) * self.layout.shard)
        if index[own.start, 0] == EMPTY - 1:
            try:
                index[own], sums = read_index(file, path, self.layout, shard)
                if self.layout.checksums:
                    self._sums[own] = sums
            except DataError:
                os.close(file)
                raise
        # Tell the system not to read ahead: reads jump around in the file, so the next bytes are seldom needed.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return file

    def close(self) -> None:
        """Close all shard files. The next read opens them again."""
        if self._files is not None:
            for file in self._files[self._files >= 0].tolist():
                os.close(file)
            if self._keep:
                _Files.release(self.layout.shards)
        self._fresh()

    def __del__(self) -> None:
        """Close all shard files when nothing uses the reader any more."""
        if hasattr(self, "_files"):
            self.close()


class _Files:
    """Count the shard files that all readers of this process may hold open, to keep below the limit on open files."""

    reserved = 0
    lock = threading.Lock()

    @classmethod
    def reserve(cls, count: int) -> bool:
        """Reserve room for `count` more open files, and return True. Raise the process's limit on open files if needed.

        Return False if the system's hard limit is too low: then nothing is reserved.
        """
        with cls.lock:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            needed = cls.reserved + count + SPARE_FILES
            if hard != resource.RLIM_INFINITY and needed > hard:
                return False
            if soft != resource.RLIM_INFINITY and needed > soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            cls.reserved += count
            return True

    @classmethod
    def release(cls, count: int) -> None:
        """Release the room that was reserved for `count` open files, after they were closed."""
        with cls.lock:
            cls.reserved -= count
