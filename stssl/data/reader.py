"""Pixels of many patches at once, straight from a store's shard files into batch buffers.

zarr-python spends a millisecond of Python on each chunk. This reader loads a shard's index once, checks its crc32c,
then reads each patch with one `preadv` and decodes it where it belongs. It knows the layout that `convert` writes
(one patch a chunk, index at the end, Blosc or no codec, a local folder); anything else goes through zarr, with equal
results.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray

from stssl.errors import DataError
from stssl.randomness import Ints

EMPTY = 2**64 - 1
blosc.use_threads = False

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What the direct path needs to know of one array."""

    shape: tuple[int, ...]
    shard: int
    dtype: np.dtype[Any]
    blosc: bool

    @property
    def patch_bytes(self) -> int:
        """Bytes of one decoded patch."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize


def direct_layout(folder: Path) -> Layout | None:
    """The array's layout if the direct path can read it, else None."""
    try:
        meta = json.loads((folder / "zarr.json").read_text())
        (sharding,) = meta["codecs"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        inner = sharding["configuration"]
        codecs = [codec["name"] for codec in inner["codecs"]]
        endian = inner["codecs"][0].get("configuration", {}).get("endian", "little")
        index = [codec["name"] for codec in inner["index_codecs"]]
        known = (
            sharding["name"] == "sharding_indexed"
            and codecs in (["bytes"], ["bytes", "blosc"])
            and endian == "little"
            and index == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
            and inner["chunk_shape"] == [1, *meta["shape"][1:]]
            and outer[1:] == meta["shape"][1:]
            and meta["chunk_key_encoding"]["name"] == "default"
        )
    except (OSError, KeyError, ValueError, TypeError, IndexError):
        return None
    if not known:
        return None
    return Layout(tuple(meta["shape"]), outer[0], np.dtype(meta["data_type"]), codecs[-1] == "blosc")


class DirectArray:
    """Reads patches of one array whose layout is known."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Open nothing yet."""
        self.folder, self.layout = folder, layout
        self._open: dict[int, tuple[int, NDArray[np.uint64]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which another process must open for itself."""
        return self.__dict__ | {"_open": {}}

    def read(self, rows: Ints, bands: slice, out: Pixels) -> None:
        """Fill `out` [n, bands, H, W] with patches `rows`.

        Raises:
            DataError: A shard is missing, truncated or damaged; names file and patch.
        """
        whole = bands == slice(0, self.layout.shape[1])
        offset = bands.start * self.layout.patch_bytes // self.layout.shape[1]
        for place, row in enumerate(rows.tolist()):
            shard, inside = divmod(row, self.layout.shard)
            file, index = self._open.get(shard) or self._load(shard)
            start, size = index[inside].tolist()
            if start == EMPTY:
                out[place] = 0
            elif self.layout.blosc:
                self._decode(os.pread(file, size, start), row, bands, None if whole else bands, out[place])
            elif os.preadv(file, [out[place].data.cast("B")], start + offset) != out[place].nbytes:
                raise DataError(f"{self._path(shard)} ends within patch {row}. Run `stssl verify`.")

    def _decode(self, data: bytes, row: int, bands: slice, part: slice | None, out: Pixels) -> None:
        try:
            if part is None:
                blosc.decompress(data, out)
            else:
                flat = np.frombuffer(blosc.decompress(data), self.layout.dtype)
                out[:] = flat.reshape(self.layout.shape[1:])[part]
        except (RuntimeError, ValueError) as error:
            shard = self._path(row // self.layout.shard)
            raise DataError(f"patch {row} in {shard} cannot be decoded ({error}). Run `stssl verify`.") from None

    def _path(self, shard: int) -> Path:
        return self.folder / "c" / str(shard) / "0" / "0" / "0"

    def _load(self, shard: int) -> tuple[int, NDArray[np.uint64]]:
        """Open a shard and keep its index: [patches, 2] offset and size."""
        path = self._path(shard)
        index_bytes = self.layout.shard * 16
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}. The store is incomplete: convert it again."
            ) from None
        size = os.fstat(file).st_size
        tail = os.pread(file, index_bytes + 4, max(0, size - index_bytes - 4))
        if len(tail) < index_bytes + 4 or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
            os.close(file)
            raise DataError(f"{path} is truncated or damaged: its index fails the checksum. Run `stssl verify`.")
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        index = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
        self._open[shard] = (file, index)
        return file, index

    def close(self) -> None:
        """Close all files."""
        for file, _ in self._open.values():
            os.close(file)
        self._open.clear()

    def __del__(self) -> None:
        """Close all files."""
        self.close()


class ZarrArray:
    """Reads patches of any array through zarr-python."""

    def __init__(self, store: str, name: str) -> None:
        """Open nothing yet."""
        self.store, self.name = store, name
        self._array: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open array."""
        return self.__dict__ | {"_array": None}

    def read(self, rows: Ints, bands: slice, out: Pixels) -> None:
        """Fill `out` [n, bands, H, W] with patches `rows`."""
        if self._array is None:
            self._array = zarr.open_array(self.store, path=self.name, mode="r")
        unique, places = np.unique(rows, return_inverse=True)
        out[:] = self._array.oindex[unique, bands][places.reshape(-1)]


Group = tuple[tuple[str, ...], Layout | None, Any]


class Reader:
    """Delivers chosen bands of many patches: indices in, one array a band group out."""

    def __init__(
        self, store: str, groups: dict[str, tuple[tuple[str, ...], Layout | None, Any]], bands: Sequence[str]
    ) -> None:
        """Read `bands` of the arrays `groups`: name -> (all bands, direct layout or None, dtype and shape)."""
        self.layout: dict[str, tuple[str, ...]] = {}
        self._arrays: dict[str, tuple[DirectArray | ZarrArray, slice, list[int] | None, Any]] = {}
        for name, (all_bands, direct, about) in groups.items():
            places = sorted(all_bands.index(band) for band in bands if band in all_bands)
            if not places:
                continue
            span = slice(places[0], places[-1] + 1)
            picked = [place - places[0] for place in places]
            array = DirectArray(Path(store) / name, direct) if direct else ZarrArray(store, name)
            self.layout[name] = tuple(all_bands[place] for place in places)
            self._arrays[name] = (array, span, None if len(picked) == span.stop - span.start else picked, about)

    def read(self, indices: Ints, out: dict[str, Pixels] | None = None) -> dict[str, Pixels]:
        """Pixels of store rows, in the given order; a row may occur more than once.

        Args:
            indices: [n] rows.
            out: Buffers to fill, as an earlier call returned them for the same number of rows.

        Returns:
            For each band group [n, bands asked for, H, W], in the stored order of bands (`layout`).

        Raises:
            DataError: A shard cannot be read; names file and patch.
        """
        rows = np.ascontiguousarray(indices, np.int64)
        result: dict[str, Pixels] = {}
        for name, (array, span, picked, about) in self._arrays.items():
            shape, dtype = about
            if len(rows) and (rows.min() < 0 or rows.max() >= shape[0]):
                raise DataError(f"patch {int(rows.max())} asked for, and the store has {shape[0]}")
            wanted = (len(rows), span.stop - span.start, *shape[2:])
            buffer = out[name] if out is not None and picked is None else np.empty(wanted, dtype)
            array.read(rows, span, buffer)
            result[name] = buffer if picked is None else np.ascontiguousarray(buffer[:, picked])
        return result
