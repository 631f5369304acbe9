"""The hash that says which pixels a patch has."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def content_hash(arrays: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """BLAKE2b, 16 bytes, over a patch's band arrays in order: C order, little endian."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return np.frombuffer(digest.digest(), np.uint8)
