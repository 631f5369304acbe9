"""Random numbers and orders that are pure functions of a key: of no rank, thread or restart."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Ints

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection that scatters neighboring integers."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(parts: Sequence[int | str | Ints]) -> NDArray[np.uint64]:
    """Hash integers, names and integer arrays into 64-bit keys, one for each row of the arrays."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        value = np.frombuffer(part.encode().ljust(8, b"\0")[:8], "<u8") if isinstance(part, str) else np.asarray(part)
        state = _mix((state ^ _mix(value.astype(np.uint64) + _GOLDEN)) + _GOLDEN)
    return state


def uniforms(key: Sequence[int | str | Ints], count: int) -> NDArray[np.float32]:
    """Random numbers in [0, 1) that are a function of the key alone.

    Args:
        key: Integers, short names (8 bytes count) and integer arrays [n], such as (seed, "crop", epochs, indices).
        count: Numbers wanted for each row.

    Returns:
        [n, count] float32, multiples of 2**-24.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(_key(key)[:, None] + steps)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=8)
def permutation(size: int, seed: int, stream: str, epoch: int) -> Ints:
    """Permute the positions of one epoch, as a function of the arguments alone.

    Args:
        size: Number of positions.
        seed: Seed of the run.
        stream: Name of the stream.
        epoch: Number of the epoch.

    Returns:
        [size] positions.
    """
    with np.errstate(over="ignore"):
        key = _key((seed, stream, epoch))
    order = np.random.Generator(np.random.Philox(key=int(key[0]))).permutation(size)
    order.setflags(write=False)
    return order
