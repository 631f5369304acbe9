"""Hash the pixels of patches and the values of columns, so that stores can be compared and checked."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray


def content_hash(arrays: list[AnyArray]) -> NDArray[np.uint8]:
    """Hash a patch's pixels: BLAKE2b over its band arrays in their order, each in C order and little endian.

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
    """Hash a metadata array [N] or [N, C]: BLAKE2b, 16 bytes in hexadecimal.

    Texts are hashed as JSON, since numpy has several ways to hold them in memory; numbers in little endian.
    """
    if values.dtype.kind in "OU":
        data = json.dumps([str(value) for value in values.tolist()]).encode()
    else:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(*columns: AnyArray) -> str:
    """Hash several columns together, so that a conversion can tell if it was begun with other lists or tables."""
    return hashlib.blake2b(" ".join(map(column_hash, columns)).encode(), digest_size=16).hexdigest()
