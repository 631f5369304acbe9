"""Encode a shard as Zarr's sharding codec defines it: chunks, then an index with its crc32c.

Each chunk is one patch, followed by its crc32c. Between the chunks and the index stands a table of these checksums,
which Zarr ignores. The attributes of the array list the crc32c of table and index (`SHARD_CHECKSUMS`). Without the
table, all shards of uncompressed patches would have the same index, and nobody would notice if one shard replaced
another.

A compressed patch is a Blosc frame, in which each large band has its own block. So a reader of the first three of four
bands decodes only three blocks. If Blosc chose the blocks, the reader would have to decode all of them.
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
    """Return the bytes of one shard file: the encoded pixels of patches, and the index that says where each patch lies.

    Leave out patches that are all 0: Zarr reads a missing chunk as the fill value, 0.

    Args:
        patches: [n, bands, height, width] pixels, n <= `capacity`, in C order.
        capacity: Number of patches in a full shard.
        codec: Blosc's name of a compressor, such as `lz4`; None for no compression.
        checked: True to add the crc32c of each patch after it, and the table of all of them before the index.
    """
    index, checksums = np.full((capacity, 2), EMPTY, "<u8"), np.zeros(capacity, "<u4")
    parts, offset = [], 0
    for place, patch in enumerate(patches.astype(patches.dtype.newbyteorder("<"), copy=False)):
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
    """Return how many bytes follow the patches in a shard file: the patches' checksums, the index and its checksum.

    Args:
        capacity: Number of patches in a full shard.
        listed: True if the shard has the table of the patches' checksums.
    """
    return capacity * (20 if listed else 16) + 4


def shard_checksum(tail: bytes) -> int:
    """Return a checksum of the end of a shard file: of the index of its patches, and of the table of their checksums.

    Leave out the last 4 bytes, which are the crc32c of the index. With them, the result would be the same for every
    index: data that end with their own crc32c have a constant crc32c.

    Args:
        tail: Last bytes of the file: table, index and the crc32c of the index.
    """
    return int(google_crc32c.value(tail[:-4]))


def frame(patch: AnyArray, codec: str) -> bytes:
    """Compress one patch with bitshuffle and a codec, and return the bytes of a Blosc frame.

    Each large band gets a block of its own if Blosc can compress each band as one block.

    Args:
        patch: [bands, height, width] pixels.
        codec: Blosc's name of a compressor, such as `lz4`.
    """
    if patch[0].nbytes < LARGE_BAND or len(patch) == 1:
        return _compress(patch, codec)
    frames = [_compress(band, codec) for band in patch]
    heads = [_HEADER.unpack_from(part) for part in frames]
    version, format_, flags, size, _, _, _ = heads[0]
    # Blosc may store a band uncompressed or in several blocks. Such a band cannot be joined with the others, so the
    # patch is compressed as a whole.
    simple = all(head[2] == flags and head[5] == head[4] for head in heads) and not flags & _MEMCPYED
    if not simple:
        return _compress(patch, codec)
    # Cut off the header and the block offset (4 bytes) of each band's frame: the joined frame gets new ones.
    blocks = [part[_HEADER.size + 4 :] for part in frames]
    start = _HEADER.size + 4 * len(blocks)
    ends = start + np.cumsum([len(block) for block in blocks])
    offsets = [start, *ends[:-1].tolist()]
    header = _HEADER.pack(version, format_, flags, size, patch.nbytes, patch[0].nbytes, int(ends[-1]))
    return b"".join([header, struct.pack(f"<{len(blocks)}I", *offsets), *blocks])


def _compress(array: AnyArray, codec: str) -> bytes:
    return bytes(blosc.compress(np.ascontiguousarray(array), codec.encode(), LEVEL, blosc.BITSHUFFLE, 0))
