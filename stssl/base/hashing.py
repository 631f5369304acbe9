"""The hashes that say which pixels a patch has, and what stands in a column."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def content_hash(arrays: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """BLAKE2b, 16 bytes, over a patch's band arrays in order: C order, little endian."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return np.frombuffer(digest.digest(), np.uint8)


def column_hash(values: NDArray[Any]) -> str:
    """BLAKE2b, 16 bytes in hexadecimal, over a metadata array [N] or [N, C]: strings as JSON, numbers little endian."""
    if values.dtype.kind in "OU":
        data = json.dumps([str(value) for value in values.tolist()]).encode()
    else:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(*columns: NDArray[Any]) -> str:
    """One hash over several columns: a conversion with other lists or tables is another conversion."""
    return hashlib.blake2b(" ".join(map(column_hash, columns)).encode(), digest_size=16).hexdigest()
