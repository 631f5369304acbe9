"""Bytes of a shard, as Zarr's sharding codec defines them: chunks, then an index with its crc32c.

Each chunk is one patch. A compressed one is a Blosc frame with a block for each large band, so that a reader that wants
red, green and blue decodes three blocks of four; Blosc's own choice of blocks would make it decode them all.
"""

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

LEVEL, LARGE_BAND = 5, 16384
EMPTY = 2**64 - 1
_MEMCPYED = 2
_HEADER = struct.Struct("<4B3I")


def encode_shard(patches: NDArray[Any], capacity: int, codec: str | None) -> bytes:
    """A shard of `patches` [n, bands, H, W], n <= `capacity`; patches of zeros only are left out (fill value 0).

    Args:
        patches: Pixels, C order.
        capacity: Patches a whole shard has.
        codec: Blosc's name of a compressor, or None.
    """
    index = np.full((capacity, 2), EMPTY, "<u8")
    parts, offset = [], 0
    for place, patch in enumerate(patches.astype(patches.dtype.newbyteorder("<"), copy=False)):
        if not patch.any():
            continue
        part = patch.tobytes() if codec is None else frame(patch, codec)
        parts.append(part)
        index[place] = offset, len(part)
        offset += len(part)
    table = index.tobytes()
    return b"".join([*parts, table, google_crc32c.value(table).to_bytes(4, "little")])


def frame(patch: NDArray[Any], codec: str) -> bytes:
    """A Blosc frame (bitshuffle) of one patch [bands, H, W]."""
    if patch[0].nbytes < LARGE_BAND or len(patch) == 1:
        return _compress(patch, codec)
    frames = [_compress(band, codec) for band in patch]
    heads = [_HEADER.unpack_from(part) for part in frames]
    version, format_, flags, size, _, _, _ = heads[0]
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


def _compress(array: NDArray[Any], codec: str) -> bytes:
    return bytes(blosc.compress(np.ascontiguousarray(array), codec.encode(), LEVEL, blosc.BITSHUFFLE, 0))
