"""Patches of one sharded Zarr array, read straight from its shard files.

zarr-python spends a millisecond of Python on each chunk. This reads a shard's index once, checks its crc32c, and then
takes each patch with one `preadv` and decodes it where it belongs. It knows the layout that `convert` writes (one patch
a chunk, index at the end, Blosc or no codec, a local folder), and says so of any array.
"""

import json
import os
import resource
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from stssl.errors import DataError
from stssl.randomness import Ints

EMPTY = 2**64 - 1
SPARE_FILES = 256
_HEADER, _SIZE, _SIZE_AT, _MEMCPYED = struct.Struct("<4B3I"), struct.Struct("<I"), 4, 2
blosc.use_threads = False

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What the direct path needs to know of one array."""

    shape: tuple[int, ...]
    shard: int
    dtype: np.dtype[Any]
    blosc: bool
    fill: int

    @property
    def patch_bytes(self) -> int:
        """Bytes of one decoded patch."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.shard)


def direct_layout(folder: Path) -> Layout | None:
    """The layout of an array in a local folder if the direct path can read it, else None."""
    try:
        return known_layout((folder / "zarr.json").read_bytes())
    except OSError:
        return None


def known_layout(description: bytes) -> Layout | None:
    """The layout that an array's `zarr.json` describes if the direct path can read it, else None."""
    try:
        meta = json.loads(description)
        (sharding,) = meta["codecs"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        inner = sharding["configuration"]
        codecs = [codec["name"] for codec in inner["codecs"]]
        endian = inner["codecs"][0].get("configuration", {}).get("endian", "little")
        known = (
            meta["zarr_format"] == 3
            and meta["chunk_grid"]["name"] == "regular"
            and meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and not meta.get("storage_transformers")
            and meta["data_type"] in ("uint8", "uint16")
            and sharding["name"] == "sharding_indexed"
            and codecs in (["bytes"], ["bytes", "blosc"])
            and endian == "little"
            and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner["index_codecs"][0]["configuration"] == {"endian": "little"}
            and inner.get("index_location", "end") == "end"
            and inner["chunk_shape"] == [1, *meta["shape"][1:]]
            and outer[1:] == meta["shape"][1:]
            and len(outer) == 4
        )
        if not known:
            return None
        dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        return Layout(tuple(meta["shape"]), outer[0], dtype, codecs[-1] == "blosc", int(meta["fill_value"]))
    except (KeyError, ValueError, TypeError, IndexError):
        return None


class Wanted(NamedTuple):
    """Patches to read: their places in the batch, rows, open files, and spans [n, 2] of bytes."""

    places: Ints
    rows: Ints
    files: Ints
    spans: Ints


class ShardedArray:
    """Reads patches of one array whose layout is known; any number of threads may."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Open nothing yet."""
        self.folder, self.layout = folder, layout
        self._fresh()

    def _fresh(self) -> None:
        self._index: NDArray[np.uint64] | None = None
        self._files: NDArray[np.int64] | None = None
        self._keep = True
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which another process must open for itself."""
        return {"folder": self.folder, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open nothing yet."""
        self.__init__(**state)  # type: ignore[misc]

    def read(self, rows: Ints, bands: slice, out: Pixels) -> None:
        """Fill `out` [n, bands, H, W], contiguous, with patches `rows`.

        Raises:
            DataError: A shard is missing, truncated or damaged; names file and patch.
        """
        if len(rows) == 0:
            return
        shards = rows // self.layout.shard
        index, files = self._open(np.unique(shards))
        try:
            there = np.flatnonzero(index[rows, 0] != EMPTY)
            if len(there) < len(rows):
                out[index[rows, 0] == EMPTY] = self.layout.fill
            wanted = Wanted(there, rows[there], files[shards[there]], index[rows[there]].astype(np.int64))
            self._deliver(wanted, bands, out)
        finally:
            if not self._keep:
                for file in np.unique(files[files >= 0]).tolist():
                    os.close(file)

    def _deliver(self, wanted: Wanted, bands: slice, out: Pixels) -> None:
        """Read and decode patches where they belong."""
        (self._decode if self.layout.blosc else self._copy)(wanted, bands, out)

    def _copy(self, wanted: Wanted, bands: slice, out: Pixels) -> None:
        """Read plain numbers: one system call a patch, nothing else in the loop."""
        flat, size = out.data.cast("B"), out[0].nbytes
        starts = (wanted.spans[:, 0] + bands.start * (self.layout.patch_bytes // self.layout.shape[1])).tolist()
        begins = (wanted.places * size).tolist()
        for file, start, begin in zip(wanted.files.tolist(), starts, begins, strict=True):
            if os.preadv(file, [flat[begin : begin + size]], start) != size:
                row = int(wanted.rows[begins.index(begin)])
                raise DataError(f"{self._path(row)} ends within patch {row}. Run `stssl verify`.")

    def _decode(self, wanted: Wanted, bands: slice, out: Pixels) -> None:
        """Decode Blosc frames where they belong, or cut the wanted bands out of them."""
        expected, wants, spans = self.layout.patch_bytes, out[0].nbytes, wanted.spans
        scratch = memoryview(bytearray(int(spans[:, 1].max()) if len(spans) else 0))
        whole = np.empty(self.layout.shape[1:], self.layout.dtype)
        for i, (file, (start, size)) in enumerate(zip(wanted.files.tolist(), spans.tolist(), strict=True)):
            data, target = scratch[:size], out[wanted.places[i]]
            try:
                got = os.preadv(file, [data], start)
                # Blosc trusts its header, so that a damaged one would make it read beyond the buffer.
                _, _, flags, _, decoded, block, stored = _HEADER.unpack_from(data)
                if got != size or stored != size or decoded != expected or not 0 < block <= max(expected, 128):
                    raise ValueError("its header is damaged")
                if wants < expected and bands.start == 0 and wants % block == 0 and not flags & _MEMCPYED:
                    # The first blocks are a frame of their own as soon as the header says that there are no more.
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

    def _path(self, row: int) -> Path:
        return self._shard_path(row // self.layout.shard)

    def _shard_path(self, shard: int) -> Path:
        return self.folder / "c" / str(shard) / "0" / "0" / "0"

    def _open(self, shards: Ints) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Index [N, 2] (offset, size) and file numbers [shards], filled in for these shards."""
        with self._lock:
            if self._index is None or self._files is None:
                self._index = np.full((self.layout.shards * self.layout.shard, 2), EMPTY - 1, np.uint64)
                self._files = np.full(self.layout.shards, -1, np.int64)
                self._keep = _Files.reserve(self.layout.shards)
            files = self._files if self._keep else np.full_like(self._files, -1)
            for shard in shards[files[shards] < 0].tolist():
                files[shard] = self._open_shard(shard, self._index)
            return self._index, files

    def _open_shard(self, shard: int, index: NDArray[np.uint64]) -> int:
        path = self._shard_path(shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}. Run `stssl verify`.") from None
        part = index[shard * self.layout.shard : (shard + 1) * self.layout.shard]
        if part[0, 0] == EMPTY - 1:
            try:
                part[:] = read_index(file, path, self.layout.shard)
            except DataError:
                os.close(file)
                raise
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return file

    def close(self) -> None:
        """Close all files; reading again opens them again."""
        if self._files is not None:
            for file in self._files[self._files >= 0].tolist():
                os.close(file)
            if self._keep:
                _Files.release(self.layout.shards)
        self._fresh()

    def __del__(self) -> None:
        """Close all files."""
        if hasattr(self, "_files"):
            self.close()


def read_index(file: int, path: Path, patches: int) -> NDArray[np.uint64]:
    """Offsets and sizes [patches, 2] of the chunks of an open shard.

    Raises:
        DataError: It is truncated or damaged.
    """
    size = os.fstat(file).st_size
    length = index_bytes(patches)
    return parse_index(os.pread(file, length, max(0, size - length)), size, path, patches)


def index_bytes(patches: int) -> int:
    """Size of the index at the end of a shard."""
    return patches * 16 + 4


def parse_index(tail: bytes, size: int, path: Path | str, patches: int) -> NDArray[np.uint64]:
    """Offsets and sizes [patches, 2] from the last bytes of a shard of `size` bytes.

    Raises:
        DataError: It is truncated or damaged.
    """
    length = index_bytes(patches)
    if len(tail) < length or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise DataError(f"{path} is truncated or damaged: its index fails the checksum. Run `stssl verify`.")
    index = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
    there = index[:, 0] != EMPTY
    if (index[there].sum(1) > size - length).any():
        raise DataError(f"{path} is damaged: its index points beyond its end. Run `stssl verify`.")
    return index


class _Files:
    """How many files all readers of this process may hold open."""

    reserved = 0
    lock = threading.Lock()

    @classmethod
    def reserve(cls, count: int) -> bool:
        """Make room for that many open files beside those reserved before; whether there is."""
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
        """Give room back."""
        with cls.lock:
            cls.reserved -= count
