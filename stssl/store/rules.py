"""Check the `zarr.json` of an array before zarr uses it: types, sizes, codecs and fill values, key by key.

zarr trusts a description: impossible values, such as a chunk of size 0 or a shape of 400 digits, raise unclear errors
of arithmetic in zarr. In this module, each key has a rule, with words that tell the user the right form of its value.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stssl.base.errors import DataError, shown
from stssl.store.shard_layout import MOST_PATCHES, MOST_PIXELS, ZarrTree

ADVICE = "Copy the store again, or convert again."
LARGE_SHARD = 1 << 20
"""A shard may have this many patches, even if the store has fewer."""
NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
MOST_CODECS = 8
LONGEST_NAME = 200


@dataclass(frozen=True)
class Rule:
    """Say which values one key of a `zarr.json` may have: by a test, and in words for the error message.

    Attributes:
        holds: Function that returns True if a value is right.
        words: What the value must be. A message shows these words after "must be".
        needed: True if the key must exist.
    """

    holds: Callable[[Any], bool]
    words: str
    needed: bool = True


def require(tree: ZarrTree, rules: Mapping[str, Rule], where: str) -> None:
    """Check the values of a JSON object, each by the rule of its key. Skip keys without a rule.

    Args:
        tree: Values by key.
        rules: Rules by key. Keys of the object without a rule are not checked.
        where: Path of the file and the keys above the object, such as `x/zarr.json: attributes.`, for messages.

    Raises:
        DataError: A value breaks its rule, or a needed key is missing. The message names the file and the key.
    """
    for key, rule in rules.items():
        if key in tree and not rule.holds(tree[key]):
            raise DataError(f"{where}{key} must be {rule.words}, not {shown(tree[key], 60)}. {ADVICE}")
        if key not in tree and rule.needed:
            raise DataError(f"{where}{key} is missing: it must be {rule.words}. {ADVICE}")


def is_whole(value: object, low: int, high: int) -> bool:
    """Return True if a value is a whole number from `low` to `high`, both inclusive.

    True and 1.0 do not count as numbers.

    Args:
        value: The value.
        low: Smallest number.
        high: Largest number.
    """
    return type(value) is int and low <= value <= high


def is_name(value: object) -> bool:
    """Return True if a value can be the name of an array. A name is one part of a path, with printable characters."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and value.isprintable()
        and value not in (".", "..")
        and not any(sign in value for sign in "/\\")
    )


def is_list(value: object, holds: Callable[[Any], bool], count: int | None = None) -> bool:
    """Return True if a value is a list of `count` entries, and all its entries are right.

    Args:
        value: The value.
        holds: Function that returns True if an entry is right.
        count: Number of entries; None allows any number.
    """
    return isinstance(value, list) and (count is None or len(value) == count) and all(map(holds, value))


def are_names(value: Any, least: int = 0) -> bool:
    """Return True if a value is a list of at least `least` names of arrays, no two of them equal."""
    return is_list(value, is_name) and least <= len(value) == len(set(value))


def one_of(*values: object) -> Rule:
    """Return the rule that the value of a key must have the type and the value of one of `values`."""
    words = " or ".join(map(str, values))
    return Rule(lambda value: any(type(value) is type(one) and value == one for one in values), words)


def _count(low: int, high: int) -> Rule:
    """Return the rule that the value of a key must be a whole number from `low` to `high`, both inclusive."""
    return Rule(lambda value: is_whole(value, low, high), f"a whole number from {low:,} to {high:,}")


def _is_encoding(value: object) -> bool:
    """Return True if a value is one of Zarr's two encodings of chunk keys, which name the files of chunks."""
    return (
        isinstance(value, dict)
        and value.get("name") in ("default", "v2")
        and value.get("configuration", {}) in ({}, {"separator": "/"}, {"separator": "."})
    )


_SIZES = Rule(lambda value: is_list(value, lambda size: is_whole(size, 0, 2**31 - 1)), "a list of sizes")
_ARRAY: dict[str, Rule] = {
    "zarr_format": one_of(3),
    "node_type": one_of("array"),
    "shape": Rule(lambda value: _SIZES.holds(value) and 1 <= len(value) <= 4, "a list of one to four sizes"),
    "data_type": one_of("bool", *NUMBERS, "string"),
    "chunk_grid": Rule(lambda value: isinstance(value, dict), "a grid of chunks"),
    "chunk_key_encoding": Rule(_is_encoding, "Zarr's encoding `default` or `v2`"),
    "fill_value": Rule(lambda value: True, "there"),
    "codecs": Rule(lambda value: is_list(value, lambda one: isinstance(one, dict)), "a list of codecs"),
    "attributes": Rule(lambda value: isinstance(value, dict), "keys and values", needed=False),
    "dimension_names": Rule(
        lambda value: value is None or is_list(value, lambda name: name is None or isinstance(name, str)),
        "a list of names",
        needed=False,
    ),
    "storage_transformers": Rule(lambda value: value == [], "an empty list", needed=False),
}
_OPTIONS: dict[str, dict[str, Rule]] = {
    "bytes": {"endian": Rule(lambda value: value in ("little", "big"), "little or big", needed=False)},
    "vlen-utf8": {},
    "crc32c": {},
    "gzip": {"level": _count(0, 9)},
    "zstd": {"level": _count(-(2**17), 22), "checksum": one_of(True, False)},
    "blosc": {
        "cname": one_of("lz4", "lz4hc", "blosclz", "zstd", "snappy", "zlib"),
        "clevel": _count(0, 9),
        "shuffle": one_of("noshuffle", "shuffle", "bitshuffle"),
        "typesize": _count(1, 255),
        "blocksize": _count(0, 2**31 - 1),
    },
    "sharding_indexed": {
        "chunk_shape": _SIZES,
        "codecs": _ARRAY["codecs"],
        "index_codecs": Rule(
            lambda value: value == [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "bytes, little endian, and crc32c",
        ),
        "index_location": Rule(lambda value: value in ("start", "end"), "start or end", needed=False),
    },
}
"""Codecs that a store may use, and the rules for their options."""


def check_array(tree: ZarrTree, where: str) -> None:
    """Check the description (`zarr.json`) of one Zarr array: types, sizes, codecs and fill value.

    Args:
        tree: The `zarr.json` of the array.
        where: Path of the file, and the keys above the description if it is a part of the file, for messages.

    Raises:
        DataError: A value in the description is wrong. The message names the file and the key.
    """
    require(tree, _ARRAY, where)
    strangers = [key for key in tree if key not in _ARRAY]
    if strangers:
        raise DataError(f"{where}{shown(strangers[0], 60)} is no key of an array of Zarr version 3. {ADVICE}")
    shape, kind = tree["shape"], tree["data_type"]
    if shape[0] > MOST_PATCHES or math.prod(shape[1:]) > MOST_PIXELS:
        raise DataError(
            f"{where}shape must have at most {MOST_PATCHES:,} patches of {MOST_PIXELS:,} values, not {shape}. {ADVICE}"
        )
    names = tree.get("dimension_names")
    if names is not None and len(names) != len(shape):
        raise DataError(f"{where}dimension_names must be one for each of the {len(shape)} sizes of shape. {ADVICE}")
    if not _fills(tree["fill_value"], kind):
        value = shown(tree["fill_value"], 60)
        raise DataError(f"{where}fill_value must be a value of the type {kind}, not {value}. {ADVICE}")
    chunk = _chunk_shape(tree["chunk_grid"], shape, where)
    _check_codecs(tree["codecs"], kind, f"{where}codecs", chunk)
    if tree["codecs"][0]["name"] != "sharding_indexed" and chunk[0] > max(1, shape[0]):
        raise DataError(f"{where}chunk_grid must have chunks no larger than the array, not {chunk}. {ADVICE}")


def _fills(value: object, kind: str) -> bool:
    """Return True if a value can be the fill value of a Zarr array.

    Args:
        value: The fill value, as JSON.
        kind: Type of the array's values, such as `uint16`.
    """
    if kind in ("bool", "string"):
        return isinstance(value, bool if kind == "bool" else str)
    if kind.startswith("float"):
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= float(np.finfo(kind).max)
        )
        return number or value in ("NaN", "Infinity", "-Infinity")
    limits = np.iinfo(kind)
    return is_whole(value, int(limits.min), int(limits.max))


def _chunk_shape(grid: ZarrTree, shape: list[int], where: str) -> list[int]:
    """Check and return the sizes of a Zarr array's chunks along each axis.

    For an array in shards (files of many chunks), these are the sizes of a shard.

    Args:
        grid: Value of the key `chunk_grid`.
        shape: Shape of the array.
        where: Path of the file and the keys above `chunk_grid`, for messages.

    Raises:
        DataError: The description has no sizes, or a size below 1 or too large.
    """
    require(grid, {"name": one_of("regular")}, f"{where}chunk_grid.")
    inner = grid.get("configuration")
    most = [max(shape[0], LARGE_SHARD), *(max(1, size) for size in shape[1:])]
    sizes = inner.get("chunk_shape") if isinstance(inner, dict) else None
    if not is_list(sizes, lambda size: is_whole(size, 1, 2**31 - 1), len(shape)) or any(
        size > limit for size, limit in zip(sizes or (), most, strict=True)
    ):
        raise DataError(
            f"{where}chunk_grid.configuration.chunk_shape must be {len(shape)} sizes from 1, no larger than the array, "
            f"not {shown(sizes, 60)}. {ADVICE}"
        )
    return list(sizes or ())


def _check_codecs(codecs: list[ZarrTree], kind: str, where: str, chunk: list[int], inner: bool = False) -> None:
    """Check the codecs (byte order, compression, checksums) of a Zarr array, or of the chunks inside a shard.

    The first codec turns values into bytes. Compressors and checksums follow it.

    Args:
        codecs: The codecs, in the order in which they are applied.
        kind: Type of the array's values, such as `uint16`.
        where: Path of the file and the keys to the codecs, for messages.
        chunk: Sizes of a chunk along each axis; of a shard for an array in shards.
        inner: True for the codecs of chunks inside a shard.

    Raises:
        DataError: A codec is not known, has a wrong place, or has an impossible option.
    """
    first = ("vlen-utf8",) if kind == "string" else ("bytes",) if inner else ("bytes", "sharding_indexed")
    if not 1 <= len(codecs) <= MOST_CODECS:
        raise DataError(f"{where} must be one to {MOST_CODECS} codecs, not {len(codecs)}. {ADVICE}")
    for place, codec in enumerate(codecs):
        here = f"{where}.{place}."
        require(codec, {"name": one_of(*(first if place == 0 else ("blosc", "zstd", "gzip", "crc32c")))}, here)
        options = codec.get("configuration", {})
        known = _OPTIONS[codec["name"]]
        strange = set(codec) - {"name", "configuration"} or not isinstance(options, dict) or set(options) - set(known)
        if strange:
            raise DataError(f"{here}configuration must be what {codec['name']} can be told. {ADVICE}")
        require(options, known, f"{here}configuration.")
    head, options = codecs[0]["name"], codecs[0].get("configuration", {})
    if head == "bytes" and "endian" not in options and kind not in ("bool", "int8", "uint8"):
        raise DataError(f"{where}.0.configuration.endian is missing: it must be little or big. {ADVICE}")
    if head == "sharding_indexed":
        sizes = options["chunk_shape"]
        fits = len(sizes) == len(chunk) and all(size and not whole % size for whole, size in zip(chunk, sizes))  # noqa: B905
        if not fits:
            raise DataError(
                f"{where}.0.configuration.chunk_shape must divide the shard's {chunk}, not {shown(sizes, 60)}. {ADVICE}"
            )
        _check_codecs(options["codecs"], kind, f"{where}.0.configuration.codecs", chunk, inner=True)
