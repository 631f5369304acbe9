"""Hash pixels of patches, columns of stores, and settings. Other code compares hashes to find out if these changed."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray


def content_hash(arrays: list[AnyArray]) -> NDArray[np.uint8]:
    """Hash the pixels of a patch with BLAKE2b. The hash covers its arrays one after the other, as little-endian bytes.

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
    """Hash a column of a store with BLAKE2b. Return 16 bytes in hexadecimal.

    A column has one row for each of N patches: [N], or [N, C] with C values for each patch. Hash texts as JSON, since
    numpy has several ways to hold texts in memory. Hash numbers as little-endian bytes.
    """
    if values.dtype.kind in "OU":
        data = json.dumps([str(value) for value in values.tolist()]).encode()
    else:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(*columns: AnyArray) -> str:
    """Hash several columns together with BLAKE2b. Return 16 bytes in hexadecimal.

    A resumed conversion compares this hash with the one of its start, to see if its input has changed.
    """
    return hashlib.blake2b(" ".join(map(column_hash, columns)).encode(), digest_size=16).hexdigest()


def settings_hash(settings: object) -> str:
    """Hash the `repr` of settings (such as a tuple of numbers, texts and paths). Return 16 bytes in hexadecimal.

    Code that resumes work compares this hash, to see if the work was begun with the same settings.
    """
    return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()
