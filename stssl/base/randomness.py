"""Draw random numbers and permutations. The same key gives the same numbers, in each process and after each restart."""

from collections.abc import Sequence
from enum import Enum
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Ints

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 8


class RandomStream(Enum):
    """Name each use of random numbers, such as one augmentation. Two uses never share numbers.

    A value has one or more words of at most eight bytes. The words are part of the key of the random numbers. So a
    changed value changes the results of every seed.
    """

    LABELED = "labeled"
    UNLABELED = "unlabele"
    PAIRS = "pairs"
    SHARD_DELAY = "delay"
    METADATA_DROPOUT = "metadata"
    # Old code made the words of a view from the end and the start of its name. Do not correct them: then a seed would
    # give other images than in earlier releases.
    LABELED_WEAK = "led_weak labeled_"
    LABELED_STRONG = "d_strong labeled_"
    UNLABELED_WEAK = "led_weak unlabele"
    UNLABELED_STRONG = "d_strong unlabele"
    PARTNER = "partner"
    QUERY_VIEW = "query"
    KEY_VIEW = "key"
    KEY_SHUFFLE = "shuffle"
    PROBE = "probe"


KeyPart = int | RandomStream | Ints
"""One part of a key."""


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return new 64-bit integers [n] that differ strongly even if those in `value` [n] are neighbors.

    This is a step of SplitMix64 (Steele et al. 2014).
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@cache
def _words(stream: RandomStream) -> list[NDArray[np.uint64]]:
    """Return the name of a random stream as 64-bit integers: a list with an array [1] for each word of the name."""
    return [np.frombuffer(word.encode().ljust(_WORD, b"\0"), "<u8") for word in stream.value.split()]


def _key(parts: Sequence[KeyPart]) -> NDArray[np.uint64]:
    """Return n hashes of 64 bits, [n], of a key: integers, names of random streams and integer arrays [n].

    A key without arrays gives one hash.
    """
    # Let `_start` cache the hash of the first parts: a loader draws with the same seed and stream again and again.
    plain = next((at for at, part in enumerate(parts) if not isinstance(part, int | RandomStream)), len(parts))
    state = _start(tuple(part for part in parts[:plain] if isinstance(part, int | RandomStream)))
    for part in parts[plain:]:
        state = _next(state, part)
    return state


@lru_cache(maxsize=256)
def _start(parts: tuple[int | RandomStream, ...]) -> NDArray[np.uint64]:
    """Return the hash [1] of the parts of a key before its first array. It is cached, so callers must not change it."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _next(state, part)
    return state


def _next(state: NDArray[np.uint64], part: KeyPart) -> NDArray[np.uint64]:
    """Return the hash of a key with one more part, given the hash `state` of the key's earlier parts."""
    for value in _words(part) if isinstance(part, RandomStream) else [np.asarray(part)]:
        state = _mix((state ^ _mix(value.astype(np.uint64) + _GOLDEN)) + _GOLDEN)
    return state


def uniforms(key: Sequence[KeyPart], count: int) -> NDArray[np.float32]:
    """Draw random numbers in [0, 1). The same key always gives the same numbers.

    Args:
        key: Integers, streams and integer arrays [n], such as (seed, RandomStream.QUERY_VIEW, epochs, rows). Without an
            array, n is 1.
        count: How many numbers to draw for each row of the arrays.

    Returns:
        [n, count] float32, multiples of 2**-24.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(_key(key)[:, None] + steps)
    # Keep only the highest 24 bits: a float32 holds 24. More bits would be rounded, sometimes up to 1.0.
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=8)
def permutation(size: int, seed: int, stream: RandomStream, epoch: int) -> Ints:
    """Return the positions 0..size-1, shuffled for one epoch. The same arguments always give the same result.

    Args:
        size: Number of positions.
        seed: Seed of the run.
        stream: What the permutation is for. Different uses get independent permutations.
        epoch: Number of the epoch.

    Returns:
        [size] positions. The array is cached, so callers cannot write to it.
    """
    with np.errstate(over="ignore"):
        key = _key((seed, stream, epoch))
    order = np.random.Generator(np.random.Philox(key=int(key[0]))).permutation(size)
    # The cache gives the same array to all callers: a change by one caller would reach the others.
    order.setflags(write=False)
    return order
