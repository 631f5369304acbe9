"""Hash pixels of patches, columns of stores, and settings. Other code compares hashes to find out if these changed."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray


def content_hash(arrays: list[AnyArray]) -> NDArray[np.uint8]:
    """Return the BLAKE2b hash of the pixels of a patch: of its arrays one after the other, as little-endian bytes.

    Args:
        arrays: The band groups of one patch, each [bands, height, width].

    Returns:
        The hash as 16 bytes, [16] uint8.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return np.frombuffer(digest.digest(), np.uint8)


def column_hash(values: AnyArray) -> str:
    """Return the BLAKE2b hash of a column of a store, 16 bytes, as hexadecimal text.

    Texts are hashed as JSON, since numpy has several ways to hold texts in memory. Numbers are hashed as little-endian
    bytes.

    Args:
        values: [N], or [N, values for each patch], for N patches.
    """
    if values.dtype.kind in "OU":
        data = json.dumps([str(value) for value in values.tolist()]).encode()
    else:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(*columns: AnyArray) -> str:
    """Return one BLAKE2b hash of several columns of a store together, 16 bytes, as hexadecimal text.

    A resumed conversion compares this hash with the one of its start, to see if its input has changed.
    """
    return hashlib.blake2b(" ".join(map(column_hash, columns)).encode(), digest_size=16).hexdigest()


def settings_hash(settings: object) -> str:
    """Return the BLAKE2b hash of the `repr` of settings, 16 bytes, as hexadecimal text.

    Code that resumes work compares this hash, to see if the work was begun with the same settings.

    Args:
        settings: For example, a tuple of numbers, texts and paths.
    """
    return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()
