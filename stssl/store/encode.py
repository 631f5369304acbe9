"""Encode a shard as Zarr's sharding codec defines it: chunks, then an index with its crc32c.

Each chunk is one patch, followed by its crc32c. A table of these checksums stands between chunks and index, where Zarr
looks for nothing. Without it, all shards of uncompressed patches would have the same index, and one shard could take
another's place unnoticed. The crc32c of table and index is listed in the array's attributes (`SHARD_CHECKSUMS`).

A compressed patch is a Blosc frame with one block for each large band, so that a reader that wants red, green and blue
decodes three blocks of four. With Blosc's own choice of blocks it would have to decode all of them.
"""

import struct

import google_crc32c
import numpy as np
from numcodecs import blosc

from stssl.base.arrays import AnyArray

SHARD_CHECKSUMS = "shard_checksums"
LEVEL, LARGE_BAND = 5, 16384
EMPTY = 2**64 - 1
_MEMCPYED = 2
_HEADER = struct.Struct("<4B3I")


def encode_shard(patches: AnyArray, capacity: int, codec: str | None, checked: bool = False) -> bytes:
    """Encode patches as one shard; patches that are all 0 are left out, since 0 is the fill value.

    Args:
        patches: [n, bands, H, W] pixels, n <= `capacity`, in C order.
        capacity: Patches that a full shard has.
        codec: Blosc's name of a compressor, or None.
        checked: True to add each patch's crc32c, and their table before the index.
    """
    index, checksums = np.full((capacity, 2), EMPTY, "<u8"), np.zeros(capacity, "<u4")
    parts, offset = [], 0
    for place, patch in enumerate(patches.astype(patches.dtype.newbyteorder("<"), copy=False)):
        # Zarr reads a chunk that is not there as the fill value, so that unreadable patches cost nothing.
        if not patch.any():
            continue
        part = patch.tobytes() if codec is None else frame(patch, codec)
        if checked:
            checksums[place] = google_crc32c.value(part)
            part += checksums[place].tobytes()
        parts.append(part)
        index[place] = offset, len(part)
        offset += len(part)
    table, sums = index.tobytes(), checksums.tobytes() if checked else b""
    return b"".join([*parts, sums, table, google_crc32c.value(table).to_bytes(4, "little")])


def tail_bytes(capacity: int, listed: bool = True) -> int:
    """Return the size of a shard's end: its index, the index's checksum and, if `listed`, the patches' checksums."""
    return capacity * (20 if listed else 16) + 4


def shard_checksum(tail: bytes) -> int:
    """Compute the checksum that an array's attributes list for a shard, from the shard's last `tail_bytes`.

    The index's own checksum is left out: an index followed by its crc32c changes a crc32c in the same way, whatever the
    index holds.
    """
    return int(google_crc32c.value(tail[:-4]))


def frame(patch: AnyArray, codec: str) -> bytes:
    """Compress one patch [bands, H, W] as a Blosc frame with bitshuffle."""
    if patch[0].nbytes < LARGE_BAND or len(patch) == 1:
        return _compress(patch, codec)
    frames = [_compress(band, codec) for band in patch]
    heads = [_HEADER.unpack_from(part) for part in frames]
    version, format_, flags, size, _, _, _ = heads[0]
    # A band that Blosc stored as it is, or cut into several blocks, cannot be joined with the others.
    simple = all(head[2] == flags and head[5] == head[4] for head in heads) and not flags & _MEMCPYED
    if not simple:
        return _compress(patch, codec)
    # A frame is a header, the offsets of its blocks, and the blocks; a frame of one block has one offset.
    blocks = [part[_HEADER.size + 4 :] for part in frames]
    start = _HEADER.size + 4 * len(blocks)
    ends = start + np.cumsum([len(block) for block in blocks])
    offsets = [start, *ends[:-1].tolist()]
    header = _HEADER.pack(version, format_, flags, size, patch.nbytes, patch[0].nbytes, int(ends[-1]))
    return b"".join([header, struct.pack(f"<{len(blocks)}I", *offsets), *blocks])


def _compress(array: AnyArray, codec: str) -> bytes:
    return bytes(blosc.compress(np.ascontiguousarray(array), codec.encode(), LEVEL, blosc.BITSHUFFLE, 0))
