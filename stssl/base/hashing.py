"""Hash the pixels of patches and the values of columns. Code compares and checks stores by these hashes."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray


def content_hash(arrays: list[AnyArray]) -> NDArray[np.uint8]:
    """Hash the pixels of a patch: BLAKE2b over its arrays, one after the other, in C order and little endian.

    Args:
        arrays: The band groups of one patch, each [bands, height, width].

    Returns:
        The hash as 16 bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return np.frombuffer(digest.digest(), np.uint8)


def column_hash(values: AnyArray) -> str:
    """Hash a column of N patches, [N] or [N, C]: BLAKE2b, 16 bytes in hexadecimal. C is the number of values a patch.

    Hash texts as JSON, since numpy has several ways to hold texts in memory. Hash numbers as little endian bytes.
    """
    if values.dtype.kind in "OU":
        data = json.dumps([str(value) for value in values.tolist()]).encode()
    else:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(*columns: AnyArray) -> str:
    """Hash several columns together. A conversion compares this hash to see if it began with other lists or tables."""
    return hashlib.blake2b(" ".join(map(column_hash, columns)).encode(), digest_size=16).hexdigest()
