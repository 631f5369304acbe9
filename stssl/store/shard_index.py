"""Read and check the index of a shard file (a file of many patches): where its patches lie, and their checksums."""

import os
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stssl.base.errors import DataError
from stssl.store.encode import EMPTY, shard_checksum, tail_bytes
from stssl.store.shard_layout import Layout

BLOSC_OVERHEAD = 16


def read_index(file: int, path: Path, layout: Layout, shard: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Read from the end of an open shard file where its patches lie, and what their checksums are.

    Args:
        file: Descriptor of the open file.
        path: Path of the file, for messages.
        layout: Description of how the array's files are laid out.
        shard: Number of the shard among those of the array.

    Returns:
        Offsets and sizes [patches, 2] of the patches in bytes, and their checksums [patches]. Older stores have no
            checksums: this array is then empty.

    Raises:
        DataError: The shard is truncated or damaged, or does not match its checksum in the attributes of the array.
    """
    size = os.fstat(file).st_size
    length = tail_bytes(layout.shard, bool(layout.checksums))
    return parse_tail(os.pread(file, length, max(0, size - length)), size, path, layout, shard)


def parse_tail(
    tail: bytes, size: int, path: Path | str, layout: Layout, shard: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Find in the last bytes of a shard file where its patches lie, and what their checksums are.

    Args:
        tail: Last bytes of the shard, as many as `tail_bytes` says: table of checksums, index and the crc32c of the
            index.
        size: Size of the whole shard in bytes.
        path: Path or URL of the shard, for messages.
        layout: Description of how the array's files are laid out.
        shard: Number of the shard among those of the array.

    Returns:
        Offsets and sizes [patches, 2] of the patches in bytes, and their checksums [patches]. Older stores have no
            checksums: this array is then empty.

    Raises:
        DataError: The shard is truncated or damaged, or does not match its checksum in the attributes of the array.
    """
    patches, listed = layout.shard, bool(layout.checksums)
    index = parse_index(tail[patches * 4 :] if listed else tail, size, path, patches)
    if listed and shard_checksum(tail) != layout.checksums[shard]:
        raise DataError(
            f"{path} is not the file that was converted: its index differs from the one that the array's attributes "
            "list. It may be another store's, of another place, or an older one. Copy the store again."
        )
    sizes = index[index[:, 0] != EMPTY, 1]
    most = layout.patch_bytes + 4 * layout.checked + (BLOSC_OVERHEAD if layout.blosc else 0)
    if len(sizes) and (sizes.max() > most or (not layout.blosc and sizes.min() < most)):
        raise DataError(f"{path} is damaged: its index gives patches impossible sizes. Run `stssl verify`.")
    return index, np.frombuffer(tail[: patches * 4], "<u4") if listed else np.zeros(0, np.uint32)


def parse_index(tail: bytes, size: int, path: Path | str, patches: int) -> NDArray[np.uint64]:
    """Find in the last bytes of a shard file where its patches lie.

    Args:
        tail: Last bytes of the shard: the index and its crc32c.
        size: Size of the whole shard in bytes.
        path: Path or URL of the shard, for messages.
        patches: Number of patches in a full shard.

    Returns:
        Offset and size of each patch in bytes, [patches, 2]. Both are `EMPTY` for a patch that the file leaves out.

    Raises:
        DataError: The shard is truncated or damaged.
    """
    length = tail_bytes(patches, listed=False)
    if len(tail) != length or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise DataError(f"{path} is truncated or damaged: its index fails the checksum. Run `stssl verify`.")
    index = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
    spans = index[index[:, 0] != EMPTY]
    room = np.uint64(size - length)
    # Do not add offset and size: the sum of damaged values may exceed 2^64, and would then wrap to a small number.
    if (spans[:, 0] > room).any() or (spans[:, 1] > room - spans[:, 0]).any():
        raise DataError(f"{path} is damaged: its index points beyond its end. Run `stssl verify`.")
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if (spans[:-1].sum(1) > spans[1:, 0]).any():
        raise DataError(f"{path} is damaged: patches overlap in its index. Run `stssl verify`.")
    return index
